"""Blocks with ``dims`` in networks for clips and for sequences: torchvision's r3d blocks, residual ones in 1-D."""

from pathlib import Path

import pytest
import torch
from samples import randomise
from torch import Tensor, nn

import lookfar
from lookfar.blocks import block_info, list_blocks
from lookfar.insertion import insertions, verify

BLOCKS = [name for name in list_blocks(kind="context") if "dims" in block_info(name).options]
SIZES = {1: (23,), 3: (3, 10, 9)}


class Residual(nn.Module):
    """As timm's and torchvision's blocks, for sequences."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(channels, channels, 3, padding=1), nn.BatchNorm1d(channels)
        self.conv2, self.bn2 = nn.Conv1d(channels, channels, 3, padding=1), nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + x).relu()


class Host(nn.Module):
    def __init__(self, dims: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        if dims == 1:
            self.stem: nn.Module = nn.Conv1d(2, 16, 3, stride=2)
            self.stage = nn.Sequential(Residual(16), Residual(16))
        else:
            from torchvision.models.video.resnet import BasicBlock, Conv3DSimple

            self.stem = nn.Conv3d(2, 16, 3, stride=(1, 2, 2), padding=(1, 0, 0))
            self.stage = nn.Sequential(*(BasicBlock(16, 16, Conv3DSimple) for _ in range(2)))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage(self.stem(x)).flatten(2).mean(2))


@pytest.mark.parametrize(("dims", "position"), [(1, "last"), (3, "last"), (3, "branch")])
@pytest.mark.parametrize("block", BLOCKS)
def test_block_in_a_network_of_other_axes(block: str, dims: int, position: str, tmp_path: Path) -> None:
    if block == "criss_cross" and dims == 1:
        pytest.skip("on a line it is position_attention")
    host = randomise(Host(dims)).eval()
    x = torch.randn(2, 2, *SIZES[dims])
    want = host(x)
    lookfar.insert(host, block, "stage", position=position, example=x)
    assert torch.equal(host(x), want)
    for one in insertions(host):
        assert one.record.options["dims"] == dims
        randomise(one.module)
    host.eval()
    awake = host(x)
    assert not torch.equal(awake, want)
    assert verify(host, x) == {}
    again = lookfar.load(Host(dims), lookfar.save(host, tmp_path / "net.safetensors")).eval()
    assert torch.equal(again(x), awake)
    host.train()(x[:1]).square().mean().backward()
    reached = [p.grad is not None and bool((p.grad != 0).any()) for p in insertions(host)[0].module.parameters()]
    assert any(reached)

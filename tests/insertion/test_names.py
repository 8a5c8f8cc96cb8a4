"""Names of inserted blocks are identifiers, and files with the earlier names still load."""

import copy
import keyword

import pytest
import torch
from insertion.hosts import HOSTS, assert_equal, host, images, run, wake
from torch import Tensor, nn

from lookfar import insert
from lookfar.blocks import block_info, list_blocks
from lookfar.insertion import insertions
from lookfar.insertion.gated import child_name


@pytest.mark.parametrize("block", list_blocks())
def test_a_child_is_called_by_an_identifier(block: str) -> None:
    name = child_name(block_info(block).cls.__new__(block_info(block).cls))
    assert name.isidentifier()
    assert not keyword.iskeyword(name)
    assert name == {"nonlocal": "non_local"}.get(block, block)


class Lambda(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight * x


def test_so_is_a_strangers() -> None:
    assert insert(host("resnet18"), Lambda, "layer3", example=images()) == ["layer3.1.lambda_block"]


OLD = {  # host, place, position -> the name now, the name of earlier versions
    ("resnet18", "layer3", "last"): ("layer3.1.non_local", "layer3.1.nonlocal"),
    ("resnet18", "layer3.0", "branch"): ("layer3.0.non_local", "layer3.0.bn2.nonlocal"),
    ("resnet18", "bn1", "last"): ("non_local", "bn1.nonlocal"),
    ("mobilenetv3_small_050", "blocks.3", "last"): ("blocks.3.1.non_local", "blocks.3.1.nonlocal"),
    ("mobilenetv3_small_050", "blocks.3.1", "branch"): ("blocks.3.1.non_local", "blocks.3.1.bn3.nonlocal"),
    ("torchvision efficientnet_b0", "features.3.1", "branch"): (
        "features.3.1.non_local",
        "features.3.1.block.3.1.nonlocal",
    ),
    ("densenet121", "features.denseblock2", "last"): (
        "features.denseblock2.denselayer12.non_local",
        "features.denseblock2.denselayer12.nonlocal",
    ),
}


@pytest.mark.parametrize(("where", "names"), OLD.items(), ids=["-".join(where) for where in OLD])
def test_files_with_earlier_names_load(where: tuple[str, str, str], names: tuple[str, str]) -> None:
    name, place, position = where
    new, old = names
    net = host(name)
    assert insert(net, "nonlocal", place, position=position, example=images()) == [new]
    wake(net)
    want = run(net)
    state = copy.deepcopy(net.state_dict())
    earlier = {old + key[len(new) :] if key.startswith(f"{new}.") else key: value for key, value in state.items()}
    assert earlier.keys() != state.keys()
    with torch.no_grad():
        for p in insertions(net)[0].module.parameters():
            p.fill_(7)
    net.load_state_dict(earlier)
    assert_equal(run(net), want)
    net.load_state_dict(state)
    assert_equal(run(net), want)


def test_two_blocks_with_earlier_names() -> None:
    net = host("resnet18")
    for mode in ("gaussian", "dot_product"):
        insert(net, "nonlocal", "layer3", example=images(), mode=mode)
    assert [one.name for one in insertions(net)] == ["layer3.1.non_local", "layer3.1.non_local_2"]
    wake(net)
    want = run(net)
    state = {key.replace("non_local", "nonlocal"): value for key, value in copy.deepcopy(net.state_dict()).items()}
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(0)
    net.load_state_dict(state)
    assert_equal(run(net), want)


def test_hosts_are_left_with_their_keys() -> None:
    for name in HOSTS:
        net = host(name)
        keys = list(net.state_dict())
        names = insert(net, "position_attention", HOSTS[name][0], example=images())
        assert [key for key in net.state_dict() if not key.startswith(tuple(names))] == keys

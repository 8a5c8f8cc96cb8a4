"""A fault of torch on CPU that the blocks go around, shown with torch alone: see ``blocks/_layers.py readable``.

The fault itself is not asserted, so that a version of torch that mends it passes; what the blocks rely on is.
"""

import pytest
import torch
from samples import assert_same
from torch import Tensor, nn

from lookfar.blocks._layers import normed

SHAPE = (1, 6, 5, 4)
# of one image all three of a kind hold the same numbers; the last are what ``(a @ b).transpose(1, 2)`` has as a map
STRIDES = {"plain": (120, 20, 4, 1), "channels_last": (120, 1, 24, 6), "of a product": (6, 1, 24, 6)}


def laid_out(t: Tensor, strides: tuple[int, ...]) -> Tensor:
    return torch.empty_strided(t.shape, strides, dtype=t.dtype).copy_(t.detach())


def gradients(norm: nn.Module, of_input: str, of_gradient: str, *, through: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(SHAPE, dtype=torch.float64, generator=generator) for _ in range(2))
    x = laid_out(x, STRIDES[of_input]).requires_grad_()
    y = normed(norm, x) if through else norm(x)
    return list(torch.autograd.grad(y, [x, *norm.parameters()], laid_out(g, STRIDES[of_gradient])))


def norms() -> dict[str, nn.Module]:
    made = {
        "batch norm in training": nn.BatchNorm2d(6),
        "batch norm in eval": nn.BatchNorm2d(6).eval(),
        "within a Sequential": nn.Sequential(nn.BatchNorm2d(6), nn.ReLU()),
        "instance norm": nn.InstanceNorm2d(6, affine=True),
        "group norm": nn.GroupNorm(2, 6),
    }
    return {name: norm.double() for name, norm in made.items()}


@pytest.mark.parametrize("of_gradient", STRIDES)
@pytest.mark.parametrize("of_input", STRIDES)
@pytest.mark.parametrize("name", norms())
def test_strides_change_no_gradient_of_a_norm_in_a_block(name: str, of_input: str, of_gradient: str) -> None:
    norm = norms()[name]
    for got, want in zip(gradients(norm, of_input, of_gradient, through=True), gradients(norm, "plain", "plain")):
        assert_same(f"{name}: input {of_input}, gradient {of_gradient}", got, want)


def faults() -> list[str]:
    """What this version of torch gets wrong, in words."""
    return [
        f"{name}: input {of_input}, gradient {of_gradient}"
        for name, norm in norms().items()
        for of_input in STRIDES
        for of_gradient in STRIDES
        for got, want in zip(gradients(norm, of_input, of_gradient), gradients(norm, "plain", "plain"))
        if not torch.allclose(got, want)
    ]


if __name__ == "__main__":
    print(torch.__version__, *sorted(set(faults())) or ["mended"], sep="\n")

"""Means over several grids of bins at once are those over each."""

import pytest
import torch
import torch.nn.functional as F
from ops._compare import assert_same_with_grads
from torch import Tensor

from lookfar.ops._averages import averages

GRIDS = {"pyramid": [(1, 1), (2, 2), (3, 3), (6, 6)], "not square": [(2, 3), (1, 4)], "one": [(1, 1)]}


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("size", [(7, 11), (1, 1), (6, 12), (3, 2)])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("last", [False, True])
def test_are_those_of_each_grid(grids: list[tuple[int, int]], size: tuple[int, int], batch: int, last: bool) -> None:
    def laid(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if last else x

    def ours(x: Tensor) -> Tensor:
        return torch.cat([y.flatten(2) for y in averages(laid(x), grids)], 2)

    def pooled(x: Tensor) -> Tensor:
        return torch.cat([F.adaptive_avg_pool2d(x, grid).flatten(2) for grid in grids], 2)

    x = torch.randn(batch, 5, *size, dtype=torch.float64)
    assert_same_with_grads(ours, pooled, x, names="x")


def test_lie_as_the_map_does() -> None:
    x = torch.randn(2, 5, 7, 11).contiguous(memory_format=torch.channels_last)
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in averages(x, GRIDS["pyramid"]))
    assert all(y.is_contiguous() for y in averages(x.contiguous(), GRIDS["pyramid"]))

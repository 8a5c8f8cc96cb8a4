"""Bins brought back to every position equal torch's bilinear interpolation."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from ops._compare import TELLS_COMPILED, assert_same, assert_same_with_grads, compiled_graph
from torch import Tensor

from lookfar.ops._bins import enlarged, with_enlarged

GRIDS = [(1, 1), (2, 2), (3, 2), (9, 9)]  # the last are not few


def interpolated(p: Tensor, like: Tensor, *, align_corners: bool) -> Tensor:
    return F.interpolate(p, like.shape[2:], mode="bilinear", align_corners=align_corners)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(7, 10), (1, 5), (2, 1)])
def test_each_map_and_all_together(layout, align_corners, size):
    y = torch.randn(2, 4, *size, dtype=torch.float64).contiguous(memory_format=layout)
    maps = [torch.randn(2, 4, *grid, dtype=torch.float64) for grid in GRIDS]
    for p in maps:
        fast, slow = (partial(f, like=y, align_corners=align_corners) for f in (enlarged, interpolated))
        assert_same_with_grads(fast, slow, p, names="p")
        assert fast(p).is_contiguous(memory_format=layout)
    for some in (maps, maps[:3], maps[:1]):

        def together(y: Tensor, *some: Tensor) -> Tensor:
            return with_enlarged(y, some, align_corners=align_corners)

        def each(y: Tensor, *some: Tensor) -> Tensor:
            return sum((interpolated(p, y, align_corners=align_corners) for p in some), y)

        assert_same_with_grads(together, each, y, *some, names="y a b c d"[: 1 + 2 * len(some)])


def test_half_precision_and_programs_for_any_size_take_torchs_interpolation():
    y, p = torch.randn(1, 3, 6, 5), torch.randn(1, 3, 2, 2)
    half = enlarged(p.bfloat16(), y.bfloat16(), align_corners=True)
    assert torch.equal(half, interpolated(p.bfloat16(), y, align_corners=True))
    f = partial(enlarged, align_corners=True)
    assert ("matmul" in compiled_graph(f, p, y)) == TELLS_COMPILED
    assert "matmul" not in compiled_graph(f, p, y, dynamic=True)
    assert_same("compiled", torch.compile(f, fullgraph=True, backend="aot_eager")(p, y), f(p, y))
    assert_same("vmap", torch.func.vmap(f)(p[None], y[None])[0], f(p, y))


def test_float32_stays_float32_under_autocast():
    y, p = torch.randn(1, 3, 6, 5), torch.randn(1, 3, 2, 2)
    want = interpolated(p, y, align_corners=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same("one", enlarged(p, y, align_corners=True), want)
        assert_same("together", with_enlarged(y, [p, p], align_corners=True), y + 2 * want)

"""Every op with small inputs beside its definition: what the promises of all ops are asked of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lookfar import ops

Op = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """An op, its definition, and the shapes of its inputs, of which the first axis of those named is the batch."""

    fast: Op
    slow: Op
    shapes: dict[str, tuple[int, ...]]
    shared: tuple[str, ...] = ()  # inputs without a batch
    positive: bool = False  # sums of random signs come near 0, where nothing is well conditioned
    differentiable: tuple[str, ...] = field(default=())  # all by default
    spread: float = 1.0
    spreads: bool = False  # NaN reaches more than by the definition, by a product with 0

    def inputs(self, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        found = []
        for name, shape in self.shapes.items():
            t = self.spread * torch.randn(shape if name in self.shared else (batch, *shape), dtype=torch.float64)
            found.append((t.abs() + 0.1 if self.positive else t).to(dtype))
        return found

    @property
    def wanted(self) -> tuple[int, ...]:
        """Places of the inputs that have gradients."""
        names = self.differentiable or tuple(self.shapes)
        return tuple(n for n, name in enumerate(self.shapes) if name in names)


def first(f: Callable[..., Any]) -> Op:
    """An op that gives several tensors, as one that gives the first."""
    return lambda *inputs: f(*inputs)[0]


def pair(name: str, **options: Any) -> tuple[Op, Op]:
    return partial(getattr(ops, name), **options), partial(getattr(ops, f"{name}_reference"), **options)


TOKENS = {"q": (2, 6, 3), "k": (2, 17, 3), "v": (2, 17, 4)}  # fewer keys do not reach the fused kernel
MAPS = {"q": (1, 2, 3, 4), "k": (1, 2, 3, 4), "v": (1, 3, 3, 4)}
LINES = {"q": (2, 3, 4, 2), "k": (2, 3, 4, 2), "v": (2, 3, 4, 3)}
PREDICTED = {"a": (2, 2, 3), "m": (3, 3, 2), "v": (2, 2, 3)}
RELATIVE = {"q": (2, 6, 3), "k": (2, 6, 3), "v": (2, 6, 2), "rows": (3, 3), "columns": (5, 3)}
SLOTS = {"x": (2, 7, 3), "key": (4, 3), "value": (4, 2), "bias": (4,)}

CASES = {
    **{
        f"attention {n}": Case(*pair("attention", normalization=n, scale=0.7), TOKENS, positive=n == "l1")
        for n in ("softmax", "double", "l1", "sigmoid", "none")
    },
    "embedded_gaussian": Case(*pair("embedded_gaussian", scale=0.7), TOKENS),
    "embedded_gaussian, equal widths": Case(
        *pair("embedded_gaussian"), {"q": (1, 6, 4), "k": (1, 17, 4), "v": (1, 17, 4)}
    ),
    "embedded_gaussian, narrow queries": Case(
        *pair("embedded_gaussian", scale=0.7), {"q": (2, 6, 3), "k": (2, 7, 3), "v": (2, 7, 60)}
    ),
    "dot_product": Case(*pair("dot_product"), TOKENS),
    **{
        f"concatenation {n}": Case(*pair("concatenation", normalization=n), {"a": (1, 6), "b": (1, 5), "v": (1, 5, 3)})
        for n in ("none", "l1")
    },
    "pairwise_attention": Case(*pair("pairwise_attention"), TOKENS),
    "multiplied_attention": Case(
        *pair("multiplied_attention"), {"q": (1, 6, 3), "k": (1, 17, 3), "logits": (1, 17), "v": (1, 17, 2)}
    ),
    "channel_attention": Case(*pair("channel_attention"), {"x": (4, 7)}),
    **{
        f"external_attention {n}": Case(
            lambda x, key, value, bias, f=f: f(x, key, value, bias=bias),
            lambda x, key, value, bias, g=g: g(x, key, value, bias=bias),
            SLOTS,
            shared=("key", "value", "bias"),
            positive=n == "l1",
        )
        for n in ("double", "softmax", "l1", "sigmoid", "none")
        for f, g in [pair("external_attention", normalization=n)]
    },
    "double_normalization": Case(*pair("double_normalization"), {"l": (5, 3)}),
    "expectation_maximization": Case(
        *(first(f) for f in pair("expectation_maximization", gradient="full", iterations=2)),
        {"x": (1, 7, 3), "bases": (1, 3, 4)},
        shared=("bases",),
        differentiable=("x",),
    ),
    **{
        f"criss_cross {n}": Case(*pair("criss_cross", normalization=n), LINES, positive=n == "l1")
        for n in ("softmax", "l1", "sigmoid", "none")
    },
    "criss_cross on a video": Case(*pair("criss_cross"), {name: (1, 2, *shape[1:]) for name, shape in LINES.items()}),
    **{
        f"neighborhood {s}": Case(*pair("neighborhood", kernel_size=3, similarity=s, scale=0.7), MAPS)
        for s in ("product", "key", "absolute", "absolute_ratio", "squared_ratio", "squared")
    },
    "neighborhood, clamped": Case(*pair("neighborhood", kernel_size=3, border="clamped"), MAPS),
    "neighborhood, zeros, bias": Case(
        lambda q, k, v, b: ops.neighborhood(q, k, v, kernel_size=3, border="zeros", outside=-1.0, stride=2, bias=b),
        lambda q, k, v, b: ops.neighborhood_reference(
            q, k, v, kernel_size=3, border="zeros", outside=-1.0, stride=2, bias=b
        ),
        {"q": (1, 2, 2, 2), "k": (1, 2, 3, 4), "v": (1, 2, 3, 4), "bias": (1, 9, 1, 1)},
        shared=("bias",),
    ),
    **{
        f"sparse_attention {p}": Case(*pair("sparse_attention", pattern=p, kernel_size=3, dilation=2), MAPS)
        for p in ("local", "local_clamped", "atrous", "sparse")
    },
    "sparse_attention, sigmoid": Case(
        *pair("sparse_attention", pattern="sparse", kernel_size=3, dilation=2, normalization="sigmoid"), MAPS
    ),
    "relative_attention": Case(*pair("relative_attention", size=(2, 3)), RELATIVE, shared=("rows", "columns")),
    **{
        f"pointwise_spatial {d}": Case(*pair("pointwise_spatial", direction=d), PREDICTED, shared=("m",), spreads=True)
        for d in ("collect", "distribute")
    },
    "carafe": Case(*pair("carafe", kernel_size=3, groups=2), {"x": (4, 3, 4), "masks": (18, 6, 8)}),
    "deformable_sum": Case(
        *pair("deformable_sum"), {"weights": (2, 9, 3, 4), "x": (4, 3, 4), "offsets": (18, 3, 4)}, spreads=True
    ),
    "deformable_sum, not moved": Case(*pair("deformable_sum"), {"weights": (2, 9, 3, 4), "x": (4, 3, 4)}),
    "deformable_convolution": Case(
        *pair("deformable_convolution"),
        {"x": (4, 3, 4), "weight": (2, 4, 3, 3), "offsets": (18, 3, 4)},
        shared=("weight",),
        spreads=True,
    ),
    "bilateral": Case(*pair("bilateral", sigma_color=0.7, sigma_spatial=1.5), {"x": (2, 4, 5)}),
    "bilateral, window": Case(*pair("bilateral", kernel_size=3, sigma_color=0.7, sigma_spatial=1.5), {"x": (2, 4, 5)}),
    "nonlocal_means": Case(*pair("nonlocal_means", patch_size=3, patch_distance=2, h=0.7), {"x": (2, 4, 5)}),
    "nonlocal_means, whole image": Case(
        *pair("nonlocal_means", patch_size=3, patch_distance=None, h=0.7), {"x": (2, 4, 5)}
    ),
    "affine_sample": Case(*pair("affine_sample"), {"x": (2, 4, 5), "theta": (2, 3)}, spread=0.6),
    "glimpse_sensor": Case(
        *pair("glimpse_sensor", kernel_size=3, scales=2),
        {"x": (2, 6, 7), "location": (2,)},
        differentiable=("x",),
        spread=0.4,
    ),
    "adaptive_average": Case(*pair("adaptive_average", bins=(2, 3)), {"x": (2, 5, 7)}, spreads=True),
}

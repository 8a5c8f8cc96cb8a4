"""Sparse patterns of attention on maps: loops over the definition."""

from functools import partial

from torch import Tensor

from lookfar.ops import sparse_attention
from translations import Built, Case, translates


def pattern(case: Case, name: str) -> Built:
    a = case.args
    scale = a.get("scale", "d**-0.5")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sparse_attention(
            q,
            k,
            v,
            pattern=name,  # type: ignore[arg-type]
            kernel_size=a.get("kernel_size", 1),
            dilation=a.get("dilation", 1),
            scale=q.shape[2] ** -0.5 if isinstance(scale, str) else scale,
        )

    return Built(attend)


for name in ("local", "local_clamped", "atrous", "sparse"):
    translates(name)(partial(pattern, name=name))

"""Work that no kernel of torch stands for: functions of :mod:`lookfar.ops` that multiply and add element by element.

Windows and moved samples are loops over cells on views of the maps; to torch's counter they are element-wise work. Each
of these functions has its closed form here. Every cell of a window counts, also one off the map whose product is left
out: torch's counter and the field's papers count a padded convolution's kernel in the same way.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from lookfar.ops import _window, deformable
from lookfar.ops._window import Window

CORNERS = 4  # of a bilinear reading, a multiply-add each


@contextmanager
def reported(add: Callable[[int], None]) -> Iterator[None]:
    """While open, every call of a function below adds its FLOPs; one that is called by another adds nothing."""
    inside = False

    def wrapped(function: Callable[..., Any], work: Callable[..., int]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any) -> Any:
            nonlocal inside
            if inside:
                return function(*args)
            inside = True
            try:
                out = function(*args)
            finally:
                inside = False
            add(2 * work(out, *args))
            return out

        return call

    with ExitStack() as stack:
        for owner, name, work in WORK:
            before = vars(owner)[name]  # a static method's own object, to be put back as it was
            call = wrapped(getattr(owner, name), work)
            setattr(owner, name, staticmethod(call) if isinstance(before, staticmethod) else call)
            stack.callback(setattr, owner, name, before)
        yield


def pairs(window: Window, size: tuple[int, int]) -> int:
    """Queries of a map of this size, each with all cells of its window; a clamped one is no larger than the map."""
    rows, columns = window.grid(*size)
    (kh, kw), (H, W) = window.kernel_size, size
    return rows * columns * (min(kh, H) * min(kw, W) if window.border == "clamped" else kh * kw)


# ---- multiply-adds, from what a function returned and what it was given ----------------------------------------------


def _products(_: Tensor, q: Tensor, k: Tensor, window: Window, *__: Any) -> int:
    """``(..., D, H', W'), (..., D, H, W)``; a difference of two numbers and its sum count as their product does."""
    return q.shape[:-2].numel() * pairs(window, _size(k))


def _sums(_: Tensor, __: Tensor, v: Tensor, window: Window) -> int:
    """``(..., k^2, H', W'), (..., E, H, W)``"""
    return v.shape[:-2].numel() * pairs(window, _size(v))


def _spread(y: Tensor, __: Tensor, ___: Tensor, window: Window, *____: Any) -> int:
    """``(..., k^2, H', W'), (..., E, H', W') -> (..., E, H, W)``"""
    return y.shape[:-2].numel() * pairs(window, _size(y))


def _compared_backward(grads: tuple[Tensor | None, ...], ctx: Any, *_: Any) -> int:
    """Gradients of queries and of keys."""
    gq, gk = grads[:2]
    known = gk if gk is not None else gq
    return 0 if known is None else 2 * known.shape[:-2].numel() * pairs(ctx.window, _size(known))


def _samples(_: Tensor, w: Tensor, x: Tensor, *__: Any) -> int:
    """``(k^2, n, G), (n, C)``: every sample of every position is read and weighted in one."""
    return CORNERS * w.shape[0] * x.numel()


def _samples_backward(grads: tuple[Any, ...], *_: Any) -> int:
    gw, gx = grads[:2]  # what is read meets the gradient, and the gradient is given back
    return 0 if gw is None or gx is None else 2 * CORNERS * gw.shape[0] * gx.numel()


def _convolved(y: Tensor, _: Tensor, weight: Tensor, *__: Any) -> int:
    """``(n, C), (k^2, C, O) -> (n, O)``: its matrix products are counted as such, this is the reading."""
    return CORNERS * weight.shape[0] * y.numel()


def _convolved_backward(grads: tuple[Any, ...], *_: Any) -> int:
    gx, gw = grads[:2]
    return 0 if gw is None or gx is None else 2 * CORNERS * gw.shape[0] * len(gx) * gw.shape[2]


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _with_ctx(work: Callable[..., int]) -> Callable[..., int]:
    return lambda out, _, *args: work(out, *args)


WORK: tuple[tuple[Any, str, Callable[..., int]], ...] = (
    (_window, "_products", _products),
    (_window, "_shifted_similarity", _products),
    (_window._Compared, "forward", _with_ctx(_products)),
    (_window._Compared, "backward", _compared_backward),
    (_window, "_sums", _sums),
    (_window, "_shifted_sum", _sums),
    (_window, "_spread", _spread),
    (deformable, "_sum", _samples),
    (deformable._Sum, "forward", _with_ctx(_samples)),
    (deformable._Sum, "backward", _samples_backward),
    (deformable, "_convolution", _convolved),
    (deformable._Convolution, "forward", _with_ctx(_convolved)),
    (deformable._Convolution, "backward", _convolved_backward),
)

"""Windows of k x k cells and the three passes over them, each a loop over cells on shifted views of the maps.

Products of pairs, weighted sums and transposed weighted sums are each other's gradients, so that derivatives of every
order hold N (C + h k^2) numbers and never the N k^2 C of unfolded maps.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar.ops._autograd import for_graphs, gradients, has_tangent, needs_graph
from lookfar.ops._checked import check, choice, odd
from lookfar.ops._loops import of_function, trains_compiled

Border = Literal["mask", "zeros", "clamped"]
Similarity = Literal["product", "key", "absolute", "absolute_ratio", "squared_ratio", "squared"]
Pair = tuple[int, int]

SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": lambda q, k: q * k,
    "key": lambda q, k: k + 0 * q,  # the query stays in the graph
    "absolute": lambda q, k: -(q - k).abs(),
    "absolute_ratio": lambda q, k: -(q - k).abs() / (q.abs() + k.abs() + 1),
    "squared_ratio": lambda q, k: -(q - k).square() / ((q * k).abs() + 1),
    "squared": lambda q, k: -(q - k).square(),
}


class Window(NamedTuple):
    """Which k x k cells a query sees: cell (a, b) of the query (i, j) lies at (i s + l (a - r), j s + l (b - r))."""

    kernel_size: Pair
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    border: Border = "mask"

    @property
    def cells(self) -> int:
        """Cells of a window, row by row."""
        return self.kernel_size[0] * self.kernel_size[1]

    def grid(self, H: int, W: int) -> Pair:
        """Rows and columns of queries on a map of H x W keys."""
        return -(-H // self.stride[0]), -(-W // self.stride[1])

    def lines(self, axis: int, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row (axis 0) or column of every cell for every query, ``(k, n')``, and whether it is on the map of n."""
        k, s, l = self.kernel_size[axis], self.stride[axis], self.dilation[axis]
        start = s * torch.arange((n + s - 1) // s, device=device) - l * (k // 2)
        if self.border == "clamped":
            start = start.clamp(max=n - k).clamp(min=0)
        at = start + l * torch.arange(k, device=device)[:, None]
        return at.clamp(0, n - 1), (at >= 0) & (at < n)

    def inside(self, H: int, W: int, device: torch.device) -> Tensor:
        """``(k^2, H', W')``: whether the cell is on the map."""
        rows, columns = self.lines(0, H, device)[1], self.lines(1, W, device)[1]
        return (rows[:, None, :, None] & columns[:, None, :]).flatten(0, 1)

    def views(self, H: int, W: int) -> Iterator[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
        """``(cell, queries, keys)``: rectangles in which the cell lies on the map.

        Keys have the queries' extent or, where a clamped window stops at the border, length 1 for all of them.
        """
        (kh, kw), (h, w) = self.kernel_size, self.grid(H, W)
        columns = [list(self._pieces(1, b, W, w)) for b in range(kw)]
        for a in range(kh):
            for query_rows, key_rows in self._pieces(0, a, H, h):
                for b in range(kw):
                    for query_columns, key_columns in columns[b]:
                        yield a * kw + b, (query_rows, query_columns), (key_rows, key_columns)

    def _pieces(self, axis: int, cell: int, n: int, queries: int) -> Iterator[tuple[slice, slice]]:
        k, s, l = self.kernel_size[axis], self.stride[axis], self.dilation[axis]
        if self.border == "clamped":
            if n <= k:
                pieces = [(0, n, cell)] if cell < n else []
            else:
                pieces = [(0, k // 2, cell), (n - k + k // 2 + 1, n, n - k + cell)]
                yield slice(k // 2, n - k + k // 2 + 1), slice(cell, cell + n - k + 1)
            for start, stop, at in pieces:
                if start < stop:
                    yield slice(start, stop), slice(at, at + 1)
            return
        offset = l * (cell - k // 2)
        start, stop = max(0, -(offset // s)), min(queries, (n - 1 - offset) // s + 1)
        if start < stop:
            yield slice(start, stop), slice(start * s + offset, (stop - 1) * s + offset + 1, s)


_PAIR = int | tuple[int, int]  # by name: torch 2.8 cannot compile a union that is written where it is used


def window_of(kernel_size: int | Pair, stride: int | Pair, dilation: int | Pair, border: Border) -> Window:
    """The window that these options describe; they are checked here."""
    odd("kernel_size", kernel_size)
    check("stride", stride, _PAIR)
    check("dilation", dilation, _PAIR)
    choice("border", border, get_args(Border))
    kernel, step, spacing = ((n, n) if isinstance(n, int) else (n[0], n[1]) for n in (kernel_size, stride, dilation))
    if border == "clamped" and (step, spacing) != ((1, 1), (1, 1)):
        raise ValueError(f"clamped windows have stride 1 and dilation 1, got {stride=}, {dilation=}")
    return Window(kernel, step, spacing, border)


def size_of(x: Tensor) -> Pair:
    return x.shape[-2], x.shape[-1]


def _products(a: Tensor, b: Tensor, window: Window) -> Tensor:
    """``(..., D, H', W'), (..., D, H, W) -> (..., k^2, H', W')``: sum_c a[c, i] b[c, cell of i]; 0 off the map."""
    y = a.new_zeros((*a.shape[:-3], window.cells, *a.shape[-2:]))
    for cell, queries, keys in window.views(*size_of(b)):
        y[(..., cell, *queries)] = (a[(..., *queries)] * b[(..., *keys)]).sum(-3)
    return y


def _sums(w: Tensor, b: Tensor, window: Window) -> Tensor:
    """``(..., k^2, H', W'), (..., E, H, W) -> (..., E, H', W')``: sum_cells w[cell, i] b[c, cell of i]."""
    y = b.new_zeros((*b.shape[:-2], *w.shape[-2:]))
    for cell, queries, keys in window.views(*size_of(b)):
        y[(..., *queries)].addcmul_(w[(..., slice(cell, cell + 1), *queries)], b[(..., *keys)])
    return y


def _spread(w: Tensor, a: Tensor, window: Window, size: Pair) -> Tensor:
    """``(..., k^2, H', W'), (..., E, H', W') -> (..., E, H, W)``: every query adds to the cells that it sees."""
    y = a.new_zeros((*a.shape[:-2], *size))
    adds = torch.broadcast_shapes(w.shape[:-3], a.shape[:-3]) == a.shape[:-3]
    for cell, queries, keys in window.views(*size):
        weights, given, target = w[(..., slice(cell, cell + 1), *queries)], a[(..., *queries)], y[(..., *keys)]
        if adds and given.shape == target.shape:
            target.addcmul_(weights, given)
        else:
            target.add_((weights * given).sum_to_size(target.shape))
    return y


class _Products(torch.autograd.Function):
    """Each of these three functions is linear in both tensors, and its gradients are the other two."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.window = window
        return _products(a, b, window)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        a, b = ctx.saved_tensors
        ga = weighted_sum(grads[0], b, ctx.window) if ctx.needs_input_grad[0] else None
        gb = _given(grads[0], a, ctx.window, size_of(b)) if ctx.needs_input_grad[1] else None
        return ga, gb, None


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, b: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(w, b)
        ctx.window = window
        return _sums(w, b, window)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        w, b = ctx.saved_tensors
        gw = _met(grads[0], b, ctx.window) if ctx.needs_input_grad[0] else None
        gb = _given(w, grads[0], ctx.window, size_of(b)) if ctx.needs_input_grad[1] else None
        return gw, gb, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, a: Tensor, window: Window, size: Pair) -> Tensor:
        ctx.save_for_backward(w, a)
        ctx.window = window
        return _spread(w, a, window, size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        w, a = ctx.saved_tensors
        gw = _met(a, grads[0], ctx.window) if ctx.needs_input_grad[0] else None
        ga = weighted_sum(w, grads[0], ctx.window) if ctx.needs_input_grad[1] else None
        return gw, ga, None, None


class _Compared(torch.autograd.Function):
    """Similarities that are not products: the gradient is computed cell by cell from the two maps."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, window: Window, similarity: str) -> Tensor:
        ctx.save_for_backward(q, k)
        ctx.window, ctx.similarity = window, similarity
        f = SIMILARITIES[similarity]
        y = q.new_zeros((*q.shape[:-3], window.cells, *q.shape[-2:]))
        for cell, queries, keys in window.views(*size_of(k)):
            y[(..., cell, *queries)] = f(q[(..., *queries)], k[(..., *keys)]).sum(-3)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k = ctx.saved_tensors
        window, f = ctx.window, SIMILARITIES[ctx.similarity]
        if needs_graph():
            g = grads[0] * window.inside(*size_of(k), k.device)  # cells off the map have no gradient
            found = gradients(lambda q, k: _shifted_similarity(q, k, window, f), (q, k), ctx.needs_input_grad[:2], g)
            return *found, None, None
        gq, gk = torch.zeros_like(q), torch.zeros_like(k)
        for cell, queries, keys in window.views(*size_of(k)):
            with torch.enable_grad():
                pair = [q[(..., *queries)].detach().requires_grad_(), k[(..., *keys)].detach().requires_grad_()]
                s = f(*pair).sum(-3)
            dq, dk = torch.autograd.grad(s, pair, grads[0][(..., cell, *queries)])
            gq[(..., *queries)].add_(dq)
            gk[(..., *keys)].add_(dk)
        return gq, gk, None, None


def _shifted(x: Tensor, window: Window) -> Iterator[Tensor]:
    """The map as each cell sees it, ``(..., H', W')``, without reading its size: for graphs with dynamic sizes."""
    (kh, kw), (sh, sw), (lh, lw), border = window
    H, W = x.shape[-2:]
    if border == "clamped":
        rows, columns = window.lines(0, H, x.device)[0], window.lines(1, W, x.device)[0]
        for a in range(kh):
            row = x.index_select(-2, rows[a])
            yield from (row.index_select(-1, columns[b]) for b in range(kw))
        return
    x = F.pad(x, (lw * (kw // 2),) * 2 + (lh * (kh // 2),) * 2)
    for a in range(kh):
        row = x[..., lh * a : lh * a + H : sh, :]
        yield from (row[..., lw * b : lw * b + W : sw] for b in range(kw))


def _shifted_similarity(
    q: Tensor, k: Tensor, window: Window, f: Callable[[Tensor, Tensor], Tensor] = torch.mul
) -> Tensor:
    return torch.stack([f(q, seen).sum(-3) for seen in _shifted(k, window)], -3)


def _shifted_sum(w: Tensor, v: Tensor, window: Window) -> Tensor:
    parts = (w[..., cell : cell + 1, :, :] * seen for cell, seen in enumerate(_shifted(v, window)))
    first = next(parts)
    return sum(parts, first)


def _met_plainly(a: Tensor, b: Tensor, window: Window) -> Tensor:
    return torch.where(window.inside(*size_of(b), b.device), _shifted_similarity(a, b, window), 0)


def similarities(q: Tensor, k: Tensor, window: Window, similarity: Similarity = "product") -> Tensor:
    """Similarities of every query with the cells of its window, summed over channels; arbitrary for cells off the map.

    Shape: ``(..., D, H', W'), (..., D, H, W) -> (..., k^2, H', W')``
    """
    if similarity == "product" and trains_compiled(q, k):
        return _PRODUCTS((q, k), *_numbers(window))
    if for_graphs() or has_tangent(q, k):
        return _shifted_similarity(q, k, window, SIMILARITIES[similarity])
    # q and k may be the same tensor, which an autograd function must not be given twice
    if similarity == "product":
        return _Products.apply(q.view_as(q), k.view_as(k), window)  # type: ignore[return-value]
    return _Compared.apply(q.view_as(q), k.view_as(k), window, similarity)  # type: ignore[return-value]


def weighted_sum(w: Tensor, v: Tensor, window: Window) -> Tensor:
    """Sum of the values in every query's window, with one weight per cell; cells off the map add nothing.

    Shape: ``(..., k^2, H', W'), (..., E, H, W) -> (..., E, H', W')``
    """
    if trains_compiled(w, v):
        return _SUMS((w, v), *_numbers(window))
    if for_graphs() or has_tangent(w, v):
        return _shifted_sum(w, v, window)
    return _Sums.apply(w, v, window)  # type: ignore[return-value]


def _numbers(window: Window) -> tuple[list[int], list[str]]:
    """A window as an operation takes it."""
    (kh, kw), (sh, sw), (lh, lw), border = window
    return [kh, kw, sh, sw, lh, lw], [border]


def _window(sizes: Sequence[int], words: Sequence[Any]) -> Window:
    kh, kw, sh, sw, lh, lw = sizes
    return Window((kh, kw), (sh, sw), (lh, lw), *words)


_PRODUCTS = of_function(
    "window_products",
    _Products,
    _met_plainly,
    lambda given, sizes: (*given[0].shape[:-3], sizes[0] * sizes[1], *given[0].shape[-2:]),
    window=_window,
)
_SUMS = of_function(
    "window_sums",
    _Sums,
    _shifted_sum,
    lambda given, _: (*given[1].shape[:-2], *given[0].shape[-2:]),
    window=_window,
)


def _met(a: Tensor, b: Tensor, window: Window) -> Tensor:
    """:func:`_products`, differentiable."""
    if for_graphs() or has_tangent(a, b):
        return _met_plainly(a, b, window)
    return _Products.apply(a, b, window)  # type: ignore[return-value]


def _given(w: Tensor, a: Tensor, window: Window, size: Pair) -> Tensor:
    """:func:`_spread`, differentiable."""
    if not (for_graphs() or has_tangent(w, a)):
        return _Spread.apply(w, a, window, size)  # type: ignore[return-value]
    H, W = size
    rows, columns = window.lines(0, H, a.device)[0], window.lines(1, W, a.device)[0]
    keys = (W * rows[:, None, :, None] + columns[:, None, :]).flatten(0, 1).flatten(1)  # (k^2, H' W')
    inside = window.inside(H, W, a.device)
    y = a.new_zeros((*a.shape[:-2], H * W))
    for cell in range(window.cells):
        given = w[..., cell : cell + 1, :, :] * a * inside[cell]
        y = y.index_add(-1, keys[cell], given.flatten(-2))
    return y.unflatten(-1, size)

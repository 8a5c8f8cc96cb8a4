"""Attention of every position to the k x k window around it: y_i = sum_{j in window(i)} w_ij v_j.

The definition unfolds the maps to N k^2 C numbers. Here every pass is a loop over the k^2 cells of the window on
shifted views, and the three of them (products of pairs, weighted sums, weighted sums the other way round) are each
other's gradients: forward, backward and every further derivative hold N (C + h k^2) numbers.

Traps: three borders are three functions, equal only inside the map. With ``mask`` cells outside do not exist; with
``zeros`` they take their share of the weights and give nothing; with ``clamped`` the window is pushed inward, always
has k x k cells, and the query sits off its centre there.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lookfar.ops._precision import widened, without_autocast

Border = Literal["mask", "zeros", "clamped"]
Similarity = Literal["product", "key", "absolute", "absolute_ratio", "squared_ratio", "squared"]
Normalization = Literal["softmax", "l1", "sigmoid", "none"]
Pair = tuple[int, int]

_SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
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

        Keys have the queries' extent or, where a clamped window rests at the border, length 1 for all of them.
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


def _size(x: Tensor) -> Pair:
    return x.shape[-2], x.shape[-1]


def _products(a: Tensor, b: Tensor, window: Window) -> Tensor:
    """``(..., D, H', W'), (..., D, H, W) -> (..., k^2, H', W')``: sum_c a[c, i] b[c, cell of i]; 0 off the map."""
    y = a.new_zeros((*a.shape[:-3], window.cells, *a.shape[-2:]))
    for cell, queries, keys in window.views(*_size(b)):
        y[(..., cell, *queries)] = (a[(..., *queries)] * b[(..., *keys)]).sum(-3)
    return y


def _sums(w: Tensor, b: Tensor, window: Window) -> Tensor:
    """``(..., k^2, H', W'), (..., E, H, W) -> (..., E, H', W')``: sum_cells w[cell, i] b[c, cell of i]."""
    y = b.new_zeros((*b.shape[:-2], *w.shape[-2:]))
    for cell, queries, keys in window.views(*_size(b)):
        y[(..., *queries)].addcmul_(w[(..., slice(cell, cell + 1), *queries)], b[(..., *keys)])
    return y


def _spread(w: Tensor, a: Tensor, window: Window, size: Pair) -> Tensor:
    """``(..., k^2, H', W'), (..., E, H', W') -> (..., E, H, W)``: every query gives to the cells that it sees."""
    y = a.new_zeros((*a.shape[:-2], *size))
    for cell, queries, keys in window.views(*size):
        given = w[(..., slice(cell, cell + 1), *queries)] * a[(..., *queries)]
        target = y[(..., *keys)]
        target.add_(given if given.shape == target.shape else given.sum_to_size(target.shape))
    return y


class _Products(torch.autograd.Function):
    """Each of these three is linear in both tensors, and its gradients are the other two."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.window = window
        return _products(a, b, window)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        a, b = ctx.saved_tensors
        ga = _Sums.apply(grads[0], b, ctx.window) if ctx.needs_input_grad[0] else None
        gb = _Spread.apply(grads[0], a, ctx.window, _size(b)) if ctx.needs_input_grad[1] else None
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
        gw = _Products.apply(grads[0], b, ctx.window) if ctx.needs_input_grad[0] else None
        gb = _Spread.apply(w, grads[0], ctx.window, _size(b)) if ctx.needs_input_grad[1] else None
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
        gw = _Products.apply(a, grads[0], ctx.window) if ctx.needs_input_grad[0] else None
        ga = _Sums.apply(w, grads[0], ctx.window) if ctx.needs_input_grad[1] else None
        return gw, ga, None, None


class _Compared(torch.autograd.Function):
    """Similarities that are no products: the gradient is computed cell by cell from the two maps."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, window: Window, similarity: str) -> Tensor:
        ctx.save_for_backward(q, k)
        ctx.window, ctx.similarity = window, similarity
        f = _SIMILARITIES[similarity]
        y = q.new_zeros((*q.shape[:-3], window.cells, *q.shape[-2:]))
        for cell, queries, keys in window.views(*_size(k)):
            y[(..., cell, *queries)] = f(q[(..., *queries)], k[(..., *keys)]).sum(-3)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k = ctx.saved_tensors
        window, f = ctx.window, _SIMILARITIES[ctx.similarity]
        if torch.is_grad_enabled():  # create_graph=True: the gradient itself will be differentiated
            fresh = [t.view_as(t) for t in (q, k)]
            # what is off the map had no gradient
            g = grads[0] * window.inside(*_size(k), k.device)
            found = torch.autograd.grad(_shifted_similarity(*fresh, window, f), fresh, g, create_graph=True)
            return *found, None, None
        gq, gk = torch.zeros_like(q), torch.zeros_like(k)
        for cell, queries, keys in window.views(*_size(k)):
            with torch.enable_grad():
                pair = [q[(..., *queries)].detach().requires_grad_(), k[(..., *keys)].detach().requires_grad_()]
                s = f(*pair).sum(-3)
            dq, dk = torch.autograd.grad(s, pair, grads[0][(..., cell, *queries)])
            gq[(..., *queries)].add_(dq)
            gk[(..., *keys)].add_(dk)
        return gq, gk, None, None


def _shifted(x: Tensor, window: Window) -> Iterator[Tensor]:
    """The map as each cell sees it, ``(..., H', W')``, without asking for its size: for graphs with free axes."""
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


def _for_graphs() -> bool:
    """Whether sizes may be free, or a Function of this form be refused."""
    return (
        torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()  # type: ignore[attr-defined]
    )


def similarities(q: Tensor, k: Tensor, window: Window, similarity: Similarity = "product") -> Tensor:
    """Of every query with the cells of its window, summed over channels; cells off the map hold nothing of meaning.

    Shape: ``(..., D, H', W'), (..., D, H, W) -> (..., k^2, H', W')``
    """
    # q and k may be one tensor, which an autograd function must not be given twice
    if _for_graphs():
        return _shifted_similarity(q, k, window, _SIMILARITIES[similarity])
    if similarity == "product":
        return _Products.apply(q.view_as(q), k.view_as(k), window)  # type: ignore[return-value]
    return _Compared.apply(q.view_as(q), k.view_as(k), window, similarity)  # type: ignore[return-value]


def weighted_sum(w: Tensor, v: Tensor, window: Window) -> Tensor:
    """Of the values in every query's window, with a weight a cell; cells off the map add nothing.

    Shape: ``(..., k^2, H', W'), (..., E, H, W) -> (..., E, H', W')``
    """
    if _for_graphs():
        return _shifted_sum(w, v, window)
    return _Sums.apply(w, v, window)  # type: ignore[return-value]


def relative_logits(q: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Products of queries with embeddings of their cells' offsets, the first half of the channels with the row's.

    2 k products a query, added up for k^2 cells.

    Shape: ``(B, h, D, H, W), (h or 1, D/2, k), (h or 1, D/2, k) -> (B, h, k^2, H, W)``
    """
    with without_autocast(q):
        first, second = widened(q).tensor_split([rows.shape[1]], 2)
        heads = (q.shape[1], -1, -1)
        by_row = torch.einsum("bhdyx,hdk->bhkyx", first, widened(rows).expand(heads))
        by_column = torch.einsum("bhdyx,hdk->bhkyx", second, widened(columns).expand(heads))
        return (by_row[:, :, :, None] + by_column[:, :, None]).flatten(2, 3)


def neighborhood_weights(
    q: Tensor,
    k: Tensor,
    *,
    kernel_size: int | Pair,
    stride: int | Pair = 1,
    dilation: int | Pair = 1,
    border: Border = "mask",
    outside: float = 0.0,
    scale: float = 1.0,
    bias: Tensor | None = None,
    similarity: Similarity = "product",
    normalization: Normalization = "softmax",
) -> Tensor:
    """Weights of the cells, ``(B, h, k^2, H', W')``; arguments as in :func:`neighborhood`."""
    window = _window(kernel_size, stride, dilation, border)
    _check(q, k, window, similarity, normalization)
    with without_autocast(q):
        s = scale * similarities(widened(q), widened(k), window, similarity)
        return _normalise(s, window.inside(*_size(k), k.device), bias, border, outside, normalization)


def neighborhood(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    kernel_size: int | Pair,
    stride: int | Pair = 1,
    dilation: int | Pair = 1,
    border: Border = "mask",
    outside: float = 0.0,
    scale: float = 1.0,
    bias: Tensor | None = None,
    similarity: Similarity = "product",
    normalization: Normalization = "softmax",
) -> Tensor:
    """Every query's weighted sum of the values in its window: :func:`neighborhood_reference` in N (C + h k^2) memory.

    Logits, softmax and sums are float32 where the inputs are float16 or bfloat16.

    Args:
        q: Queries ``(B, h, D, H', W')``, at every ``stride``-th position of the keys: H' = ceil(H / stride).
        k: Keys ``(B, h, D, H, W)``.
        v: Values ``(B, h, E, H, W)``.
        kernel_size: Odd extent of the window; it may exceed the map.
        stride: Step between queries on the keys' map.
        dilation: Step between the cells of a window.
        border: What cells outside the map are: ``mask`` absent; ``zeros`` there, with similarity ``outside`` and value
            0; ``clamped`` never, the window is pushed inward (stride and dilation 1).
        outside: Similarity of a cell outside the map with ``border="zeros"``; neither scaled nor exempt from ``bias``.
        scale: Factor on the similarities.
        bias: Added to the scaled similarities, broadcast to ``(B, h, k^2, H', W')``, cells row by row; -inf takes a
            cell out of a softmax.
        similarity: Summed over the D channels: ``product`` q k, ``key`` k, ``absolute`` -|q - k|, ``absolute_ratio``
            -|q - k| / (|q| + |k| + 1), ``squared_ratio`` -(q - k)^2 / (|q k| + 1), ``squared`` -(q - k)^2.
        normalization: ``softmax`` over the cells, ``l1`` s / sum |s|, and ``sigmoid`` and ``none`` divided by the
            number of cells that exist.

    Shape: ``(B, h, E, H', W')``

    Raises:
        ValueError: Shapes that do not fit, an even kernel, an unknown choice.
    """
    if v.dim() != 5 or v.shape[:2] != k.shape[:2] or v.shape[-2:] != k.shape[-2:]:
        raise ValueError(f"want k (B, h, D, H, W) and v (B, h, E, H, W); got {k.shape=}, {v.shape=}")
    window = _window(kernel_size, stride, dilation, border)
    weights = neighborhood_weights(
        q, k, kernel_size=kernel_size, stride=stride, dilation=dilation, border=border, outside=outside, scale=scale,
        bias=bias, similarity=similarity, normalization=normalization,
    )  # fmt: skip
    with without_autocast(q):
        return weighted_sum(weights, widened(v), window).to(v.dtype)


def neighborhood_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    kernel_size: int | Pair,
    stride: int | Pair = 1,
    dilation: int | Pair = 1,
    border: Border = "mask",
    outside: float = 0.0,
    scale: float = 1.0,
    bias: Tensor | None = None,
    similarity: Similarity = "product",
    normalization: Normalization = "softmax",
) -> Tensor:
    """The definition: keys and values unfolded to ``(B, h, D, k^2, H', W')``, one window a query."""
    window = _window(kernel_size, stride, dilation, border)
    _check(q, k, window, similarity, normalization)
    rows, columns = (window.lines(axis, k.shape[axis - 2], k.device)[0] for axis in (0, 1))
    inside = window.inside(*_size(k), k.device)
    with without_autocast(q):

        def unfolded(x: Tensor) -> Tensor:
            seen = widened(x)[..., rows[:, None, :, None], columns[None, :, None, :]]  # (B, h, D, k, k, H', W')
            return seen.flatten(3, 4)

        s = scale * _SIMILARITIES[similarity](widened(q)[:, :, :, None], unfolded(k)).sum(2)
        weights = _normalise(s, inside, bias, border, outside, normalization) * inside
        return (weights[:, :, None] * unfolded(v)).sum(3).to(v.dtype)


def neighborhood_rows(
    weights: Tensor,
    size: Pair,
    *,
    kernel_size: int | Pair,
    stride: int | Pair = 1,
    dilation: int | Pair = 1,
    border: Border = "mask",
    queries: Tensor | None = None,
) -> Tensor:
    """Weights of cells as rows over all keys, exactly zero off the window.

    Args:
        weights: ``(B, h, k^2, H', W')``, of :func:`neighborhood_weights`.
        size: H and W of the keys.
        kernel_size: As there, like ``stride``, ``dilation`` and ``border``.
        stride: As there.
        dilation: As there.
        border: As there.
        queries: Flat positions ``(Q,)`` on the queries' grid; all when None.

    Shape: ``(B, h, Q, N)``
    """
    window = _window(kernel_size, stride, dilation, border)
    weights = weights.flatten(3)
    at = torch.arange(weights.shape[3], device=weights.device)
    if queries is not None:
        at, weights = at[queries], weights[..., queries]
    return rows_of_cells(weights, at, size, window)


def rows_of_cells(weights: Tensor, at: Tensor, size: Pair, window: Window) -> Tensor:
    """``(B, h, k^2, Q)`` of the windows around the flat positions ``at`` (Q,) as rows over all keys, (B, h, Q, N)."""
    H, W = size
    rows, columns = window.lines(0, H, at.device)[0], window.lines(1, W, at.device)[0]
    keys = (W * rows[:, None, :, None] + columns[:, None, :]).flatten(2).flatten(0, 1)[:, at].T  # (Q, k^2)
    found = (weights * window.inside(H, W, at.device).flatten(1)[:, at]).transpose(2, 3)
    dense = found.new_zeros((*found.shape[:3], H * W))
    return dense.scatter_add(3, keys.expand_as(found), found)


def _normalise(
    s: Tensor, inside: Tensor, bias: Tensor | None, border: Border, outside: float, normalization: Normalization
) -> Tensor:
    """Weights of scaled similarities ``(..., k^2, H', W')``; ``inside`` (k^2, H', W') are the cells on the map."""
    if border == "zeros":
        s = torch.where(inside, s, outside)
        inside = torch.ones_like(inside)
    if bias is not None:
        s = s + widened(bias)
    if normalization == "softmax":
        return (s if border == "zeros" else s.masked_fill(~inside, -torch.inf)).softmax(-3)
    s = s.sigmoid() if normalization == "sigmoid" else s
    s = torch.where(inside, s, 0)
    return F.normalize(s, p=1.0, dim=-3) if normalization == "l1" else s / inside.sum(-3)


def _window(kernel_size: int | Pair, stride: int | Pair, dilation: int | Pair, border: Border) -> Window:
    kernel, step, spacing = ((n, n) if isinstance(n, int) else tuple(n) for n in (kernel_size, stride, dilation))
    if any(n < 1 or n % 2 == 0 for n in kernel):
        raise ValueError(f"a window has a centre: kernel_size must be odd, got {kernel_size}")
    if min(*step, *spacing) < 1:
        raise ValueError(f"stride and dilation are at least 1, got {stride=}, {dilation=}")
    if border not in get_args(Border):
        raise ValueError(f"border must be one of {', '.join(get_args(Border))}, got {border!r}")
    if border == "clamped" and (step, spacing) != ((1, 1), (1, 1)):
        raise ValueError(f"clamped windows have stride 1 and dilation 1, got {stride=}, {dilation=}")
    return Window(kernel, step, spacing, border)  # type: ignore[arg-type]


def _check(q: Tensor, k: Tensor, window: Window, similarity: str, normalization: str) -> None:
    if similarity not in _SIMILARITIES:
        raise ValueError(f"similarity must be one of {', '.join(_SIMILARITIES)}, got {similarity!r}")
    if normalization not in get_args(Normalization):
        raise ValueError(f"normalization must be one of {', '.join(get_args(Normalization))}, got {normalization!r}")
    if q.dim() != 5 or k.dim() != 5 or q.shape[:3] != k.shape[:3] or q.shape[3:] != window.grid(*_size(k)):
        raise ValueError(
            f"want q (B, h, D, H', W') and k (B, h, D, H, W), H' = ceil(H / stride); got {q.shape=}, {k.shape=}"
        )

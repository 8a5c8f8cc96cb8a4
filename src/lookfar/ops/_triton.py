"""Neighbourhood attention as one kernel for each direction, in Triton; :mod:`lookfar.ops.fused_kernels` turns it on.

Numbers moved between the GPU's memory and its processor, for a head with N queries and N keys, D channels of queries
and keys, E of values; without bias, strides and borders, with every number that a block of queries reads again found
in a cache:

    forward    the loop over cells  N k^2 (4 D + 3 E)    here  N (2 D + 2 E)
    backward   the loop over cells  N k^2 (8 D + 9 E)    here  N (6 D + 5 E)

FLOPs, a multiply-add as two: 2 N k^2 (D + E) forward on both ways; backward 2 N k^2 (2 D + 2 E) by the loop and
2 N k^2 (5 D + 4 E) here, where weights are not kept but computed again. A bias adds its k^2 numbers a query, its
gradient as many. No matrix unit is used: every query has keys of its own, and reading them from caches is the limit.

Forward is a softmax over cells in one pass that keeps the logarithm of every query's sum. Backward has a kernel over
queries, for their gradient and the bias's, and one over keys that visits the queries whose windows hold the key, so
that nothing is added by two at once: results do not depend on the order of execution.

Traps: a stride leaves most of the lanes of the kernel over keys idle, and clamped windows are looked for among
(2 k - 1)^2 queries.
"""

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula
from triton import knobs

from lookfar.ops._autograd import for_graphs, gradients, has_tangent, needs_graph
from lookfar.ops.neighborhood import Cells

WIDEST = 512  # channels of a head: a block of queries lies in registers
INTERPRETED = bool(knobs.runtime.interpret)  # TRITON_INTERPRET=1 before the first import: runs on the CPU

# positions of a block, and warps that share them
_BLOCKS = [(32, 1)] if INTERPRETED else [(16, 4), (16, 8), (32, 4), (64, 4), (128, 4)]
_tuned = triton.autotune(
    [triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in _BLOCKS], key=["D", "E", "KH", "KW"]
)


@triton.jit
def _tile(p, at, real, plane, C: tl.constexpr, CHANNELS: tl.constexpr):
    """``(CHANNELS, BLOCK)`` numbers of a map at flat positions, in float32; 0 beyond C channels and where not real."""
    c = tl.arange(0, CHANNELS)[:, None]
    return tl.load(p + c * plane + at[None, :], mask=(c < C) & real[None, :], other=0.0).to(tl.float32)


@triton.jit
def _put(p, x, at, real, plane, C: tl.constexpr, CHANNELS: tl.constexpr):
    c = tl.arange(0, CHANNELS)[:, None]
    tl.store(p + c * plane + at[None, :], x.to(p.dtype.element_ty), mask=(c < C) & real[None, :])


@triton.jit
def _start(i, n, K: tl.constexpr, S: tl.constexpr, L: tl.constexpr, CLAMPED: tl.constexpr):
    """The first row or column of the window of the queries i on a map of n."""
    start = i * S - L * (K // 2)
    if CLAMPED:
        start = tl.maximum(tl.minimum(start, n - K), 0)
    return start


@triton.jit
def _seen_by(y, a, n, queries, K: tl.constexpr, S: tl.constexpr, L: tl.constexpr, CLAMPED: tl.constexpr):
    """The a-th row or column of queries that may see the keys y: which, in which of its cells, and whether it does."""
    if CLAMPED:
        i = y + a - (K - 1)
        cell = y - _start(i, n, K, S, L, CLAMPED)
        seen = (i >= 0) & (i < queries) & (cell >= 0) & (cell < K)
    else:
        scaled = y - L * (a - K // 2)
        i = scaled // S
        cell = a + 0 * y
        seen = (scaled >= 0) & (scaled % S == 0) & (i < queries)
    return i, cell, seen


@triton.jit
def _cell(q, K, bias, top, left, real, cell, H, W, scale, outside, sc, D: tl.constexpr, DD: tl.constexpr,
          KW: tl.constexpr, LH: tl.constexpr, LW: tl.constexpr, BORDER: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """One cell of all windows: its logit, -inf where there is none; its keys, their position, whether on the map."""
    y, x = top + LH * (cell // KW), left + LW * (cell % KW)
    inside = real & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    k = _tile(K, y * W + x, inside, H * W, D, DD)
    s = scale * tl.sum(q * k, 0)
    if BORDER == "zeros":
        s = tl.where(inside, s, outside)
    if BIAS:
        s += tl.load(bias + cell * sc, mask=real, other=0.0).to(tl.float32)
    if BORDER != "zeros":
        s = tl.where(inside, s, -float("inf"))
    return s, k, y * W + x, inside


@_tuned
@triton.jit
def _forward(Q, K, V, B, Y, LSE, h, H, W, rows, columns, scale, outside, sb, sh, sc, sy, sx,
             D: tl.constexpr, E: tl.constexpr, DD: tl.constexpr, EE: tl.constexpr,
             KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, LH: tl.constexpr,
             LW: tl.constexpr, BORDER: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    N, M = H * W, rows * columns
    blocks = tl.cdiv(M, BLOCK)
    plane = (tl.program_id(0) // blocks).to(tl.int64)  # one head of one image
    n = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    real = n < M
    q = _tile(Q + plane * D * M, n, real, M, D, DD)
    i, j = n // columns, n % columns
    top, left = _start(i, H, KH, SH, LH, BORDER == "clamped"), _start(j, W, KW, SW, LW, BORDER == "clamped")
    bias = B + plane // h * sb + plane % h * sh + i * sy + j * sx
    most = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    sums = tl.zeros([EE, BLOCK], tl.float32)
    for cell in range(KH * KW):
        s, _, at, inside = _cell(q, K + plane * D * N, bias, top, left, real, cell, H, W, scale, outside, sc,
                                 D, DD, KW, LH, LW, BORDER, BIAS)  # fmt: skip
        now = tl.maximum(most, s)
        base = tl.where(now == -float("inf"), 0.0, now)  # no cell seen so far: exp(-inf) and not exp(-inf + inf)
        before, w = tl.exp(most - base), tl.exp(s - base)
        sums = sums * before[None, :] + w[None, :] * _tile(V + plane * E * N, at, inside, N, E, EE)
        total = total * before + w
        most = now
    total = tl.where(real, total, 1.0)
    _put(Y + plane * E * M, sums / total[None, :], n, real, M, E, EE)
    tl.store(LSE + plane * M + n, most + tl.log(total), mask=real)


@_tuned
@triton.jit
def _over_queries(Q, K, V, B, G, LSE, DELTA, DQ, DB, h, H, W, rows, columns, scale, outside, sb, sh, sc, sy, sx,
                  D: tl.constexpr, E: tl.constexpr, DD: tl.constexpr, EE: tl.constexpr,
                  KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, LH: tl.constexpr,
                  LW: tl.constexpr, BORDER: tl.constexpr, BIAS: tl.constexpr, LEARNT: tl.constexpr,
                  BLOCK: tl.constexpr):  # fmt: skip
    """Gradients of queries and, where LEARNT, of the bias; DELTA, every query's y . dy, for the kernel over keys."""
    N, M = H * W, rows * columns
    blocks = tl.cdiv(M, BLOCK)
    plane = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    real = n < M
    q = _tile(Q + plane * D * M, n, real, M, D, DD)
    g = _tile(G + plane * E * M, n, real, M, E, EE)
    lse = tl.load(LSE + plane * M + n, mask=real, other=0.0)
    i, j = n // columns, n % columns
    top, left = _start(i, H, KH, SH, LH, BORDER == "clamped"), _start(j, W, KW, SW, LW, BORDER == "clamped")
    bias = B + plane // h * sb + plane % h * sh + i * sy + j * sx
    delta = tl.zeros([BLOCK], tl.float32)
    for cell in range(KH * KW):  # y is not kept, since its user may change it in place
        s, _, at, inside = _cell(q, K + plane * D * N, bias, top, left, real, cell, H, W, scale, outside, sc,
                                 D, DD, KW, LH, LW, BORDER, BIAS)  # fmt: skip
        delta += tl.exp(s - lse) * tl.sum(g * _tile(V + plane * E * N, at, inside, N, E, EE), 0)
    dq = tl.zeros([DD, BLOCK], tl.float32)
    for cell in range(KH * KW):
        s, k, at, inside = _cell(q, K + plane * D * N, bias, top, left, real, cell, H, W, scale, outside, sc,
                                 D, DD, KW, LH, LW, BORDER, BIAS)  # fmt: skip
        dw = tl.sum(g * _tile(V + plane * E * N, at, inside, N, E, EE), 0)
        ds = tl.exp(s - lse) * (dw - delta)
        dq += tl.where(inside, ds, 0.0)[None, :] * k
        if LEARNT:
            ds = ds if BORDER == "zeros" else tl.where(inside, ds, 0.0)
            tl.store(DB + (plane * (KH * KW) + cell) * M + n, ds, mask=real)
    _put(DQ + plane * D * M, scale * dq, n, real, M, D, DD)
    tl.store(DELTA + plane * M + n, delta, mask=real)


@_tuned
@triton.jit
def _over_keys(Q, K, V, B, G, LSE, DELTA, DK, DV, h, H, W, rows, columns, scale, outside, sb, sh, sc, sy, sx,
               D: tl.constexpr, E: tl.constexpr, DD: tl.constexpr, EE: tl.constexpr,
               KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, LH: tl.constexpr,
               LW: tl.constexpr, BORDER: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Gradients of keys and values."""
    CLAMPED: tl.constexpr = BORDER == "clamped"
    DOWN: tl.constexpr = 2 * KH - 1 if CLAMPED else KH
    ACROSS: tl.constexpr = 2 * KW - 1 if CLAMPED else KW
    N, M = H * W, rows * columns
    blocks = tl.cdiv(N, BLOCK)
    plane = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    real = n < N
    k = _tile(K + plane * D * N, n, real, N, D, DD)
    v = _tile(V + plane * E * N, n, real, N, E, EE)
    bias = B + plane // h * sb + plane % h * sh
    dk = tl.zeros([DD, BLOCK], tl.float32)
    dv = tl.zeros([EE, BLOCK], tl.float32)
    for step in range(DOWN * ACROSS):
        i, a, below = _seen_by(n // W, step // ACROSS, H, rows, KH, SH, LH, CLAMPED)
        j, b, right = _seen_by(n % W, step % ACROSS, W, columns, KW, SW, LW, CLAMPED)  # pyright: ignore[reportOperatorIssue]
        seen, at = real & below & right, i * columns + j
        q = _tile(Q + plane * D * M, at, seen, M, D, DD)
        g = _tile(G + plane * E * M, at, seen, M, E, EE)
        s = scale * tl.sum(q * k, 0)
        if BIAS:
            s += tl.load(bias + (a * KW + b) * sc + i * sy + j * sx, mask=seen, other=0.0).to(tl.float32)
        lse = tl.load(LSE + plane * M + at, mask=seen, other=0.0)
        delta = tl.load(DELTA + plane * M + at, mask=seen, other=0.0)
        w = tl.where(seen, tl.exp(s - lse), 0.0)
        dv += w[None, :] * g
        dk += tl.where(seen, w * (tl.sum(g * v, 0) - delta), 0.0)[None, :] * q
    _put(DK + plane * D * N, scale * dk, n, real, N, D, DD)
    _put(DV + plane * E * N, dv, n, real, N, E, EE)


def _launch(kernel: Any, over: Tensor, bias: Tensor | None, tensors: tuple[Tensor, ...], options: tuple[Any, ...],
            **more: bool) -> None:  # fmt: skip
    """One program for every block of positions of ``over`` in every head: q and k, v are the first ``tensors``."""
    (q, k, v), (window, border, outside, scale) = tensors[:3], options
    (B, h, D, *grid), (H, W) = q.shape, k.shape[3:]
    E, planes, positions = v.shape[2], B * h, over.shape[3] * over.shape[4]
    if planes * positions == 0:
        return
    strides = (0,) * 5 if bias is None else bias.expand(B, h, window[0] * window[1], *grid).stride()
    given = (*tensors[:3], q if bias is None else bias, *tensors[3:])
    width = triton.next_power_of_2
    with torch.cuda.device_of(q):
        kernel[lambda meta: (planes * triton.cdiv(positions, meta["BLOCK"]),)](
            *given, h, H, W, *grid, scale, outside, *strides, D=D, E=E, DD=width(D), EE=width(E),
            **dict(zip(("KH", "KW", "SH", "SW", "LH", "LW"), window)), BORDER=border, BIAS=bias is not None, **more,
        )  # fmt: skip


_OPTIONS = "int[] window, str border, float outside, float scale"


@torch.library.custom_op(
    "lookfar::neighborhood",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, Tensor? bias, {_OPTIONS}) -> (Tensor, Tensor)",
)
def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *options: Any) -> tuple[Tensor, Tensor]:
    """Output, and the logarithm of the sum of every query's exponentials."""
    y, lse = _empty_like(q, k, v, bias, *options)
    _launch(_forward, q, bias, (q.contiguous(), k.contiguous(), v.contiguous(), y, lse), options)
    return y, lse


@_attend.register_fake
def _empty_like(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *options: Any) -> tuple[Tensor, Tensor]:
    B, h, _, *grid = q.shape
    return v.new_empty((B, h, v.shape[2], *grid)), q.new_empty((B, h, *grid), dtype=torch.float32)


@torch.library.custom_op(
    "lookfar::neighborhood_backward",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor g, Tensor lse, bool learnt, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _pull(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, g: Tensor, lse: Tensor, learnt: bool, *options: Any
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v and, where ``learnt``, of the bias at its full size."""
    dq, dk, dv, db = _empty_gradients(q, k, v, bias, g, lse, learnt, *options)
    given, delta = [t.contiguous() for t in (q, k, v, g)], torch.empty_like(lse)
    _launch(_over_queries, q, bias, (*given, lse, delta, dq, db), options, LEARNT=learnt)
    _launch(_over_keys, k, bias, (*given, lse, delta, dk, dv), options)
    return dq, dk, dv, db


@_pull.register_fake
def _empty_gradients(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, g: Tensor, lse: Tensor, learnt: bool, *options: Any
) -> tuple[Tensor, ...]:
    cells = options[0][0] * options[0][1]
    full = (*q.shape[:2], cells, *q.shape[3:]) if learnt else (0,)
    return *(t.new_empty(t.shape) for t in (q, k, v)), lse.new_empty(full)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], output[1])
    ctx.options = inputs[4:]


def _backward_of(ctx: Any, g: Tensor, _: Tensor) -> tuple[Any, ...]:
    *inputs, lse = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:4]
    none = (None,) * len(ctx.options)
    if needs_graph():
        given = [t for t in inputs if t is not None]
        found = gradients(partial(_plain, ctx.options), given, wanted[: len(given)], g)
        return *found, *(None,) * (4 - len(given)), *none
    bias = inputs[3]
    *found, db = _pull(*inputs, g, lse, wanted[3], *ctx.options)
    return *found, db.sum_to_size(bias.shape).to(bias.dtype) if wanted[3] else None, *none


_attend.register_autograd(_backward_of, setup_context=_keep)


def _plain(options: tuple[Any, ...], q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    (kh, kw, sh, sw, lh, lw), border, outside, scale = options
    return Cells((kh, kw), (sh, sw), (lh, lw), border, outside, scale, bias).attend(q, k, v)


@register_flop_formula(torch.ops.lookfar.neighborhood)
def _flops(q: Any, k: Any, v: Any, bias: Any, window: list[int], *_: Any, **__: Any) -> int:
    return 2 * q[0] * q[1] * q[3] * q[4] * window[0] * window[1] * (q[2] + v[2])


@register_flop_formula(torch.ops.lookfar.neighborhood_backward)
def _flops_backward(q: Any, k: Any, v: Any, bias: Any, g: Any, lse: Any, learnt: bool, window: list[int],
                    *_: Any, **__: Any) -> int:  # fmt: skip
    return 2 * q[0] * q[1] * q[3] * q[4] * window[0] * window[1] * (5 * q[2] + 4 * v[2])


def takes(q: Tensor, k: Tensor, v: Tensor, cells: Cells) -> bool:
    """Whether the kernel computes this; the loop over cells does everything else."""
    given = [t for t in (q, k, v, cells.bias) if t is not None]
    # torch 2.8 takes what is compiled for being exported, so that the loop is compiled there
    compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return (
        (q.is_cuda or INTERPRETED)
        and cells.similarity == "product"
        and cells.normalization == "softmax"
        and all(0 < channels <= WIDEST for channels in (q.shape[2], v.shape[2]))
        and all(t.dtype in (torch.float32, torch.float16, torch.bfloat16) for t in given)
        and all(t.shape[2:].numel() < 2**31 for t in given)  # places within a head are int32
        and (compiled or not (for_graphs() or has_tangent(*given)))
    )


def attend(q: Tensor, k: Tensor, v: Tensor, cells: Cells) -> Tensor:
    """:func:`lookfar.ops.neighborhood` of what the kernel :func:`takes`."""
    size, stride, dilation, border = cells.window
    window = [*size, *stride, *dilation]
    return _attend(q, k, v, cells.bias, window, border, float(cells.outside), float(cells.scale))[0]

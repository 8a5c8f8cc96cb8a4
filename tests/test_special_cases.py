"""One operation, many names: what is an instance of y_i = 1/C_i sum_j f(x_i, x_j) g(x_j), each by equality.

A row builds both sides from one seeded input: the library's block, or the layer that people use for it, and the general
operator (or the block's neighbour in the family). Outputs and gradients agree in float64 and float32, on a map of
5 x 7 and, where the operator allows it, of one position.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from samples import assert_same, randomise
from torch import Tensor, nn

from lookfar import create_block, list_blocks, ops
from lookfar.ops import nonlocal_operation as operate
from lookfar.ops.neighborhood import neighborhood, relative_logits

B, C, D = 2, 6, 4
Map = Callable[[Tensor], Tensor]
Row = Callable[[Tensor], tuple[Map, Map]]


@dataclass(frozen=True)
class Identity:
    """A row: ``build(x)`` gives the two sides."""

    name: str
    build: Row
    needs: str = ""  # a block without which the row cannot be asked
    single: bool = True  # holds on a map of one position
    gradient: bool = True


ROWS: list[Identity] = []


def identity(name: str, **facts: Any) -> Callable[[Row], Row]:
    def record(build: Row) -> Row:
        ROWS.append(Identity(name, build, **facts))
        return build

    return record


@contextlib.contextmanager
def numbers(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# tools


def tokens(x: Tensor) -> Tensor:
    """``(B, C, H, W) -> (B, N, C)``."""
    return x.flatten(2).transpose(1, 2)


def as_map(t: Tensor, like: Tensor) -> Tensor:
    return t.transpose(1, 2).unflatten(2, like.shape[2:])


def dots(scale: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda q, k: scale * q @ k.transpose(-2, -1)


def softmax(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
    return operate(q, dots(scale), v, keys=k, log=True, mask=mask)


def places(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the positions, integers ``(N,)``."""
    H, W = x.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    return rows.flatten(), columns.flatten()


def offsets(x: Tensor) -> tuple[Tensor, Tensor]:
    """s_j - s_i by row and column, ``(N, N)``."""
    rows, columns = places(x)
    return rows - rows[:, None], columns - columns[:, None]


def near(x: Tensor, kernel_size: int) -> Tensor:
    return torch.stack([d.abs() <= kernel_size // 2 for d in offsets(x)]).all(0)


def grown(name: str, **options: Any) -> nn.Module:
    """A block with random weights."""
    return randomise(create_block(name, C, **options)).to(torch.get_default_dtype()).eval()


def projected(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(tokens(layer(x)) for layer in (block.query, block.key, block.value))  # type: ignore[return-value]


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution with zero padding: one head for each offset o, f = [s_j - s_i = o], C = 1, g = W_o x."""
    k = weight.shape[2]
    rows, columns = offsets(x)
    y = torch.zeros(())
    for a in range(k):
        for b in range(k):
            there = ((rows == a - k // 2) & (columns == b - k // 2)).to(x.dtype)
            y = y + operate(tokens(x), there, lambda t, W=weight[:, :, a, b]: t @ W.T, "none")
    return as_map(y, x)


# attention


@identity("transformer self-attention")
def _(x: Tensor) -> tuple[Map, Map]:
    mha = nn.MultiheadAttention(C, 1, batch_first=True)
    block: Any = create_block("self_attention", C, heads=1, bias=True)
    for layer, w, b in zip(
        (block.query, block.key, block.value), mha.in_proj_weight.chunk(3), mha.in_proj_bias.chunk(3)
    ):
        layer.weight.data, layer.bias.data = w.data, b.data + 0.1
    mha.in_proj_bias.data += 0.1
    block.project.load_state_dict(mha.out_proj.state_dict())
    return lambda x: block(tokens(x)), lambda x: mha(*[tokens(x)] * 3, need_weights=False)[0]


@identity("heads are a sum of operations")
def _(x: Tensor) -> tuple[Map, Map]:
    block: Any = grown("self_attention", heads=3, bias=True)

    def heads(x: Tensor) -> Tensor:
        t = tokens(x)
        q, k, v = (layer(t).chunk(3, 2) for layer in (block.query, block.key, block.value))
        ends = block.project.weight.chunk(3, 1)
        return sum(softmax(*t, (C / 3) ** -0.5) @ W.T for *t, W in zip(q, k, v, ends)) + block.project.bias

    return lambda x: block(tokens(x)), heads


@identity("gaussian mode is embedded gaussian without embeddings")
def _(x: Tensor) -> tuple[Map, Map]:
    gaussian: Any = grown("nonlocal", mode="gaussian", inner_channels=C, norm_layer=None)
    embedded: Any = grown("nonlocal", inner_channels=C, norm_layer=None, scale=False)
    for layer in (embedded.query, embedded.key):
        layer.weight.data = torch.eye(C)[:, :, None, None]
        layer.bias.data.zero_()
    for name in ("value", "project"):
        getattr(embedded, name).load_state_dict(getattr(gaussian, name).state_dict())
    return gaussian, embedded


@identity("position attention")
def _(x: Tensor) -> tuple[Map, Map]:
    danet: Any = grown("position_attention", reduction=1)
    embedded: Any = grown("nonlocal", inner_channels=C, norm_layer=None, scale=False, project_bias=False)
    for name in ("query", "key", "value"):
        getattr(embedded, name).load_state_dict(getattr(danet, name).state_dict())
    embedded.project.weight.data = (danet.gamma * torch.eye(C))[:, :, None, None].detach()
    return danet, embedded


@identity("channel attention")
def _(x: Tensor) -> tuple[Map, Map]:
    block: Any = grown("channel_attention")
    # the channels are the positions; softmax(max - E) = softmax(-E)
    return block, lambda x: x + block.gamma * operate(x.flatten(2), dots(-1.0), log=True).view_as(x)


@identity("disentangled, joint")
def _(x: Tensor) -> tuple[Map, Map]:
    block: Any = grown("nonlocal", inner_channels=D, norm_layer=None, scale=False)

    def parts(x: Tensor) -> Tensor:
        q, k, v = projected(block, x)
        mq, mk = q.mean(1, keepdim=True), k.mean(1, keepdim=True)
        pairwise, unary = dots()(q - mq, k - mk).softmax(2), dots()(mq, k).softmax(2)
        return block.finish(x, operate(q, pairwise * unary, v, keys=k)[:, None])

    return block, parts


@identity("relative positions")
def _(x: Tensor) -> tuple[Map, Map]:
    rows, columns = torch.randn(1, C // 2, 3), torch.randn(1, C // 2, 3)

    def windows(x: Tensor) -> Tensor:
        q = x[:, None]
        return neighborhood(q, q, q, kernel_size=3, bias=relative_logits(q, rows, columns))[:, 0]

    def pairs(x: Tensor) -> Tensor:
        t = tokens(x)
        y, z = (d.clamp(-1, 1) + 1 for d in offsets(x))
        r = torch.cat([rows[0][:, y], columns[0][:, z]])  # (C, N, N)
        logits = torch.einsum("bic,bijc->bij", t, t[:, None] + r.permute(1, 2, 0))
        return as_map(operate(t, logits, mask=near(x, 3), log=True), x)

    return windows, pairs


@identity("criss-cross")
def _(x: Tensor) -> tuple[Map, Map]:
    block: Any = grown("criss_cross", recurrence=1, reduction=2)

    def pairs(x: Tensor) -> Tensor:
        rows, columns = offsets(x)
        return x + block.gamma * as_map(softmax(*projected(block, x), mask=(rows == 0) | (columns == 0)), x)

    return block, pairs


def masked(block: Any, mask: Callable[[Tensor], Tensor | None]) -> Map:
    def pairs(x: Tensor) -> Tensor:
        return block.finish(x, softmax(*projected(block, x), block.scale, mask(x))[:, None])

    return pairs


@identity("local attention", needs="local_attention")
def _(x: Tensor) -> tuple[Map, Map]:
    block = grown("local_attention", kernel_size=3, zero_init=False)
    return block, masked(block, lambda x: near(x, 3))


@identity("atrous attention", needs="atrous_attention")
def _(x: Tensor) -> tuple[Map, Map]:
    block = grown("atrous_attention", dilation=2, zero_init=False)
    return block, masked(block, lambda x: torch.stack([d % 2 == 0 for d in offsets(x)]).all(0))


@identity("a window that covers the map is global", needs="local_attention")
def _(x: Tensor) -> tuple[Map, Map]:
    block = grown("local_attention", kernel_size=2 * max(x.shape[2:]) - 1, zero_init=False)
    return block, masked(block, lambda _: None)


def _cells(a: Tensor, x: Tensor, sign: int) -> Tensor:
    """a(x_i)[sign (s_j - s_i)] for all pairs, from over-complete maps ``(B, (2H-1)(2W-1), H, W)``."""
    H, W = x.shape[2:]
    rows, columns = offsets(x)
    return tokens(a).gather(2, ((sign * rows + H - 1) * (2 * W - 1) + sign * columns + W - 1).expand(B, -1, -1))


def _over_complete(x: Tensor) -> nn.Module:
    return nn.Conv2d(C, (2 * x.shape[2] - 1) * (2 * x.shape[3] - 1), 1)


@identity("point-wise spatial attention, collect")
def _(x: Tensor) -> tuple[Map, Map]:
    conv = _over_complete(x)

    def slices(x: Tensor) -> Tensor:
        H, W = x.shape[2:]
        a, y = conv(x).unflatten(1, (2 * H - 1, 2 * W - 1)), torch.zeros_like(x)
        for i in range(H):
            for j in range(W):
                mine = a[:, H - 1 - i : 2 * H - 1 - i, W - 1 - j : 2 * W - 1 - j, i, j]
                y[:, :, i, j] = (mine[:, None] * x).mean((2, 3))
        return y

    return lambda x: as_map(operate(tokens(x), _cells(conv(x), x, 1), None, "positions"), x), slices


@identity("point-wise spatial attention, distribute")
def _(x: Tensor) -> tuple[Map, Map]:
    conv = _over_complete(x)

    def slices(x: Tensor) -> Tensor:
        H, W = x.shape[2:]
        a, y = conv(x).unflatten(1, (2 * H - 1, 2 * W - 1)), torch.zeros_like(x)
        for i in range(H):
            for j in range(W):
                given = a[:, H - 1 - i : 2 * H - 1 - i, W - 1 - j : 2 * W - 1 - j, i, j]
                y = y + given[:, None] * x[:, :, i : i + 1, j : j + 1] / (H * W)
        return y

    def pairs(x: Tensor) -> Tensor:
        return as_map(operate(tokens(x), _cells(conv(x), x, 1).transpose(1, 2), None, "positions"), x)

    return pairs, slices


@identity("external attention, softmax over slots")
def _(x: Tensor) -> tuple[Map, Map]:
    keys, values = nn.Linear(C, 3, bias=False), nn.Linear(3, C, bias=False)

    def slots(x: Tensor) -> Tensor:
        return ops.external_attention(tokens(x)[:, None], keys.weight, values.weight.T, normalization="softmax")[:, 0]

    return slots, lambda x: softmax(tokens(x), keys.weight, values.weight.T)


@identity("external attention, double normalisation")
def _(x: Tensor) -> tuple[Map, Map]:
    keys, values = torch.randn(3, C), torch.randn(3, C)

    def popularity(x: Tensor) -> Tensor:
        f = lambda q, k: dots()(q, k) - dots()(q, k).logsumexp(1, keepdim=True)  # noqa: E731
        return operate(tokens(x), f, values, lambda f: 1e-9 + f.sum(2, True), keys=keys, log=True)

    return lambda x: ops.external_attention(tokens(x)[:, None], keys, values)[:, 0], popularity


@identity("linear attention")
def _(x: Tensor) -> tuple[Map, Map]:
    positive = lambda t: F.elu(t) + 1  # noqa: E731

    def associated(x: Tensor) -> Tensor:
        e, t = positive(tokens(x)), tokens(x)
        return e @ (e.transpose(1, 2) @ t) / (e @ e.sum(1)[..., None])

    return associated, lambda x: operate(tokens(x), lambda q, k: dots()(positive(q), positive(k)))


@identity("double attention")
def _(x: Tensor) -> tuple[Map, Map]:
    block: Any = grown("double_attention", nodes=3, inner_channels=D)

    def pairs(x: Tensor) -> Tensor:
        gather, mixture = tokens(block.key(x)).softmax(1), tokens(block.query(x)).softmax(2)
        mixed = operate(mixture, dots(), tokens(block.value(x)), "none", keys=gather)
        return x + block.project(as_map(mixed, x))

    return block, pairs


def generalised(**options: Any) -> tuple[Map, Map]:
    block: Any = grown("compact_generalized_nonlocal", groups=1, inner_channels=D, **options)

    def pairs(x: Tensor) -> Tensor:
        t, p, g = (tokens(layer(x)).flatten(1)[..., None] for layer in (block.query, block.key, block.value))

        def kernel(t: Tensor, p: Tensor) -> Tensor:
            if block.mode == "dot_product":
                return dots()(t, p)
            s, total, term = 2 * block.gamma * dots()(t, p), torch.zeros(()), torch.ones(())
            for k in range(1, block.order + 2):
                total, term = total + term, term * s / k
            return np.exp(-2 * block.gamma) * total

        u = operate(t, kernel, g, "none", keys=p)  # entries (position, channel) are the tokens
        return x + block.norm(block.project(as_map(u.view(B, -1, D), x)))

    return block, pairs


@identity("compact generalized, dot product", single=False)  # GroupNorm of a few entries amplifies rounding
def _(x: Tensor) -> tuple[Map, Map]:
    return generalised()


@identity("compact generalized, Gaussian", single=False)
def _(x: Tensor) -> tuple[Map, Map]:
    return generalised(mode="gaussian", gamma=0.1)


@identity("dot product")
def _(x: Tensor) -> tuple[Map, Map]:
    block: Any = grown("nonlocal", mode="dot_product", inner_channels=D, norm_layer=None)

    def pairs(x: Tensor) -> Tensor:
        q, k, v = projected(block, x)
        return block.finish(x, operate(q, dots(), v, "positions", keys=k)[:, None])

    return block, pairs


@identity("concatenation")
def _(x: Tensor) -> tuple[Map, Map]:
    block: Any = grown("nonlocal", mode="concatenation", inner_channels=D, norm_layer=None)

    def pairs(x: Tensor) -> Tensor:
        q, k, v = projected(block, x)

        def f(q: Tensor, k: Tensor) -> Tensor:
            both = torch.cat([t.expand(B, q.shape[1], q.shape[1], D) for t in (q[:, :, None], k[:, None])], -1)
            return (both @ block.pair[0]).relu()

        return block.finish(x, operate(q, f, v, "positions", keys=k)[:, None])

    return block, pairs


@identity("EM step")
def _(x: Tensor) -> tuple[Map, Map]:
    bases = F.normalize(torch.randn(1, C, 3), dim=1)

    def step(x: Tensor) -> Tensor:
        found = ops.expectation_maximization(tokens(x)[:, None], bases, iterations=1, gradient="full")[1]
        return found[:, 0].transpose(1, 2)

    def pairs(x: Tensor) -> Tensor:
        share = lambda q, k: dots()(q, k).softmax(1)  # noqa: E731
        queries = bases.transpose(1, 2).expand(B, -1, -1)
        mu = operate(queries, share, None, lambda f: 1e-6 + f.sum(2, True), keys=tokens(x))
        return mu / (1e-6 + mu.norm(dim=2, keepdim=True))

    return step, pairs


# query-independent


@identity("global context")
def _(x: Tensor) -> tuple[Map, Map]:
    pairs: Any = grown("nonlocal", inner_channels=D, norm_layer=None, scale=False)
    context: Any = grown("global_context")
    pairs.query.weight.data.zero_()  # theta is its bias
    context.mask.weight.data = (pairs.query.bias @ pairs.key.weight[:, :, 0, 0]).detach()[None, :, None, None]
    return lambda x: pairs.attention(x) @ tokens(x)[:, None], lambda x: context.attention(x) @ context.values(x)


@identity("simplified non-local: the value before or after pooling")
def _(x: Tensor) -> tuple[Map, Map]:
    block: Any = grown("simplified_nonlocal")

    def before(x: Tensor) -> Tensor:
        logits = tokens(block.mask(x)).transpose(1, 2).expand(-1, x.shape[2] * x.shape[3], -1)
        return x + as_map(operate(tokens(x), logits, block.value, log=True), x)

    return block, before


@identity("global average")
def _(x: Tensor) -> tuple[Map, Map]:
    one = torch.ones(1, x.shape[2] * x.shape[3])
    return lambda x: operate(x.new_zeros(B, 1, C), one, None, "positions", keys=tokens(x))[:, 0], lambda x: x.mean(
        (2, 3)
    )


@identity("adaptive average pooling")
def _(x: Tensor) -> tuple[Map, Map]:
    inside = torch.zeros(6, *x.shape[2:])
    for n in range(6):
        a, b = divmod(n, 3)
        H, W = x.shape[2:]
        inside[n, a * H // 2 : -(-(a + 1) * H // 2), b * W // 3 : -(-(b + 1) * W // 3)] = 1
    bins = lambda x: operate(x.new_zeros(B, 6, C), inside.flatten(1), keys=tokens(x))  # noqa: E731
    return lambda x: F.adaptive_avg_pool2d(x, (2, 3)), lambda x: bins(x).transpose(1, 2).unflatten(2, (2, 3))


@identity("squeeze-excitation")
def _(x: Tensor) -> tuple[Map, Map]:
    block: Any = grown("squeeze_excitation", reduction=2)

    def gated(x: Tensor) -> Tensor:
        mean = operate(tokens(x), lambda q, k: torch.ones(B, q.shape[1], k.shape[1]))
        return x * as_map(block.expand(block.reduce(mean).relu()).sigmoid(), x)

    return block, gated


@identity("CBAM: the maximum is a limit of softmax pooling", gradient=False)
def _(x: Tensor) -> tuple[Map, Map]:
    block: Any = grown("cbam", pooling="max", spatial_gate=False, reduction=2)

    def pooled(x: Tensor) -> Tensor:
        t = x.flatten(2)[..., None]  # a channel at a time
        largest = operate(t[:, :, :1], lambda q, k: 1e5 * k.transpose(-2, -1), keys=t, log=True)[:, :, 0, 0]
        return x * block.expand(block.reduce(largest).relu()).sigmoid()[:, :, None, None]

    return block, pooled


@identity("CBAM: the spatial gate")
def _(x: Tensor) -> tuple[Map, Map]:
    block: Any = grown("cbam", reduction=2)

    def gated(x: Tensor) -> Tensor:
        pooled = torch.stack([x.mean((2, 3)), x.amax((2, 3))])
        x = x * block.expand(block.reduce(pooled).relu()).sum(0).sigmoid()[:, :, None, None]
        statistic = torch.stack([x.amax(1), x.mean(1)], 1)
        return x * block.norm(convolve(statistic, block.spatial.weight)).sigmoid()

    return block, gated


# fixed weights


@identity("1x1 convolution")
def _(x: Tensor) -> tuple[Map, Map]:
    conv = nn.Conv2d(C, D, 1)
    g = lambda t: t @ conv.weight[:, :, 0, 0].T + conv.bias  # noqa: E731
    return conv, lambda x: as_map(operate(tokens(x), torch.eye(x.shape[2] * x.shape[3]), g, "none"), x)


@identity("1x1 window")
def _(x: Tensor) -> tuple[Map, Map]:
    return lambda x: neighborhood(x[:, None], x[:, None], x[:, None], kernel_size=1)[:, 0], lambda x: x + 0


@identity("3x3 convolution is nine heads")
def _(x: Tensor) -> tuple[Map, Map]:
    conv = nn.Conv2d(C, D, 3, padding=1, bias=False)
    return conv, lambda x: convolve(x, conv.weight)


@identity("average pooling")
def _(x: Tensor) -> tuple[Map, Map]:
    pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return pool, lambda x: as_map(operate(tokens(x), near(x, 3).to(x.dtype)), x)


@identity("average pooling is a window without queries")
def _(x: Tensor) -> tuple[Map, Map]:
    zero = torch.zeros(B, 1, 1, *x.shape[2:])
    pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return pool, lambda x: neighborhood(zero, zero, x[:, None], kernel_size=3)[:, 0]


@identity("fully connected over positions")
def _(x: Tensor) -> tuple[Map, Map]:
    linear = nn.Linear(x.shape[2] * x.shape[3], x.shape[2] * x.shape[3], bias=False)
    return lambda x: linear(x.flatten(2)), lambda x: operate(tokens(x), linear.weight, None, "none").transpose(1, 2)


def graph(x: Tensor) -> Tensor:
    """A random graph with loops, symmetric."""
    N = x.shape[2] * x.shape[3]
    edges = torch.rand(N, N) < 0.2
    return (edges | edges.T | torch.eye(N, dtype=torch.bool)).to(x.dtype)


@identity("graph convolution, symmetric")
def _(x: Tensor) -> tuple[Map, Map]:
    A, W = graph(x), torch.randn(C, D)
    d = A.sum(1)

    def edges(x: Tensor) -> Tensor:
        """Messages along a list of edges, as graph libraries pass them."""
        to, source = A.nonzero().T
        message = (tokens(x) @ W)[:, source] * (d[to] * d[source]).rsqrt()[:, None]
        return torch.zeros(B, len(A), D).index_add(1, to, message)

    return edges, lambda x: operate(tokens(x), A / (d[:, None] * d).sqrt(), lambda t: t @ W, "none")


@identity("graph convolution, mean")
def _(x: Tensor) -> tuple[Map, Map]:
    A, W = graph(x), torch.randn(C, D)

    def neighbours(x: Tensor) -> Tensor:
        t = tokens(x) @ W
        return torch.stack([t[:, A[i].bool()].mean(1) for i in range(len(A))], 1)

    return neighbours, lambda x: operate(tokens(x), A, lambda t: t @ W)


@identity("graph attention")
def _(x: Tensor) -> tuple[Map, Map]:
    A, W, a = graph(x).bool(), torch.randn(C, D), torch.randn(2 * D)

    def f(q: Tensor, k: Tensor) -> Tensor:
        return F.leaky_relu((q @ W @ a[:D])[:, :, None] + (k @ W @ a[D:])[:, None], 0.2)

    def neighbours(x: Tensor) -> Tensor:
        t, found = tokens(x) @ W, []
        for i in range(len(A)):
            mine = t[:, A[i]]
            logits = F.leaky_relu(torch.cat([t[:, i : i + 1].expand_as(mine), mine], 2) @ a, 0.2)
            found.append((logits.softmax(1)[..., None] * mine).sum(1))
        return torch.stack(found, 1)

    return neighbours, lambda x: operate(tokens(x), f, lambda t: t @ W, mask=A, log=True)


@identity("bilinear sampling")
def _(x: Tensor) -> tuple[Map, Map]:
    grid = torch.rand(B, 4, 3, 2) * 2.4 - 1.2
    H, W = x.shape[2:]

    def f(q: Tensor, k: Tensor) -> Tensor:
        u, v = ((grid.flatten(1, 2) + 1) / 2 * torch.tensor([W - 1.0, H - 1.0])).unbind(-1)
        rows, columns = places(x)
        return (1 - (u[..., None] - columns).abs()).relu() * (1 - (v[..., None] - rows).abs()).relu()

    def sampled(x: Tensor) -> Tensor:
        return operate(x.new_zeros(B, 12, C), f, None, "none", keys=tokens(x)).transpose(1, 2).unflatten(2, (4, 3))

    return lambda x: F.grid_sample(x, grid, align_corners=True), sampled


# filters


def squares(a: Tensor, b: Tensor) -> Tensor:
    return (a[..., :, None, :] - b[..., None, :, :]).square().sum(-1)


@identity("bilateral filter")
def _(x: Tensor) -> tuple[Map, Map]:
    distance = sum(d.square() for d in offsets(x)) / 8

    def pairs(x: Tensor) -> Tensor:
        return as_map(operate(tokens(x), lambda q, k: -squares(q, k) / 2 - distance, log=True), x)

    return lambda x: ops.bilateral(x, sigma_color=1.0, sigma_spatial=2.0), pairs


@identity("bilateral filter in a window")
def _(x: Tensor) -> tuple[Map, Map]:
    options = {"kernel_size": 3, "sigma_color": 0.8, "sigma_spatial": 1.5}
    return lambda x: ops.bilateral(x, **options), lambda x: ops.bilateral_reference(x, **options)


@identity("cosine similarities are distances of unit vectors")
def _(x: Tensor) -> tuple[Map, Map]:
    unit = lambda x: F.normalize(tokens(x), dim=2)  # noqa: E731
    gauss = lambda q, k: -squares(q, k) / (2 * 0.7**2)  # noqa: E731
    return lambda x: operate(unit(x), dots(0.7**-2), log=True), lambda x: operate(unit(x), gauss, log=True)


@identity("Gaussian blur", gradient=False)
def _(x: Tensor) -> tuple[Map, Map]:
    ndimage = pytest.importorskip("scipy.ndimage")

    def blurred(x: Tensor) -> Tensor:
        def blur(t: Tensor) -> np.ndarray:
            return ndimage.gaussian_filter(t.double().numpy(), (0, 0, 1.3, 1.3), mode="constant", truncate=9)

        return torch.from_numpy(blur(x) / blur(torch.ones_like(x))).to(x.dtype)

    return lambda x: ops.bilateral(x, sigma_color=1e9, sigma_spatial=1.3), blurred


@identity("a narrow filter is the identity")
def _(x: Tensor) -> tuple[Map, Map]:
    return lambda x: ops.bilateral(x, sigma_color=1.0, sigma_spatial=0.1), lambda x: x + 0


@identity("non-local means", single=False)
def _(x: Tensor) -> tuple[Map, Map]:
    def pairs(x: Tensor) -> Tensor:
        u = torch.arange(3) - 1.0
        w = torch.exp(-(u[:, None] ** 2 + u**2) / (2 * 0.5**2)).flatten()
        z = F.unfold(F.pad(x, (1,) * 4, mode="reflect"), 3).transpose(1, 2)
        z = z * (w / w.sum() / (C * 0.9**2)).repeat(C).sqrt()
        return as_map(operate(z, lambda q, k: -squares(q, k), tokens(x), log=True), x)

    return lambda x: ops.nonlocal_means(x, patch_size=3, patch_distance=None, h=0.9), pairs


@identity("mean shift: one step is the bilateral filter")
def _(x: Tensor) -> tuple[Map, Map]:
    options = {"sigma_color": 0.9, "sigma_spatial": 2.0}
    return lambda x: ops.mean_shift(x, iterations=1, **options)[0], lambda x: ops.bilateral(x, **options)


@identity("mean shift of unit vectors is Hopfield retrieval")
def _(x: Tensor) -> tuple[Map, Map]:
    def climb(f: Callable[[Tensor, Tensor], Tensor]) -> Map:
        def steps(x: Tensor) -> Tensor:
            keys = F.normalize(tokens(x), dim=2)
            z = keys
            for _ in range(3):
                z = operate(z, f, keys=keys, log=True)
            return z

        return steps

    # exp(-|z - x|^2 / 2 s^2) = exp(z . x / s^2) times what does not depend on the key
    return climb(lambda q, k: -squares(q, k) / (2 * 0.8**2)), climb(dots(0.8**-2))


@identity("dense CRF, one mean-field step")
def _(x: Tensor) -> tuple[Map, Map]:
    compatibility, unary = torch.rand(C, C), torch.randn(B, x.shape[2] * x.shape[3], C)
    kernel = (-squares(z := torch.randn(B, unary.shape[1], 3), z) / 2).exp()

    def operated(x: Tensor) -> Tensor:
        Q = tokens(x).softmax(2)
        message = operate(Q, kernel, None, "none") - Q  # the sum is over the others
        return (-unary - 0.5 * message @ compatibility).softmax(2)

    def looped(x: Tensor) -> Tensor:
        Q = tokens(x).softmax(2)
        others = kernel * (1 - torch.eye(Q.shape[1]))
        return (-unary - 0.5 * torch.einsum("bij,bjl,lm->bim", others, Q, compatibility)).softmax(2)

    return operated, looped


# sub-sampling, limits


def sub_sampled(mode: str) -> tuple[Map, Map]:
    pooled: Any = grown("nonlocal", mode=mode, inner_channels=D, norm_layer=None, subsample=2)
    full: Any = grown("nonlocal", mode=mode, inner_channels=D, norm_layer=None)
    full.load_state_dict(pooled.state_dict())
    cells = lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
    return lambda x: pooled(cells(x)), lambda x: full(cells(x))


@identity("sub-sampled keys of a map of constant cells, softmax", gradient=False)
def _(x: Tensor) -> tuple[Map, Map]:
    return sub_sampled("embedded_gaussian")


@identity("sub-sampled keys of a map of constant cells, dot product", gradient=False)
def _(x: Tensor) -> tuple[Map, Map]:
    return sub_sampled("dot_product")


@identity("hard attention is a limit", gradient=False)
def _(x: Tensor) -> tuple[Map, Map]:
    def chosen(x: Tensor) -> Tensor:
        t = tokens(x)
        return t.gather(1, dots()(t, t).argmax(2)[..., None].expand(-1, -1, C))

    return chosen, lambda x: operate(tokens(x), dots(1e6), log=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("size", [(5, 7), (1, 1)], ids=["5x7", "1x1"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_is_an_instance(row: Identity, size: tuple[int, int], dtype: torch.dtype) -> None:
    if row.needs and row.needs not in list_blocks():
        pytest.skip(f"there is no block {row.needs} yet")
    if size == (1, 1) and not row.single:
        pytest.skip("not defined on one position")
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    with numbers(dtype):
        torch.manual_seed(0)
        x = torch.randn(B, C, *size)
        sides = row.build(x)
        found = []
        for side in sides:
            z = x.clone().requires_grad_(row.gradient)
            y = side(z)
            found.append([y.detach()])
            if row.gradient:
                weighting = torch.linspace(-1, 1, y.numel()).sin().view_as(y)
                found[-1] += torch.autograd.grad((y * weighting).sum(), z)
        for what, got, want in zip(("y", "dx"), *found):
            assert_same(f"{row.name}, {what}", got, want, tolerance * (1 if what == "y" else 10))


def test_scikit_images_nonlocal_means() -> None:
    """Its exponential is approximate and far patches are cut off: 1e-2."""
    restoration = pytest.importorskip("skimage.restoration")
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(17.0), indexing="ij")
    image = (0.5 + 0.3 * (rows / 3).sin() * (columns / 4).cos() + 0.05 * torch.randn(20, 17)).clamp(0, 1)
    want = restoration.denoise_nl_means(image.double().numpy(), patch_size=5, patch_distance=4, h=0.08, fast_mode=False)
    got = ops.nonlocal_means(image[None, None], patch_size=5, patch_distance=4, h=0.08)[0, 0]
    assert_same("non-local means", got, torch.from_numpy(want), 1e-2)

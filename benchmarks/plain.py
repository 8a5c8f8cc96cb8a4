"""Blocks as one writes them from the paper, on the parameters of ours: what benchmarks/blocks.py measures beside them.

Each form takes the block and gives what it gives. Where nothing is said, weights of every pair are a matrix, and what
they mix is another.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookfar import ops
from lookfar.blocks import sample_inputs

CHANNELS = 64


class Plain(nn.Module):
    """The definition: all weights, times all values."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block.finish(x, self.block.attention(x) @ self.block.values(x))

    def sample_inputs(self, size: tuple[int, ...], *, batch: int = 2) -> tuple[Tensor, ...]:
        return sample_inputs(self.block, CHANNELS, size, batch=batch)


class PlainCrissCross(Plain):
    """CCNet in pure PyTorch, as its authors wrote it: column and row energies joined, the own position masked once."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.block.recurrence):
            x = self.step(x)
        return x

    def step(self, x: Tensor) -> Tensor:
        q, k, v = self.block.query(x), self.block.key(x), self.block.value(x)
        H = x.shape[2]
        column = torch.einsum("bchw,bcgw->bhwg", q, k)
        own = torch.eye(H, dtype=torch.bool, device=x.device)[:, None, :]
        column = column.masked_fill(own, float("-inf"))
        row = torch.einsum("bchw,bchu->bhwu", q, k)
        weights = torch.cat([column, row], -1).softmax(-1)
        y = torch.einsum("bhwg,bcgw->bchw", weights[..., :H], v) + torch.einsum("bhwu,bchu->bchw", weights[..., H:], v)
        return x + self.block.gamma * y


def windows(t: Tensor, size: int, groups: int = 1) -> Tensor:
    """``(B, C, H, W) -> (B, G, C/G, k^2, N)``: a copy of the map for every cell of the window, zeros outside."""
    return F.unfold(t, size, padding=size // 2).view(len(t), groups, t.shape[1] // groups, size * size, -1)


def inside(x: Tensor, size: int) -> Tensor:
    """Which cells of the windows lie on the map, ``(1, 1, k^2, N)``."""
    return windows(torch.ones_like(x[:1, :1]), size)[:, :, 0] == 1


class PlainLocal(Plain):
    """Windows by ``unfold``: k^2 copies of keys and values."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.block.query(x), self.block.key(x), self.block.value(x)
        size = self.block.window["kernel_size"]
        logits = q.shape[1] ** -0.5 * (q.flatten(2)[:, None, :, None] * windows(k, size)).sum(2)
        logits = logits.masked_fill(~inside(x, size), float("-inf"))
        y = (logits.softmax(2)[:, :, None] * windows(v, size)).sum(3).view_as(v)
        return x + self.block.project(y)


class PlainStandAlone(Plain):
    """The same with heads, and the embedding of its offset added to every key."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.block.query(x), self.block.key(x), self.block.value(x)
        size, heads = self.block.window["kernel_size"], self.block.heads
        rows, columns = self.block.rel_row[..., None], self.block.rel_col[:, :, None]
        offsets = torch.cat([rows.expand(-1, -1, size, size), columns.expand(-1, -1, size, size)], 1).flatten(2)
        keys = windows(k, size, heads) + offsets[..., None]
        logits = (q.flatten(2).unflatten(1, (heads, -1))[:, :, :, None] * keys).sum(2)
        weights = logits.masked_fill(~inside(x, size), float("-inf")).softmax(2)
        return (weights[:, :, None] * windows(v, size, heads)).sum(3).flatten(1, 2).view_as(v)


class PlainStandAloneStem(Plain):
    """Every value matrix at every position, then their mixture."""

    def forward(self, x: Tensor) -> Tensor:
        block, k, (H, W) = self.block, self.block.kernel_size, x.shape[2:]
        shares = ((block.emb_row[:, None] + block.emb_col) @ block.nu.T).softmax(-1).repeat(H // k, W // k, 1)
        values = torch.einsum("moc,bcyx->bmoyx", block.mixtures, x)
        v = (shares.movedim(-1, 0)[:, None] * values).sum(1)
        q, k_, v = (F.unfold(t, k, stride=k) for t in (block.query(x), block.key(x), v))
        q, k_, v = (t.unflatten(1, (block.heads, -1, k * k)) for t in (q, k_, v))  # (B, h, D, k^2, blocks)
        weights = torch.einsum("bhdql,bhdkl->bhlqk", q, k_).softmax(-1)
        y = torch.einsum("bhlqk,bhdkl->bhdql", weights, v)
        return F.fold(y.flatten(1, 3), (H, W), k, stride=k)


class PlainLocalRelation(Plain):
    """Windows by ``unfold``; outside the map the similarity is -100, before the prior is added."""

    def forward(self, x: Tensor) -> Tensor:
        block, size = self.block, self.block.window["kernel_size"]
        keys = windows(block.key(x), size, block.groups)[:, :, 0]  # (B, G, k^2, N)
        similar = -((block.query(x).flatten(2)[:, :, None] - keys) ** 2)
        similar = torch.where(inside(x, size), similar, -100.0)
        step = torch.arange(size, device=x.device, dtype=x.dtype) - size // 2
        prior = block.geometry(torch.stack([step.expand(size, size), step[:, None].expand(size, size)])[None])
        weights = (similar + prior.flatten(2)[..., None]).softmax(2)
        return block.out((weights[:, :, None] * windows(x, size, block.groups)).sum(3).flatten(1, 2).view_as(x))


class PlainCarafe(Plain):
    """Windows by ``unfold``, repeated to the size of the output."""

    def forward(self, x: Tensor) -> Tensor:
        masks = F.pixel_shuffle(self.block.encoder(self.block.compressor(x)), self.block.scale_factor).softmax(1)
        sizes = {"kernel_size": self.block.kernel_size, "scale_factor": self.block.scale_factor}
        return ops.carafe_reference(x, masks, **sizes)


class PlainPointwiseSpatial(Plain):
    """The logits of all offsets of the mask at every position; those of every pair are then selected."""

    def forward(self, x: Tensor) -> Tensor:
        size = [(n - 1) // self.block.shrink_factor + 1 for n in x.shape[2:]]
        found = []
        for branch in (self.block.first, self.block.second):
            v = F.interpolate(branch.value(x), size, mode="bilinear", align_corners=True)
            logits = self.logits(branch, v)  # of a position that collects or distributes, and another
            weights = logits.softmax(2) if branch.direction == "collect" else logits.softmax(1).transpose(1, 2)
            found.append(weights @ v.flatten(2).transpose(1, 2))
        return self.block.finish(x, torch.stack(found, 1))

    def logits(self, branch: nn.Module, v: Tensor) -> Tensor:
        (H, W), (rows, columns) = v.shape[2:], branch.mask_size
        of_offsets = branch.mask(branch.hidden(v)).flatten(2).transpose(1, 2)  # (B, N, rows columns)
        at = torch.arange(H * W, device=v.device)
        row, column = at // W - at[:, None] // W + (rows - 1) // 2, at % W - at[:, None] % W + (columns - 1) // 2
        seen = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        index = row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)
        return of_offsets.gather(2, index.expand(len(v), -1, -1)) * seen


class PlainInterlaced(Plain):
    """All weights of each group of positions, far and near."""

    def forward(self, x: Tensor) -> Tensor:
        (context,) = self.block.contexts
        y = x
        for attention in (context.far, context.near):
            y = attention.finish(y, attention.attention(y) @ attention.values(y))
        return x + self.block.project(self.block.fuse(torch.cat([x, y], 1)))


class PlainExternal(Plain):
    """Convolutions and memories one after the other, positions first."""

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        tokens = block.embed(x).flatten(2).transpose(1, 2)[:, None]
        mixed = ops.external_attention_reference(tokens, block.key.weight, block.value.weight.T)
        return x + block.norm(block.project(mixed[:, 0].transpose(1, 2).view_as(x)))


class PlainEM(Plain):
    """The embedded map, and T steps of E and M on it."""

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        tokens = x.flatten(2).transpose(1, 2)[:, None]
        steps = block.iterations if self.training else block.eval_iterations
        options = {"weight": block.embed.weight.flatten(1), "bias": block.embed.bias, "iterations": steps}
        mixed, fitted = ops.expectation_maximization_reference(tokens, block.bases, **options)
        if self.training:
            block.update_bases(fitted)
        return block.finish(x, mixed)


class PlainCompact(Plain):
    """The matrix between all entries of a group, positions and channels alike."""

    def forward(self, x: Tensor) -> Tensor:
        layers = self.block.query, self.block.key, self.block.value
        t, p, g = (layer(x).unflatten(1, (self.block.groups, -1)).flatten(2) for layer in layers)
        u = (t[..., :, None] * p[..., None, :]) @ g[..., None]
        y = self.block.project(u.flatten(1).unflatten(1, (-1, *x.shape[2:])))
        return x + self.block.norm(y)


class PlainMessages(Plain):
    """All samples of a dilation as copies of the map, which filters are predicted from and applied to."""

    def forward(self, x: Tensor) -> Tensor:
        y, groups = x, self.block.groups
        for step in self.block.steps:
            seen = self.samples(x, step.offsets(x), step.dilation)
            layers = [step.filters] if step.borrowed else [step.filters, step.affinity]
            kernel = torch.cat([layer.weight for layer in layers]).flatten(2)
            z = torch.einsum("ock,bckyx->boyx", kernel, seen).unflatten(1, (-1, 9))
            weights = z[:, :groups] * z[:, -1:].softmax(2)
            y = y + step.gamma * (weights[:, :, None] * seen.unflatten(1, (groups, -1))).sum(3).flatten(1, 2)
        return y

    def samples(self, x: Tensor, offsets: Tensor, dilation: int) -> Tensor:
        """``(B, C, 9, H, W)``, interpolated, zeros outside."""
        H, W = x.shape[2:]
        cell = torch.arange(9, device=x.device)[:, None, None]
        row = offsets[:, 0::2] + dilation * (cell // 3 - 1) + torch.arange(H, device=x.device)[:, None]
        column = offsets[:, 1::2] + dilation * (cell % 3 - 1) + torch.arange(W, device=x.device)
        points = torch.stack([2 * column / (W - 1) - 1, 2 * row / (H - 1) - 1], -1)  # (B, 9, H, W, 2)
        return F.grid_sample(x, points.flatten(1, 2), align_corners=True).unflatten(2, (9, H))


class PlainHamburger(Plain):
    """The factorised map, then the convolution on all its positions."""

    def forward(self, x: Tensor) -> Tensor:
        (ham,) = self.block.hams
        left, right = ham(self.block.value(x).relu())
        y = (left @ right.transpose(2, 3)).flatten(1, 2).unflatten(2, x.shape[2:])
        return x + self.block.norm(self.block.project(y))


class PlainGloRe(Plain):
    """A map of states that is projected, and one that is extended."""

    def forward(self, x: Tensor) -> Tensor:
        maps = self.block.assign(x).flatten(2)
        states = self.block.value(x).flatten(2) @ maps.transpose(1, 2)  # (B, D, K)
        states = self.block.mix_states.weight @ (states + self.block.mix_nodes(states)).relu()
        return x + self.block.norm(self.block.project((states @ maps).unflatten(2, x.shape[2:])))


class PlainGraphProjection(Plain):
    """The difference of every position from every node."""

    def forward(self, x: Tensor) -> Tensor:
        found = [self.unit(unit, x.flatten(2)) for unit in self.block.units]
        return x + self.block.project(torch.cat(found, 1).unflatten(2, x.shape[2:]))

    def unit(self, unit: nn.Module, x: Tensor) -> Tensor:
        residuals = (x[:, :, None] - unit.centres[..., None]) / unit.scales.sigmoid()[..., None]  # (B, C, V, N)
        q = (-residuals.square().sum(1) / 2).softmax(1)
        z = F.normalize((q[:, None] * residuals).sum(3) / q.sum(2)[:, None], dim=1)
        nodes = unit.weight.T @ z @ (z.transpose(1, 2) @ z)
        return nodes.relu() @ q


class PlainChannels(Plain):
    """The authors' form: energies subtracted from their row's largest, softmax, a product."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block.gamma * ops.channel_attention_reference(x.flatten(2)).view_as(x)


class PlainSimplified(Plain):
    """The values of all positions, then their mean under the mask."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.block.mask(x).flatten(2).softmax(2)
        y = weights @ self.block.value(x.flatten(2).transpose(1, 2))  # (B, 1, C)
        return x + y[:, 0, :, None, None]


class PlainPyramid(Plain):
    """The pooled maps resized and joined to x, then the convolution on all positions."""

    def forward(self, x: Tensor) -> Tensor:
        pooled = [scale(F.adaptive_avg_pool2d(x, n)).relu() for scale, n in zip(self.block.scales, self.block.bins)]
        resized = [F.interpolate(p, x.shape[2:], mode="bilinear", align_corners=True) for p in pooled]
        return x + self.block.project(torch.cat([x, *resized], 1))


class PlainAdaptive(Plain):
    """The summary added to every position, and the residual convolution on all of them."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block.project(torch.cat([self.scale(scale, x) for scale in self.block.scales], 1))

    def scale(self, scale: nn.Module, x: Tensor) -> Tensor:
        reduced = scale.reduce(x)
        weights = scale.affinity(reduced + scale.summary(reduced.mean((2, 3), keepdim=True))).sigmoid().flatten(2)
        regions = scale.pooled(F.adaptive_avg_pool2d(x, scale.bins)).flatten(2)
        mixed = (regions @ weights).unflatten(2, x.shape[2:])
        return scale.fuse((scale.project(mixed) + reduced).relu())


class PlainSymbols(Plain):
    """Every position's features embedded, and a weight of every symbol at every position."""

    def forward(self, x: Tensor) -> Tensor:
        block, tokens = self.block, x.flatten(2).transpose(1, 2)  # (B, N, C)
        votes = (tokens @ block.vote).softmax(2)
        features = (votes.transpose(1, 2) @ (tokens @ block.embed)).relu()
        words = block.embeddings.expand(len(x), -1, -1)
        symbols = (block.graph_matrix @ torch.cat([features, words], 2) @ block.reason).relu()
        to_symbol, to_position = block.compatibility
        of_symbols, of_positions = symbols @ to_symbol[: symbols.shape[2]], tokens @ to_position[: tokens.shape[2]]
        logits = of_positions[:, :, None] + of_symbols[:, None]  # (B, N, K)
        weights = logits.softmax(1)
        weights = weights / weights.sum(2, keepdim=True)
        y = (weights @ symbols @ block.answer).relu()
        return x + block.gamma * y.transpose(1, 2).view_as(x)


class PlainObjects(Plain):
    """Queries, answers and their convolution as maps."""

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        block = self.block
        regions = (x.flatten(2) @ logits.flatten(2).softmax(2).transpose(1, 2))[..., None]  # (B, C, K, 1)
        q, k, v = block.query(x).flatten(2), block.key(regions).flatten(2), block.value(regions).flatten(2)
        weights = (q.shape[1] ** -0.5 * q.transpose(1, 2) @ k).softmax(2)  # (B, N, K)
        context = block.mix((v @ weights.transpose(1, 2)).unflatten(2, x.shape[2:]))
        return block.fuse(torch.cat([context, x], 1))


class PlainRelation(Plain):
    """Geometry and weights of all pairs of regions at once."""

    def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
        values = self.block.value(x).unflatten(2, (self.block.heads, -1)).transpose(1, 2)
        return x + (self.block.maps(x, boxes) @ values).transpose(1, 2).flatten(2)


class PlainPointStage(Plain):
    """Layers with all weights."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__(copy.deepcopy(block))
        for name, layer in block.layers.items():
            self.block.layers[name] = Plain(layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class PlainGlimpse(Plain):
    """The whole map padded for each scale, a window cut from it."""

    def forward(self, x: Tensor, location: Tensor) -> Tensor:
        sizes = {name: getattr(self.block, name) for name in ("kernel_size", "scales", "scale_factor")}
        seen = ops.glimpse_sensor_reference(x, location, **sizes)
        return (self.block.what(seen.flatten(1)) + self.block.where(location)).relu()


PLAIN = {
    "adaptive_context": PlainAdaptive,
    "carafe": PlainCarafe,
    "channel_attention": PlainChannels,
    "compact_generalized_nonlocal": PlainCompact,
    "criss_cross": PlainCrissCross,
    "dynamic_message_passing": PlainMessages,
    "expectation_maximization": PlainEM,
    "external_attention": PlainExternal,
    "glimpse": PlainGlimpse,
    "glore": PlainGloRe,
    "graph_projection": PlainGraphProjection,
    "hamburger": PlainHamburger,
    "interlaced": PlainInterlaced,
    "local_attention": PlainLocal,
    "local_relation": PlainLocalRelation,
    "object_contextual": PlainObjects,
    "point_stage": PlainPointStage,
    "pointwise_spatial_attention": PlainPointwiseSpatial,
    "pyramid_pooling": PlainPyramid,
    "relation": PlainRelation,
    "simplified_nonlocal": PlainSimplified,
    "stand_alone": PlainStandAlone,
    "stand_alone_stem": PlainStandAloneStem,
    "symbolic_graph_reasoning": PlainSymbols,
}
# with default options these run as they are defined: nothing is computed in another order, merged or made in parts
AS_DEFINED = (
    "atrous_pyramid",
    "cbam",
    "global_context",
    "hard_attention",
    "interleaved_group_convolution",
    "latent_gnn",
    "multi_head_external",
    "spatial_transformer",
    "squeeze_excitation",
)

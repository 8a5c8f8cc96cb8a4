"""Disentangled non-local: how two positions relate (pairwise) and how salient one is to all (unary), taken apart.

Traps: the released Cityscapes configuration removes one scalar mean (``whiten="layer"``), not the paper's mean of each
channel; the configuration named NLnowd_in whitens nothing. mmsegmentation's block is another function: logits over
sqrt(D) and 0.05, narrow values, an output convolution that both terms share, no gamma.
"""

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import NotNegative, Positive, divides
from lookfar.blocks._base import block
from lookfar.blocks._layers import CONV, Dims, Norm, Placement, added, max_pool, norm_of, normal_, normed, zero_last
from lookfar.blocks._projections import (
    Projections,
    QueryKeyValue,
    Switches,
    after_mixing,
    applied,
    reduced,
    value_width,
)
from lookfar.blocks.non_local import Mode, normalization_of, pair_vectors, scale_of
from lookfar.ops._layout import split_heads, to_map, to_tokens
from lookfar.ops._precision import widened
from lookfar.ops.attention import Normalization, attention, attention_weights
from lookfar.ops.concatenation import concatenation, concatenation_weights
from lookfar.ops.disentangled import (
    multiplied_attention,
    multiplied_attention_weights,
    unary_attention,
    unary_weights,
)

Whitening = Literal[
    "channel", "channel_std", "layer", "layer_std", "batch", "batch_std", "position", "norm", "norm_affine"
]
# over which axes of (B, 1, N, D) the mean is taken
_AXES = {"channel": (-2,), "layer": (-2, -1), "batch": (0, -2, -1), "position": (-1,)}


@block(
    "disentangled_nonlocal",
    title="Disentangled non-local block",
    paper="Disentangled Non-Local Neural Networks (ECCV 2020)",
    arxiv="2006.06668",
    formula=(
        r"y_i = x_i + \gamma \sum_j \text{softmax}_j((q_i - \bar{q})^\top (k_j - \bar{k}))\,v_j + \sum_j"
        r" \text{softmax}_j(w^\top x_j)\,v_j",
    ),
    family="pairwise",
    complexity="N M C",
    memory="N C",
    verified=(
        "yinmh17/DNL-Semantic-Segmentation@594a3591:model/seg/ops/nonlocal_block_nowd.py",
        "yinmh17/DNL-Semantic-Segmentation@594a3591:model/seg/ops/nonlocal_block.py",
        "open-mmlab/mmsegmentation@1.2.2:mmseg/models/decode_heads/dnl_head.py",
    ),
    attends="weights",
    aliases=("dnl", "dnlnet"),
    differences=(
        "The paper removes each channel's mean (whiten='channel', the default); the released Cityscapes configuration "
        "removes one scalar mean (whiten='layer').",
        "The authors scale the pairwise term by a gamma that starts at 0 while the unary term is live; zero_init=True "
        "starts gamma at 1 and the last layer at 0 instead, so that the whole block starts as the identity.",
        "mmsegmentation's function (variant='mmseg') divides the logits by sqrt(D) and 0.05, has narrow values and an "
        "output convolution, and no gamma.",
    ),
    author_keys={
        r"conv_query|theta\.conv": "query",
        r"conv_key|phi\.conv": "key",
        r"conv_value|g\.conv": "value",
        "conv_mask": "mask",
        r"conv_out(\.conv)?": "project",
        r"out_bn|conv_out\.(bn|gn|in)": "norm",
        r"concat_project\.conv\.weight": "pair",
        "query_bn": "query_norm",
        "key_bn": "key_norm",
        "query_bn_affine": "query_norm_affine",
        "key_bn_affine": "key_norm_affine",
    },
)
class DisentangledNonLocal(QueryKeyValue):
    """Adds to every position a pairwise and a unary attention over all positions, each with its own softmax.

    y_i = x_i + gamma sum_j softmax_j((q_i - mean q) . (k_j - mean k)) v_j + sum_j softmax_j(w . x_j) v_j

    Args:
        value_channels: Width of the values (then with a bias), which W_o leads back to C; None keeps C, without W_o.
            ``mmseg`` always has D.
        terms: ``both``, ``pairwise`` alone, ``unary`` alone, or ``joint``: neither taken apart nor whitened, the plain
            non-local block.
        combine: ``add`` the two attentions, or ``multiply`` them: one softmax over the sum of their logits.
        unary: Where the unary logits come from: a ``mask`` of their own, w . x_j, the mean query on the shared ``key``,
            mean q . k_j, or ``both``.
        whiten: What queries and keys lose before they meet: the mean of each ``channel``, of the ``layer`` (one scalar
            an image), of the ``batch`` (one scalar), of each ``position``; with ``_std`` also the standard deviation;
            ``norm`` and ``norm_affine`` are BatchNorms. Several are taken in the order given. None: nothing.
        eps: Added to variances.
        mode: The pairwise function, as in ``nonlocal``.
        scale: Factor on the pairwise logits: True is 1/sqrt(D), False is 1; None is the variant's.
        temperature: Divisor of the pairwise logits; None is the variant's, 1 or 0.05.
        heads: Groups of channels that attend by themselves, each with its own mask; the authors have one.
        normalization: Normalisation of the pairwise weights, what the mode has in ``nonlocal``; None is the published
            one. The unary term is a softmax.
        subsample: Stride of max-pooling x before keys, values and mask; 1 is off.
        norm_layer: Norm of what is added, a class or factory, or None.
        variant: Whose function: the ``authors``' or ``mmseg``'s.
        zero_init: Start as the identity: the last of norm, W_o and value is zero and gamma 1; else gamma starts at 0,
            as the authors have it.

    Shape: ``(B, C, *S) -> (B, C, *S)``, one, two or three axes by ``dims``

    Raises:
        ValueError: An unknown choice, or choices that exclude each other.

    Example:
        >>> block = DisentangledNonLocal(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        reduction: int = 2,
        value_channels: int | None = None,
        terms: Literal["both", "pairwise", "unary", "joint"] = "both",
        combine: Literal["add", "multiply"] = "add",
        unary: Literal["mask", "key", "both"] = "mask",
        whiten: Whitening | tuple[Whitening, ...] | None = "channel",
        eps: NotNegative = 1e-5,
        mode: Mode = "embedded_gaussian",
        scale: bool | float | None = None,
        temperature: Positive | None = None,
        heads: int = 1,
        normalization: Normalization | None = None,
        share_query_key: bool = False,
        projections: Projections = "inside",
        subsample: int = 1,
        dims: Dims = 2,
        norm_layer: Norm | None = None,
        variant: Literal["authors", "mmseg"] = "authors",
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        inner, mmseg = inner_channels or reduced(channels, reduction, heads), variant == "mmseg"
        steps = (whiten,) if isinstance(whiten, str) else tuple(whiten or ())
        switches = Switches(heads, normalization_of(mode, normalization), share_query_key, projections, subsample)
        _check(terms, combine, unary, steps, mode, switches)
        values = inner if mmseg else value_channels
        self._add_projections(channels, inner, values, terms, unary, mode, switches, dims, **dd)
        self.terms, self.combine, self.mode, self.eps = terms, combine, mode, eps
        self.scale = scale_of(mmseg if scale is None else scale, inner // heads)
        self.scale /= temperature or (0.05 if mmseg else 1.0)
        self._add_whitening(inner, () if terms == "joint" else steps, **dd)
        self._add_output(channels, norm_layer, mmseg, zero_init, dims, **dd)

    def _add_projections(
        self,
        channels: int,
        inner: int,
        value_channels: int | None,
        terms: str,
        unary: Literal["mask", "key", "both"],
        mode: Mode,
        switches: Switches,
        dims: Dims,
        **dd: Any,
    ) -> None:
        """Of queries and keys where a term asks for them, of values, and of the mask."""
        related, heads = terms != "unary" or unary != "mask", switches.heads
        keys = channels if mode == "gaussian" and switches.inside else inner
        if related:
            divides("heads", heads, inner_channels=keys)
        values = value_width(value_channels, channels, heads if not related else inner, switches)
        self.narrow = not switches.inside or value_channels is not None

        def projection(width: int, bias: bool = True) -> nn.Module:
            return normal_(CONV[dims](channels, width, 1, bias=bias, **dd))

        embedded = related and mode != "gaussian"
        super().__init__(
            switches, partial(projection, inner) if embedded else None, partial(projection, values, self.narrow)
        )
        self.value_channels = values
        self.unary = unary if terms in ("both", "unary") else None
        self.mask = projection(heads) if self.unary in ("mask", "both") else None
        self.pair = pair_vectors(heads, inner, **dd) if mode == "concatenation" else None

    def _add_whitening(self, inner: int, steps: tuple[str, ...], **dd: Any) -> None:
        self.whiten = steps
        related = self.terms != "unary" or self.unary != "mask"
        for step in ("norm", "norm_affine"):
            for side in ("query", "key"):
                wanted = step in steps and related
                norm = nn.BatchNorm1d(inner, affine=step == "norm_affine", **dd) if wanted else None
                self.add_module(f"{side}_{step}", norm)

    def _add_output(
        self, channels: int, norm_layer: Norm | None, mmseg: bool, zero_init: bool, dims: Dims, **dd: Any
    ) -> None:
        self.norm = norm_of(norm_layer, dims)(channels, **dd) if norm_layer else None
        bias = mmseg and self.norm is None
        self.project = normal_(CONV[dims](self.value_channels, channels, 1, bias=bias, **dd)) if self.narrow else None
        plain = mmseg or self.terms == "unary"
        self.gamma = None if plain else nn.Parameter(torch.full((1,), float(zero_init), **dd))
        if zero_init:
            zero_last(self.norm, self.project or self.value)

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """What a softmax does not see, what whitening takes off and what batch statistics take off."""

        def unseen(side: str, steps: tuple[str, ...]) -> bool:
            fate = self._fate_of_a_shift(steps)
            if side == "query" and self.unary not in (None, "mask"):
                return False
            blind = {"softmax": "key", "double": "query"}.get(self.normalization) == side
            return fate == "removed" or (blind and fate == "kept")

        query, key = unseen("query", self.whiten), unseen("key", self.whiten)
        names = ["mask.bias"]
        if self.key is not None:
            names += ["query.bias"] * query + ["key.bias"] * key
        else:
            names += ["query.bias"] * (query and key)
        if "norm_affine" in self.whiten:
            after = self.whiten[self.whiten.index("norm_affine") + 1 :]
            names += [f"{side}_norm_affine.bias" for side in ("query", "key") if unseen(side, after)]
        if self.training and isinstance(self.norm, nn.modules.batchnorm._BatchNorm):
            names += ["project.bias"] + ["value.bias"] * (self.normalization in ("softmax", "double"))
        own = dict(self.named_parameters())
        return tuple(name for name in names if name in own)

    def _fate_of_a_shift(self, steps: tuple[str, ...]) -> Literal["removed", "kept", "seen"]:
        """What whitening makes of a number added to a channel: a deviation over several channels sees it."""
        for step in steps:
            if step.startswith("channel") or (step.startswith("norm") and self.training):
                return "removed"
            if step in ("layer_std", "batch_std"):
                return "seen"
        return "kept"

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors keep a gamma where there is nothing for it to multiply."""
        return {k: v for k, v in state.items() if k != "gamma" or self.gamma is not None}

    def forward(self, x: Tensor) -> Tensor:
        return self._finish_terms(x, *self._found_terms(x))  # no name holds queries, keys and values any more

    def _found_terms(self, x: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """The pairwise term ``(B, h, N, E/h)``, and the unary ones ``(B, h, 1, E/h)``."""
        if self.terms == "unary" and self.unary == "mask":  # pool first: the rest acts on one vector
            assert self.mask is not None
            source = max_pool(x, self.subsample)
            tokens = source.flatten(2).transpose(1, 2).unsqueeze(1)
            pooled = unary_attention(self.mask(source).flatten(2), tokens)  # (B, h, 1, C)
            a_map = pooled.squeeze(2).transpose(1, 2).unflatten(2, (*(1,) * (x.dim() - 3), self.heads))  # (B, C, .., h)
            found = to_tokens(applied(self._layers[2], a_map), self.heads)  # every head's of every mask
            return None, [found.diagonal(dim1=1, dim2=2).transpose(1, 2).unsqueeze(2)]
        q, k, v, logits = self._similar(x)
        if self.combine == "multiply" and logits:
            return multiplied_attention(q, k, sum(logits[1:], logits[0]), v, scale=self.scale), []
        pairwise = None if self.terms == "unary" else self._pairwise(q, k, v)
        return pairwise, [unary_attention(l, v) for l in logits]

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, t h, Q, M)`` of the flat query positions ``(Q,)``, of all when None.

        t counts the maps that are added: each head's pairwise, then unary (the same for every query).
        """
        q, k, _, logits = self._similar(x)
        some = q if queries is None else q[..., queries, :]
        if self.combine == "multiply" and logits:
            return multiplied_attention_weights(some, k, sum(logits[1:], logits[0]), scale=self.scale)
        maps = [unary_weights(l).expand(-1, -1, some.shape[-2], -1) for l in logits]
        if self.terms != "unary":
            if self.pair is not None:
                a, b = self._scores(some, k)
                pairwise = concatenation_weights(a, b, normalization=self.normalization)  # type: ignore[arg-type]
            else:
                pairwise = attention_weights(some, k, scale=self.scale, normalization=self.normalization, all_queries=q)
            maps = [pairwise, *maps]
        return torch.cat(maps, 1)

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, t h, M, E/h)``: the same values for each of the maps."""
        maps = 1 if self.combine == "multiply" else (self.terms != "unary") + len(self._unary_sources)
        v = to_tokens(self._maps(x)[2], self.heads)
        v = widened(v) if self.normalization == "none" else v
        return v.unsqueeze(1).expand(-1, maps, -1, -1, -1).flatten(1, 2)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output from its input and the weighted sums ``(B, t h, N, E/h)``."""
        parts = list(mixed.unflatten(1, (-1, self.heads)).unbind(1))
        if self.terms == "unary":
            return self._finish_terms(x, None, parts)
        return self._finish_terms(x, parts[0], parts[1:])

    @property
    def map_kinds(self) -> tuple[str, ...]:
        """What is added to each other, in the order of the maps."""
        if self.combine == "multiply":
            return ()
        sources = self._unary_sources
        unary = ("unary",) if len(sources) == 1 else tuple(f"unary of {source}" for source in sources)
        return unary if self.terms == "unary" else ("pairwise", *unary)

    @property
    def _unary_sources(self) -> tuple[str, ...]:
        return {None: (), "both": ("key", "mask")}.get(self.unary, (self.unary or "",))

    def _similar(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Whitened queries ``(B, h, N, D/h)`` and keys ``(B, h, M, D/h)``, values, unary logits ``(B, h, M)``.

        There is one tensor of logits a source.
        """
        query, key, value = self._maps(x)
        v = to_tokens(value, self.heads)
        q, k = to_tokens(query), to_tokens(key)
        if self.normalization == "none":
            q, k, v = widened(q), widened(k), widened(v)
        q, mean = self._whitened(q, "query")
        # what is the same for all keys drops out of a softmax: only their deviation, or a sum without softmax, needs it
        if not (self.normalization == "softmax" and set(self.whiten) <= {"channel", "layer", "batch"}):
            k, _ = self._whitened(k, "key")
        q, k = (split_heads(t.squeeze(1), self.heads) for t in (q, k))
        logits = []
        for kind in self._unary_sources:
            if kind == "mask":
                assert self.mask is not None
                logits.append(self._pooled(self.mask, x).flatten(2))
            else:
                assert mean is not None
                asked = (
                    widened(mean).expand(-1, -1, 1, self.heads * k.shape[-1]).squeeze(1)
                )  # of a layer it is one number
                shared = (split_heads(asked, self.heads) * widened(k)).sum(-1)
                logits.append(self.scale * shared if self.combine == "multiply" else shared)
        return q, k, v, logits

    def _whitened(self, t: Tensor, side: str) -> tuple[Tensor, Tensor | None]:
        """``(B, 1, N, D)`` after all steps, and the mean that the last of them that has one took off."""
        mean = None
        for step in self.whiten:
            if step.startswith("norm"):
                t = getattr(self, f"{side}_{step}")(t.squeeze(1).transpose(1, 2)).transpose(1, 2).unsqueeze(1)
                continue
            axes = _AXES[step.removesuffix("_std")]
            mean = t.mean(axes, keepdim=True)
            t = t - mean
            if step.endswith("_std"):
                counted = math.prod([t.shape[axis] for axis in axes])  # a list: dynamo cannot trace a generator here
                # unbiased; of a single value it counts as 0
                variance = widened(t).square().sum(axes, keepdim=True) / max(counted - 1, 1)
                t = (t / (variance + self.eps).sqrt()).to(t.dtype)
        return t, mean

    def _scores(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        assert self.pair is not None
        for_query, for_key = widened(self.pair).unsqueeze(1).chunk(2, -1)  # (h, 1, D/h)
        return (q * for_query).sum(-1), (k * for_key).sum(-1)

    def _pairwise(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.pair is not None:
            a, b = self._scores(q, k)
            return concatenation(a, b, v, normalization=self.normalization)  # type: ignore[arg-type]
        return attention(q, k, v, scale=self.scale, normalization=self.normalization)

    def _finish_terms(self, x: Tensor, pairwise: Tensor | None, unary: list[Tensor]) -> Tensor:
        """x and the terms ``(B, h, N or 1, E/h)`` that are added to it."""
        if pairwise is not None and self.gamma is not None:
            pairwise = self.gamma * pairwise
        terms = ([] if pairwise is None else [pairwise]) + unary
        t = sum(terms[1:], terms[0])
        del pairwise, unary, terms  # no map is held longer than it is needed
        one = t.shape[2] == 1  # one vector for all positions, or a map
        y = t.transpose(2, 3).flatten(1, 2).unflatten(2, (1,) * (x.dim() - 2)) if one else to_map(t, x)
        del t
        y = after_mixing(self.project, y, self.normalization)
        y = normed(self.norm, y)
        return added(self, x, y.to(x.dtype))


def _check(terms: str, combine: str, unary: str, steps: tuple[str, ...], mode: str, switches: Switches) -> None:
    if combine == "multiply" and "gaussian" not in mode:
        raise ValueError(f"combine='multiply' adds logits of a softmax, which {mode=} does not have")
    if combine == "multiply" and switches.normalization != "softmax":
        raise ValueError(f"combine='multiply' adds logits of a softmax, got normalization={switches.normalization!r}")
    if combine == "multiply" and terms != "both":
        raise ValueError(f"combine='multiply' wants terms='both', got {terms!r}")
    means = [step for step in steps if not step.startswith("norm")]
    if terms in ("both", "unary") and unary != "mask" and (not means or means[-1] == "position"):
        raise ValueError(
            f"unary={unary!r} takes the mean query that whitening removes last: want one over positions, "
            f"as of whiten='channel' or 'layer'; got {steps!r}"
        )
    if switches.share_query_key and mode == "gaussian":
        raise ValueError("share_query_key: mode='gaussian' has no projections of queries and keys")
    if mode == "gaussian" and {"norm", "norm_affine"} & set(steps):
        raise ValueError("whiten='norm' normalises projected queries and keys, which mode='gaussian' lacks")

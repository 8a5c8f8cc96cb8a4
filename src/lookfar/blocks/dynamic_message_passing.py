"""DGMN: every position receives messages from a few samples around it, at several distances, and moves the samples.

Traps: offsets start at random, not at zero, and samples leave the map: these hold zeros and still take their share of
a softmax, also those of unmoved grids near borders. The authors' two codes are two functions: the rigorous one moves
the samples that filters are predicted from too, and with affinities leaves its filters without a softmax.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import divides, largest_divisor
from lookfar.blocks._base import block
from lookfar.blocks._layers import ConvNorm, Norm, Placement, added, gate, keeps_input
from lookfar.blocks._reading import weights_of
from lookfar.ops._layout import match_format, to_map, to_tokens
from lookfar.ops._precision import widened
from lookfar.ops.deformable import deformable_convolution, deformable_rows, deformable_sum

Variant = Literal["rigorous", "fast"]
Affinity = Literal["published", "own", "none"]

SAMPLES = 9  # the originals fix a grid of 3 x 3 in all their widths
_LAYERS = {"scale1": "reduce", "scale2": "mix", "scale3": "expand"}
_KEYS = {
    rf"{theirs}\.{n}": f"{ours}.{part}" for theirs, ours in _LAYERS.items() for n, part in enumerate(("conv", "norm"))
}
for _s, _letter in enumerate("abcd"):
    _KEYS |= {f"(cat|kernel_conv){_letter}": f"steps.{_s}.filters", f"off_conv{_letter}": f"steps.{_s}.offsets"}
    _KEYS[f"gamma{_s + 1}"] = f"steps.{_s}.gamma"


class Step(nn.Module):
    """One dilation: predicts the weights of each position's samples, and how far they move."""

    def __init__(
        self,
        channels: int,
        groups: int,
        dilation: int,
        *,
        variant: Variant,
        walks: bool,
        affinity: bool,
        borrowed: bool,
        gamma: float | None,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.groups, self.dilation = groups, dilation
        self.rigorous = variant == "rigorous"
        self.borrowed = borrowed

        def convolution(out_channels: int) -> nn.Conv2d:
            return nn.Conv2d(channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False, **dd)

        self.filters = convolution(groups * SAMPLES)
        self.offsets = convolution(2 * SAMPLES) if walks else None
        self.affinity = convolution(SAMPLES) if affinity else None
        self.gamma = None if gamma is None else nn.Parameter(torch.full((1,), gamma, **dd))

    def forward(self, h: Tensor, wide: Tensor) -> Tensor:
        """The message ``(B, c, H, W)`` of the features h, which ``wide`` holds in float32 at least."""
        weights, offsets = self.predict(h, wide)
        return deformable_sum(weights, wide, offsets, dilation=self.dilation)

    def predict(self, h: Tensor, wide: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights of the samples, ``(B, G, 9, H, W)``, and their offsets, ``(B, 18, H, W)``."""
        last = None if self.borrowed else self.affinity
        layers = [weights_of(layer)[0] for layer in (self.filters, last) if layer is not None]
        offsets = None
        if self.offsets is None:
            z = self._convolve(h, layers)
        elif self.rigorous:
            offsets = self.offsets(h)
            z = deformable_convolution(wide, torch.cat(layers), offsets, dilation=self.dilation)
        else:
            z = self._convolve(h, [*layers, weights_of(self.offsets)[0]])
            z, offsets = z.split([z.shape[1] - 2 * SAMPLES, 2 * SAMPLES], 1)
        z = widened(z).unflatten(1, (-1, SAMPLES))
        filters, gate = z[:, : self.groups], z[:, -1:]
        if self.affinity is None:
            return filters.softmax(2), offsets
        if self.borrowed:
            unused, _ = weights_of(self.affinity)
            filters = filters + 0 * unused.sum().to(z.dtype)  # learns nothing, and stays in the graph
        weights = filters * gate.softmax(2) if self.rigorous else filters.softmax(2) * gate.sigmoid()
        return weights, offsets

    def _convolve(self, h: Tensor, weights: list[Tensor]) -> Tensor:
        return F.conv2d(h, torch.cat(weights), padding=self.dilation, dilation=self.dilation)


@block(
    "dynamic_message_passing",
    title="Dynamic graph message passing (DGMN)",
    paper="Dynamic Graph Message Passing Networks (CVPR 2020)",
    arxiv="1908.06955",
    formula=(
        r"y = h + \sum_s \gamma_s\,m_s",
        r"m_s(p) = \sum_{k=1}^{9} F_{sk}(p)\,h(p + d_s\,k + \text{walk}_{sk}(p))",
    ),
    family="graph",
    complexity="9 S N C (9 G + 27)",
    memory="N (C + 9 S G)",
    verified=("lzrobots/dgmn@515476b:maskrcnn_benchmark/layers/dynamic_weight.py",),
    attends="weights",
    aliases=("dgmn", "dynamic_weights"),
    differences=(
        "Only one of the authors' five classes (DynamicWeights) starts as the identity. Here all do: the gammas of the "
        "sum start at 0, and where the original ends in a normalisation and a ReLU, one more gamma stands outside; "
        "`zero_init=False` sets them to 1, as published.",
        "The rigorous code takes the affinity of the fourth dilation from the last group's filters, not from the 9 "
        "channels predicted for it (`steps.3.affinity`), whose gradient is exactly 0: part of every published model, "
        'and the default; `affinity="own"` corrects it.',
        "Affinities without walks are in neither code, nor are other numbers of dilations than four and one.",
        "The authors' random exchange of the groups' filters in training is left out; with their published options it "
        "fails, as shapes do not match.",
    ),
    author_keys=_KEYS,
)
class DynamicMessagePassing(nn.Module):
    """Sends to each position what 3 x 3 samples at each of S dilations hold; it weighs and places them itself.

    y = h + sum_s gamma_s m_s, m_s = sum_k F_sk h(p + d_s k + walk_sk)

    F holds one filter for each group of channels, and d_s is a dilation. The features h are x, or with ``reduction`` a
    narrower map of it whose result is widened and added to x. The weights of :meth:`attention` are the filters spread
    bilinearly: one head for each dilation and group, signed where rigorous filters have affinities. There is no middle
    step to switch off: messages go from position to position.

    Args:
        groups: G, groups of channels with filters of their own; None is the published 4, or the largest divisor below.
        dilation: Distances of the samples, one or several; they may exceed the map.
        walks: Move the samples by predicted offsets; else they stay on the grid.
        affinity: Rescale the filters by weights over the samples that all groups share. ``published``: the fourth
            dilation of the rigorous code takes the last group's filters for it; ``own``: each has its own; ``none``:
            filters alone.
        variant: The authors' ``rigorous`` code, which predicts filters from the moved samples and sums the messages, or
            their ``fast`` one: everything from one convolution, the messages concatenated and mixed.
        reduction: Work on C / reduction channels (the authors' 4), after a 1x1 convolution and before another.
        norm_layer: After every 1x1 convolution; None is a GroupNorm of 32 groups, or of fewer where 32 do not divide.
        zero_init: Start as the identity; else as published, with gammas of 1.

    Shape: ``(B, C, H, W) -> (B, C, H, W)``

    Raises:
        ValueError: An unknown choice, groups that do not divide the channels, and what fails in the original: several
            groups with ``variant="fast"``, walks and no affinity.

    Example:
        >>> block = DynamicMessagePassing(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    position_dependent = "which sample is above and which is left is a matter of channels: filters and walks learn it"

    def __init__(
        self,
        channels: int,
        *,
        groups: int | None = None,
        dilation: int | Sequence[int] = (1, 4, 8, 12),
        walks: bool = True,
        affinity: Affinity = "published",
        variant: Variant = "rigorous",
        reduction: int = 1,
        norm_layer: Norm | None = None,
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        dilations = (dilation,) if isinstance(dilation, int) else tuple(dilation)
        inner, rigorous = max(channels // reduction, 1), variant == "rigorous"
        groups = largest_divisor(4, inner) if groups is None else groups
        divides("groups", groups, graph_channels=inner)
        if not rigorous and walks and affinity == "none" and groups > 1:
            raise ValueError(f"groups must be 1 for {variant=}, {walks=}, {affinity=}, got {groups}; others take any")
        self.groups, self.walks = groups, walks

        layer = partial(ConvNorm, norm_layer=norm_layer or _group_norm, act_layer=nn.ReLU, **dd)
        narrow, start = reduction > 1, 0.0 if zero_init else 1.0
        # one zero a path; behind the ReLU of a normalisation whose weight is zero nothing would ever learn
        outside = narrow or not rigorous
        self.reduce = layer(channels, inner) if narrow else None
        self.steps = nn.ModuleList(
            Step(
                inner, groups, d, variant=variant, walks=walks, affinity=affinity != "none",
                borrowed=rigorous and affinity == "published" and s == 3,
                gamma=(1.0 if narrow else start) if rigorous else None, **dd,
            )
            for s, d in enumerate(dilations)
        )  # fmt: skip
        self.mix = None if rigorous else layer((1 + len(dilations)) * inner, inner, bias=not narrow)
        self.expand = layer(inner, channels) if narrow else None
        self.outside, self.gamma = outside, gate(self, zero_init, **dd) if outside else None

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """The affinities that the published code predicts and does not use."""
        return tuple(f"steps.{s}.affinity.weight" for s, step in enumerate(self._steps()) if step.borrowed)

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The originals predict filters and affinities, in the fast code offsets too, with one convolution."""
        state = dict(state)
        for s, step in enumerate(self._steps()):
            name = f"steps.{s}.filters.weight"
            parts = [("filters", self.groups * SAMPLES)]
            parts += [("offsets", 2 * SAMPLES)] if step.offsets is not None and not step.rigorous else []
            parts += [("affinity", SAMPLES)] if step.affinity is not None else []
            if name in state and len(state[name]) == sum(size for _, size in parts):
                split = state.pop(name).split([size for _, size in parts])
                state |= {f"steps.{s}.{part}.weight": value for (part, _), value in zip(parts, split)}
        if self.gamma is None and "gamma" in state:
            state["steps.0.gamma"] = state.pop("gamma")  # of DynamicWeights, whose one step has it
        elif self.gamma is not None and bool((self.gamma != 1).any()):
            state.setdefault("gamma", torch.ones(1))  # a published branch has no scale outside
        return state

    @property
    def unpublished(self) -> tuple[str, ...]:
        """A scale outside that is 1 already may stay."""
        return () if self.gamma is None else ("gamma",)

    def forward(self, x: Tensor) -> Tensor:
        h, wide = self._features(x)
        return self._finish(x, h, wide, (step(h, wide) for step in self._steps()))

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, S G, Q, N)`` of flat query positions ``(Q,)``, of all when None, the groups of the first
        dilation first. They need not be positive; those of samples outside the map are given to nobody.
        """
        found, features = [], self._features(x)
        for step in self._steps():
            weights, offsets = step.predict(*features)
            found.append(deformable_rows(weights, offsets, dilation=step.dilation, queries=queries))
        return torch.cat(found, 1)

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, S G, N, C / (r G))``: the features, the same for each dilation."""
        return to_tokens(self._features(x)[1], self.groups).repeat(1, len(self.steps), 1, 1)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output from its input and the weighted sums ``(B, S G, N, C / (r G))``."""
        h, wide = self._features(x)
        return self._finish(x, h, wide, (to_map(m, wide) for m in mixed.split(self.groups, 1)))

    @property
    def map_kinds(self) -> tuple[str, ...]:
        """The dilations, in the order of the maps."""
        return tuple(f"dilation {step.dilation}" for step in self._steps())

    def _steps(self) -> list[Step]:
        return [cast(Step, step) for step in self.steps]

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """h, and h in float32 at least, a position's channels side by side where samples move: so they are read."""
        h = x if self.reduce is None else self.reduce(x)
        wide = widened(h)
        return h, wide.contiguous(memory_format=torch.channels_last) if self.walks else wide

    def _finish(self, x: Tensor, h: Tensor, wide: Tensor, messages: Iterable[Tensor]) -> Tensor:
        if self.mix is not None:
            y = self.mix(torch.cat([h, *(m.to(h.dtype) for m in messages)], 1))
        else:
            y = wide if self.outside or keeps_input(self) else torch.zeros_like(wide)
            for step, message in zip(self._steps(), messages):
                y = y + cast(Tensor, step.gamma).to(y.dtype) * message
            y = y.to(h.dtype)
        if self.expand is not None:
            y = self.expand(y)
        y = y.to(x.dtype) if self.gamma is None else (self.gamma * y).to(x.dtype)
        return match_format(added(self, x, y) if self.outside else y, x)


def _group_norm(channels: int, **dd: Any) -> nn.GroupNorm:
    # the authors' 32 where it divides; else fewer, of two channels or more
    groups = 32 if channels % 32 == 0 else max(math.gcd(32, channels) // 2, 1)
    return nn.GroupNorm(groups, channels, **dd)

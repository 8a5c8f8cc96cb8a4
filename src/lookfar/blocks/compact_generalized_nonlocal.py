"""CGNL: every (position, channel) entry related to every other, at the cost of a dot product.

Traps: the published block undoes its own idea. With the dot kernel a sample's group is multiplied by one number s, and
the group normalisation that follows divides by |s|: y = x + sign(s) GN(z(t)) as soon as |s| std(z(t)) >> 3e-3, whatever
p and g hold. With the Gaussian kernel gamma = 1e-4 leaves little but the term of order 0, a constant over positions.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Positive, Steps, divides, largest_divisor
from lookfar.blocks._base import block
from lookfar.blocks._layers import CONV, CONVOLVE, Dims, Placement, added, norm_of, normal_, normed, readable, zero_
from lookfar.blocks._reading import weights_of
from lookfar.ops._layout import match_format
from lookfar.ops._pointwise import convolved_rows
from lookfar.ops._precision import widened, without_autocast


@block(
    "compact_generalized_nonlocal",
    title="Compact generalized non-local (CGNL)",
    paper="Compact Generalized Non-local Network (NeurIPS 2018)",
    arxiv="1810.13125",
    formula=(
        r"u = \langle p, g \rangle\,t \quad \text{(dot product)}",
        r"u = \sum_k w_k\,\langle p^k, g \rangle\,t^k, \quad w_k = \frac{(2\gamma)^k}{k!}\,e^{-2\gamma}"
        r" \quad \text{(gaussian)}",
        r"y = x + \text{norm}(z(u))",
    ),
    family="low_rank",
    complexity="N C^2",
    memory="N C",
    verified=("KaiyuYue/cgnl-network.pytorch@33e348b:model/resnet.py",),
    attends="maps",
    aliases=("cgnl", "cgnlx"),
    differences=(
        "In the published block the group normalisation cancels the attention s = <p, g> but for its sign:"
        " y = x + w s (v - mean v) / sqrt(s^2 var v + eps) + b with v = z(t). On random features, doubling the "
        "attention changes the update by less than 1e-7, and p's gradient is less than 1e-5 of t's."
        " norm_layer=nn.BatchNorm2d, whose statistics are not the sample's own, keeps it: both are above 0.5.",
        "The authors' Gaussian kernel has exp(-2 gamma) for exp(-gamma (t^2 + p^2)) and fixes gamma = 1e-4: its term of"
        " order 0, the same everywhere, is nearly all, and less than 1e-4 of the update's variance lies between"
        " positions. decay=True is the paper's kernel; with gamma=0.5 more than 0.3 of it does.",
    ),
    author_keys={"t": "query", "p": "key", "g": "value", "z": "project", "gn": "norm"},
)
class CompactGeneralizedNonlocal(nn.Module):
    """Relates all entries of a map, positions and channels alike, through a kernel of low rank.

    u = <p, g> t (dot product), or sum_k w_k <p^k, g> t^k, w_k = (2 gamma)^k / k! exp(-2 gamma) (gaussian);
    y = x + norm(z(u))

    t, p and g are 1x1 convolutions of x, z is the last one; all in groups of channels.

    There is no middle step to switch off: the one number that a group's entries give is all that they exchange.

    Args:
        channels: Channels C of input and output; ``groups`` must divide it.
        inner_channels: Channels of t, p and g; half of ``channels`` by default.
        groups: Groups of channels that are related among themselves; None is the published 8, or the largest divisor
            below it.
        mode: The kernel between entries: ``dot_product`` or ``gaussian`` (by its Taylor series).
        order: Order of the Taylor series; the authors' networks use 3.
        gamma: Width of the Gaussian.
        decay: The Gaussian of the paper, exp(-gamma (t_i - p_j)^2) up to ``order``; off, exp(-2 gamma) stands for its
            factors exp(-gamma t_i^2) and exp(-gamma p_j^2), as published.
        share_query_key: One projection for t and p.
        scale: Divide the kernel by sqrt(entries of a group).
        norm_layer: Last normalisation; None for the published GroupNorm over ``groups``.
        zero_init: Start as the identity (weight and bias of the last normalisation 0), as the authors do.

    Shape: ``(B, C, *S) -> (B, C, *S)``, one, two or three axes by ``dims``

    Example:
        >>> block = CompactGeneralizedNonlocal(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        groups: int | None = None,
        mode: Literal["dot_product", "gaussian"] = "dot_product",
        order: Steps = 3,
        gamma: Positive = 1e-4,
        decay: bool = False,
        share_query_key: bool = False,
        scale: bool = False,
        dims: Dims = 2,
        norm_layer: Callable[..., nn.Module] | None = None,
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        conv = CONV[dims]
        inner = inner_channels or max(channels // 2, 1)
        groups = largest_divisor(8, channels, inner) if groups is None else groups
        divides("groups", groups, channels=channels, inner_channels=inner)
        if decay and mode != "gaussian":
            raise ValueError(f"decay must be False in {mode=}, it belongs to mode='gaussian'; got {decay!r}")
        self.groups, self.mode, self.order, self.gamma, self.scale = groups, mode, order, gamma, scale
        self.decay = decay
        self.query = conv(channels, inner, 1, bias=False, **dd)
        self.key = None if share_query_key else conv(channels, inner, 1, bias=False, **dd)
        self.value = conv(channels, inner, 1, bias=False, **dd)
        self.project = conv(inner, channels, 1, groups=groups, bias=False, **dd)
        self.norm = norm_of(norm_layer, dims)(channels, **dd) if norm_layer else nn.GroupNorm(groups, channels, **dd)
        for layer in (self.query, self.key, self.value, self.project):
            if layer is not None:
                normal_(layer)
        if zero_init:
            zero_(self.norm)

    def forward(self, x: Tensor) -> Tensor:
        t, g = self._projected(self.query, x), self._projected(self.value, x)
        each = (..., *(None,) * (x.dim() - 1))  # one number for all entries of a group
        p = t if self.key is None else self._projected(self.key, x)
        if self.mode == "dot_product":
            weight = self._kernel(p, g, 1)
            # z has the groups of the kernel: it may act before the one number a group that the kernel is
            v = self.project(t).unflatten(1, (self.groups, -1))
            y = (widened(v) * weight[each]).flatten(1, 2)
        else:
            with without_autocast(x):
                t = widened(t).unflatten(1, (self.groups, -1))
                # Horner's rule; no power of t is stored
                u = torch.zeros_like(t)
                for k in range(self.order, -1, -1):
                    factor = (2 * self.gamma) ** k / math.factorial(k)
                    u = u * t + factor * self._kernel(p, g, k)[each]
                u = u * ((-self.gamma * t.square()).exp() if self.decay else math.exp(-2 * self.gamma))
                weight, _ = weights_of(self.project)
                y = CONVOLVE[x.dim() - 2](u.flatten(1, 2), weight.to(u.dtype), groups=self.groups)
        # normalised in float32 under half precision: the kernel's sums pass its range, and leave here
        norm_dtype = [*self.norm.parameters(), y][0].dtype  # torch 2.8 cannot trace a generator here
        with without_autocast(x):
            y = normed(self.norm, y) if norm_dtype == y.dtype else self._wide_norm(y)
        return match_format(added(self, x, y.to(x.dtype)), x)

    def maps(self, x: Tensor) -> Tensor:
        """What each position gives to its group's number, ``(B, G, N)``: the same for every query."""
        p, g = widened(self.query(x) if self.key is None else self.key(x)), widened(self.value(x))
        return (p * g).unflatten(1, (self.groups, -1)).sum(2).flatten(2)

    @staticmethod
    def _projected(layer: nn.Module, x: Tensor) -> Tensor:
        return convolved_rows(layer, x).unflatten(2, x.shape[2:])

    def _kernel(self, p: Tensor, g: Tensor, power: int) -> Tensor:
        """<p^k, g>, one number ``(B, G)`` a sample and group."""
        p, g = (widened(s).unflatten(1, (self.groups, -1)).flatten(2) for s in (p, g))
        products = g if power == 0 else p.pow(power) * g
        if self.decay:
            products = products * (-self.gamma * p.square()).exp()
        # a power, not math.sqrt, keeps the size free in exported programs
        return products.sum(2) / (p.shape[2] ** 0.5 if self.scale else 1.0)

    def _wide_norm(self, y: Tensor) -> Tensor:
        """The normalisation of a block in half precision, with its parameters widened."""
        wide = {
            name: t.to(y.dtype) for name, t in self.norm.state_dict(keep_vars=True).items() if t.is_floating_point()
        }
        return torch.func.functional_call(self.norm, wide, (readable(self.norm, y),))

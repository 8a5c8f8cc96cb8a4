"""Selection, four ways: among items or of a place in the map, by one choice (hard) or by an expectation (soft).

Traps: a choice has no gradient; the policy learns from ``reinforce_loss`` alone, and sees features that it does not
change; the log-probability is that of the sample as drawn, the place that is read is clamped to the map.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Positive
from lookfar.blocks._base import block
from lookfar.blocks._layers import Placement
from lookfar.ops._precision import averaged, widened, without_autocast
from lookfar.ops.adaptive_average import adaptive_average
from lookfar.ops.sampling import affine_sample, glimpse_sensor

_GRID = 4  # what the policy sees of a map that it chooses a place of


class Selection(NamedTuple):
    """What was selected.

    Attributes:
        output: One item ``(B, C, 1, 1)``, or a window ``(B, C, k, k)``.
        where: Weights of the items ``(B, N)``, one of them 1 where the choice is hard; or the window's place (B, 2).
        log_probability: Of the choice, ``(B,)``; 0 where it is soft.
        baseline: The reward that was expected, ``(B,)``; 0 where the choice is soft.
        entropy: Of the policy, ``(B,)``; that of a place is the same for all, 0 where the choice is soft.
    """

    output: Tensor
    where: Tensor
    log_probability: Tensor
    baseline: Tensor
    entropy: Tensor


@block(
    "hard_attention",
    title="Hard and soft selection",
    paper="Recurrent Models of Visual Attention (NeurIPS 2014)",
    arxiv="1406.6247",
    formula=(
        r"\text{items, hard:} \quad y = x_l, \quad l \sim \text{softmax}(s), \quad s_n = w^\top \tanh(W x_n + b)",
        r"\text{items, soft:} \quad y = \sum_n \text{softmax}_n(s)\,x_n",
        r"\text{place, hard:} \quad y = \text{window}(x, l), \quad l \sim \mathcal{N}(\mu, \sigma^2)",
        r"\text{place, soft:} \quad y = \text{window}(x, \mu), \text{ sampled with gradients to } \mu",
    ),
    family="where",
    kind="layer",
    complexity="N C",
    memory="N",
    verified=("equations; expectation of the hard read-out by enumeration, REINFORCE by training (no code exists)",),
    attends="maps",
    residual=False,
    aliases=("selection",),
    differences=(
        "The taxonomy (items or a place, hard or soft) is of arXiv:1601.06823, which has no code; the policies here "
        "are the smallest that can do it.",
        "In evaluation the likeliest item and the mean place are taken, nothing is drawn.",
    ),
)
class HardAttention(nn.Module):
    """Selects from a map what a policy finds in it.

    y = x_l, l ~ softmax(s) (items, hard), or y = sum_n softmax(s)_n x_n (items, soft), s_n = w . tanh(W x_n + b)
    y = window at l ~ N(mu, sigma^2) (place, hard), or window sampled at mu, with gradients to mu (place, soft)

    Train what follows by its own loss, and a hard policy by ``lookfar.ops.reinforce_loss(selection.log_probability,
    reward, selection.baseline, entropy=selection.entropy)``, which is 0 in its gradient for the soft twins. Without the
    entropy a choice among items gets stuck from some starts: it is sure before it has tried enough.

    Args:
        channels: Channels C of the map.
        selection: Among ``items``, the positions' features, or of a ``place``.
        hard: Choose one, else take the expectation or the differentiable window.
        kernel_size: Side of the window of a place.
        inner_channels: Width of the policy.
        sigma: Standard deviation of the place, whose coordinates are in [-1, 1].

    Shape: ``(B, C, H, W) ->`` :class:`Selection`: output ``(B, C, 1, 1)`` or ``(B, C, k, k)``, where, log_probability,
        baseline, entropy.

    Raises:
        ValueError: An unknown selection, a sigma that is not positive.

    Example:
        >>> block = HardAttention(16)
        >>> block(torch.randn(2, 16, 6, 5)).output.shape
        torch.Size([2, 16, 1, 1])
    """

    def __init__(
        self,
        channels: int,
        *,
        selection: Literal["items", "place"] = "items",
        hard: bool = True,
        kernel_size: int = 8,
        inner_channels: int = 16,
        sigma: Positive = 0.1,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        self.selection, self.hard, self.kernel_size, self.sigma = selection, hard, kernel_size, sigma
        # a baseline that sees x as a constant: no derivative of the output is its gradient
        self.exact_gradient = not hard
        if selection == "place":
            self.position_dependent = "the policy sees where in the map its features lie"
        self.reduce = nn.Conv2d(channels, inner_channels, 1, **dd)
        items = selection == "items"
        self.score = nn.Conv2d(inner_channels, 1, 1, bias=False, **dd) if items else None
        self.locate = None if items else nn.Linear(inner_channels * _GRID**2, 2, **dd)
        self.expect = nn.Linear(channels, 1, **dd) if hard else None

    def forward(self, x: Tensor) -> Selection:
        seen = x.detach() if self.hard else x
        output, where, chance, entropy = self._item(x, seen) if self.score is not None else self._place(x, seen)
        baseline = torch.zeros_like(chance)
        if self.expect is not None:
            baseline = self.expect(averaged(seen.flatten(2), 2).to(x.dtype))[:, 0]
        return Selection(output, where.to(x.dtype), chance.to(x.dtype), baseline.to(x.dtype), entropy.to(x.dtype))

    def maps(self, x: Tensor) -> Tensor:
        """Where the policy looks, ``(B, 1, N)``: the items' chances, or the density of the window's centre."""
        if self.score is not None:
            return self._logits(x).softmax(1)[:, None]
        H, W = x.shape[2:]
        y, x_ = ((2 * torch.arange(n, device=x.device) + 1) / n - 1 for n in (H, W))
        mean = self._mean(x)
        distance = (x_ - mean[:, :1]).square()[:, None, :] + (y - mean[:, 1:]).square()[:, :, None]
        return (-distance / (2 * self.sigma**2)).flatten(1).softmax(1)[:, None]

    def _logits(self, x: Tensor) -> Tensor:
        assert self.score is not None
        return widened(self.score(self.reduce(x).tanh()).flatten(1))

    def _mean(self, x: Tensor) -> Tensor:
        assert self.locate is not None
        seen = self.reduce(adaptive_average(x, _GRID).to(x.dtype)).relu().flatten(1)
        return widened(self.locate(seen)).tanh()

    def _item(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits = self._logits(seen)
        if not self.hard:
            where = logits.softmax(1)
            with without_autocast(x):
                mixed = (widened(x.flatten(2)) @ where[..., None]).to(x.dtype)
            none = torch.zeros_like(logits[:, 0])
            return mixed[..., None], where, none, none
        if self.training:
            # the first of exponential clocks to ring, with rates exp(logits), is drawn from the softmax
            index = (logits.detach() - torch.empty_like(logits).exponential_().log()).argmax(1, keepdim=True)
        else:
            index = logits.argmax(1, keepdim=True)
        output = x.flatten(2).gather(2, index[:, None].expand(-1, x.shape[1], -1))[..., None]
        where = torch.zeros_like(logits).scatter(1, index, 1.0)
        chances = logits.log_softmax(1)
        return output, where, chances.gather(1, index)[:, 0], -(chances.exp() * chances).sum(1)

    def _place(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, k = self._mean(seen), self.kernel_size
        if not self.hard:
            # k pixels wide: a step of the output is one of the input
            wide, high = (torch.full_like(mean[:, 0], (k - 1) / max(n - 1, 1)) for n in (x.shape[3], x.shape[2]))
            none = torch.zeros_like(wide)
            theta = torch.stack([wide, none, mean[:, 0], none, high, mean[:, 1]], 1).unflatten(1, (2, 3))
            return affine_sample(x, theta, (k, k)), mean, none, none
        drawn = mean.detach() + self.sigma * torch.randn_like(mean) if self.training else mean
        chance = -((drawn.detach() - mean) / self.sigma).square() / 2 - math.log(self.sigma * math.sqrt(2 * math.pi))
        place = drawn.clamp(-1, 1)
        entropy = torch.full_like(mean[:, 0], 1 + math.log(2 * math.pi * self.sigma**2))
        return glimpse_sensor(x, place, kernel_size=k), place, chance.sum(1), entropy

"""EMANet: every position is rebuilt from K bases that a few EM steps fit to the image.

Traps: the EM steps are constants to autograd, so the first convolution never learns (``gradient`` offers the forms in
which it does); the bases follow a moving average in the forward pass of training, which the authors keep in their
training script. Activation checkpointing in training would update them twice and is not supported.
"""

from functools import partial
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Share, Steps, divides
from lookfar.blocks._base import block
from lookfar.blocks._layers import CONV, Dims, Norm, Placement, added, norm_of, normed
from lookfar.blocks._reading import weights_of
from lookfar.ops._autograd import traced
from lookfar.ops._layout import positions, to_map
from lookfar.ops._rectified import rectified
from lookfar.ops.expectation_maximization import (
    Gradient,
    Variant,
    expectation_maximization,
    expectation_maximization_weights,
    responsibilities,
)

SLOW_BATCH_NORM = partial(nn.BatchNorm2d, momentum=3e-4)  # the authors' momentum


@block(
    "expectation_maximization",
    title="Expectation-maximization attention (EMANet)",
    paper="Expectation-Maximization Attention Networks for Semantic Segmentation (ICCV 2019)",
    arxiv="1907.13426",
    formula=(
        r"y = x + \text{BN}(P\,\text{ReLU}(r)), \quad r_n = \sum_k z_{nk}\,\mu_k",
        r"z_{nk} = \text{softmax}_k(h_n^\top \mu_k),"
        r" \quad \mu_k = \text{unit}\left(\frac{\sum_n z_{nk}\,h_n}{\sum_n z_{nk}}\right), \quad T \text{ times}",
        r"h = W x + b",
    ),
    family="low_rank",
    complexity="N C^2 + T N K C",
    memory="N C + N K",
    verified=(
        "XiaLiPKU/EMANet@f09ffac:network.py",
        "open-mmlab/mmsegmentation@1.2.2:mmseg/models/decode_heads/ema_head.py",
    ),
    attends="weights",
    aliases=("emanet", "emau"),
    differences=(
        "In the paper the first convolution is learned; in both codes r is a constant to autograd, dr/dW = dr/dx = 0, "
        "and it stays as it was drawn. The default is as published (`gradient='none'`); `gradient='last'` or `'full'` "
        "learns it. After 60 steps of a small fit it has moved by 0, and by more than 0.3 of its length under the two "
        "options, whose error is then less than 0.8 of the published one's.",
        "The authors average the bases without normalising the mean, mmsegmentation normalises it; they also guard "
        "divisions differently. `variant` selects, the authors' is the default.",
        "The authors' norm moves its statistics by 0.0003 of a batch's at each step, for trainings of 30 000: after "
        "1000 steps 74 % of them are still those it started with, and in evaluation the block is another than in "
        "training. Shorter trainings want `norm_layer=nn.BatchNorm2d`.",
        "The published unit ends in a ReLU: `final_act=True`; loading published weights switches it on.",
    ),
    author_keys={
        "mu": "bases",
        "conv1": "embed",
        r"conv2\.0": "project",
        r"conv2\.1": "norm",
        r"ema_module\.bases": "bases",
        r"ema_mid_conv\.conv": "embed",
        r"ema_out_conv\.conv": "project",
        r"ema_out_conv\.bn": "norm",
    },
)
class ExpectationMaximization(nn.Module):
    """Adds to every position its mixture of K bases, fitted to the image by T steps of soft clustering.

    y = x + BN(P relu(r)), r_n = sum_k z_nk mu_k, (z, mu) from T EM steps on h = W x + b

    The steps start at ``bases``. As published r is a constant to autograd: dr/dx = dr/dW = 0 exactly, x learns through
    the residual alone and W stays as it was drawn. In training every forward pass moves ``bases`` (over all processes
    of a group). Activation checkpointing would run it twice and give the gradient of moved bases: train without, or
    with ``momentum=0``.

    Args:
        bases: Number K of bases.
        iterations: Number T of EM steps.
        eval_iterations: T in eval, where it differs.
        heads: Groups of channels that are clustered by themselves; the authors have one.
        momentum: Share of a training batch's bases in their moving average.
        variant: Whose rules: ``authors`` or ``mmseg`` (see the module's differences).
        gradient: ``none``: no gradient through EM, W stays as drawn and is frozen, as published. ``last``: through
            the last EM step. ``full``: through all, the derivative of the output.
        reasoning: The EM steps on the image; off, the stored bases rebuild every position, r_n = sum_k z_nk bases_k
            (in training they still follow what one step would fit).
        norm_layer: Normalisation after the last convolution; the authors' follows slowly, see the differences.
        final_act: End in a ReLU, as published.
        zero_init: Start as the identity (the normalisation's weight 0); else as the authors do.

    Shape: ``(B, C, *S) -> (B, C, *S)``, one, two or three axes by ``dims``

    Raises:
        ValueError: ``heads`` does not divide ``channels``; an unknown ``variant`` or ``gradient``; no iterations.
        RuntimeError: Under activation checkpointing in training, unless ``momentum`` is 0.

    Example:
        >>> block = ExpectationMaximization(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    bases: Tensor

    def __init__(
        self,
        channels: int,
        *,
        bases: int = 64,
        iterations: Steps = 3,
        eval_iterations: Steps | None = None,
        heads: int = 1,
        momentum: Share = 0.1,
        variant: Variant = "authors",
        gradient: Gradient = "none",
        reasoning: bool = True,
        norm_layer: Norm = SLOW_BATCH_NORM,
        final_act: bool = False,
        dims: Dims = 2,
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        divides("heads", heads, channels=channels)
        self.iterations, self.eval_iterations = iterations, eval_iterations or iterations
        self.heads, self.momentum = heads, momentum
        self.variant: Variant = variant
        self.gradient: Gradient = gradient
        self.reasoning = reasoning
        self.final_act = final_act
        if not reasoning:
            self.attends = "maps"  # what is mixed is stored: no position gives anything to another
        self.embed = CONV[dims](channels, channels, 1, **dd)
        self.embed.requires_grad_(gradient != "none")
        self.project = CONV[dims](channels, channels, 1, bias=False, **dd)
        self.norm = norm_of(norm_layer, dims)(channels, **dd)
        for conv in (self.embed, self.project):
            nn.init.normal_(conv.weight, std=(2 / channels) ** 0.5)
        if zero_init:
            nn.init.zeros_(cast(nn.Parameter, self.norm.weight))
        mu = torch.empty(heads, channels // heads, bases, **dd).normal_(std=(2 / bases) ** 0.5)
        self.register_buffer("bases", F.normalize(mu, dim=1))

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """Without a gradient through EM the first convolution never learns."""
        return ("embed.weight", "embed.bias") if self.gradient == "none" else ()

    @property
    def exact_gradient(self) -> bool:
        """Whether the gradient is the derivative of the output: not as published."""
        one_step = self._steps == 1 or not self.reasoning
        return self.gradient == "full" or (self.gradient == "last" and one_step)

    @property
    def _steps(self) -> int:
        return self.iterations if self.training else self.eval_iterations

    def forward(self, x: Tensor) -> Tensor:
        # no name holds the reconstruction, nor the fitted bases, while the block ends
        return self._finish_map(x, rectified(to_map(self._moving_bases(x), x)))

    def _moving_bases(self, x: Tensor) -> Tensor:
        """The reconstruction ``(B, h, N, C/h)``; in training the bases follow the fitted ones."""
        mixed, fitted = self.reconstruct(x)
        if self.training and self.momentum:
            if not torch.compiler.is_compiling() and _backward_runs():
                raise RuntimeError(
                    "expectation_maximization moves its bases in every forward pass of training, and activation "
                    "checkpointing runs it twice: give it momentum=0, or leave its stage out."
                )
            self.update_bases(fitted)
        return mixed

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Equivalent weights ``(B, h, Q, N)`` through the fitted bases; rows do not sum to one."""
        if not self.reasoning:
            raise ValueError("without EM no position gives anything to another; maps(x) says who takes which base")
        tokens, merged = self._tokens(x)
        return expectation_maximization_weights(
            tokens, self.bases, queries, iterations=self._steps, variant=self.variant, **merged
        )

    def maps(self, x: Tensor) -> Tensor:
        """How much each position takes of each base, ``(B, h K, N)``: the last responsibilities."""
        tokens, merged = self._tokens(x)
        steps = self._steps if self.reasoning else 1
        found = responsibilities(tokens, self.bases, iterations=steps, variant=self.variant, **merged)
        return found.flatten(1, 2)

    def values(self, x: Tensor) -> Tensor:
        """What is mixed: h ``(B, h, N, C/h)``."""
        return self._heads(self.embed(x))

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output from its input and the reconstruction ``(B, h, N, C/h)``."""
        return self._finish_map(x, rectified(to_map(mixed, x)))

    def _finish_map(self, x: Tensor, y: Tensor) -> Tensor:
        y = self.project(y)
        y = normed(self.norm, y)
        y = added(self, x, y)
        return rectified(y) if self.final_act else y

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The EM part alone: reconstruction ``(B, h, N, C/h)`` and the fitted bases ``(B, h, C/h, K)``."""
        tokens, merged = self._tokens(x)
        return expectation_maximization(
            tokens,
            self.bases,
            iterations=self._steps,
            variant=self.variant,
            gradient=self.gradient,
            fit=self.reasoning,
            **merged,
        )

    def update_bases(self, fitted: Tensor) -> None:
        """Move the bases towards the mean of the fitted ones ``(B, h, C/h, K)``, over all processes of a group.

        An empty batch moves nothing: the mean of nothing would make them NaN for ever.
        """
        total, count = fitted.detach().sum(0), fitted.shape[0]  # no no_grad: exported, it could not be loaded again
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # one message; every process must send it, also one whose batch is empty
            message = torch.cat([total.flatten(), total.new_full((1,), count)])
            dist.all_reduce(message)
            total, count = message[:-1].view_as(total), message[-1]
            momentum = self.momentum * (count > 0).to(total.dtype)
            mean = total / count.clamp_min(1)
        elif count:
            momentum, mean = self.momentum, total / count
        else:
            return
        if self.variant == "mmseg":
            mean = F.normalize(mean, dim=1)
        self.bases.copy_((1 - momentum) * self.bases + momentum * mean)

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published weights belong to the unit with its final ReLU, which is switched on."""
        self.final_act = True
        return state

    def _heads(self, x: Tensor) -> Tensor:
        return x.flatten(2).unflatten(1, (self.heads, -1)).transpose(-2, -1)  # (B, h, N, C/h), a view

    def _tokens(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
        """What EM runs on: with one head the convolution is merged into the bases, and the map stays as it is.

        Merged it costs two products with the bases a step, which on a small map are more than the convolution.
        """
        if self.heads == 1 and (traced() or positions(x) > 2 * self._steps * self.bases.shape[2]):
            weight, bias = weights_of(self.embed)
            return self._heads(x), {"weight": weight.flatten(1), "bias": bias}
        embedded = self.embed(x)
        return self._heads(embedded.detach() if self.gradient == "none" else embedded), {}


def _backward_runs() -> bool:
    """Whether a backward pass is under way in this thread, so that a forward pass can only be a recomputation.

    Torch says it by a private call alone, the one by which its own checkpointing asks.
    """
    task = getattr(torch._C, "_current_graph_task_id", None)
    return task is not None and task() != -1

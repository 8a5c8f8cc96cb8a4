"""A block that has one map for all queries, made of one that has a map for each, without training.

Where the map is the same for every query, ``nonlocal``, ``disentangled_nonlocal`` and ``position_attention`` with a
softmax are ``simplified_nonlocal``: values, output convolution and norm are copied (the convolution's bias goes into
the norm's running mean, or stays one), and only the masks w of ``softmax_j(w . x_j)`` are sought. They start at
``scale * W_k^T mean(q)``, which is right where queries are constant, and are fitted to the mean maps of images by
cross-entropy, a convex problem. Zero masks weigh all keys alike.

The error of the block's output says little of what a network loses by it: that is measured on the network.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lookfar.blocks import block_info
from lookfar.blocks._layers import keeps_input
from lookfar.blocks._projections import QueryKeyValue
from lookfar.blocks._reading import weights_of
from lookfar.blocks.disentangled_nonlocal import DisentangledNonLocal
from lookfar.blocks.global_context import SimplifiedNonLocal
from lookfar.diagnostics.maps import inner_block
from lookfar.diagnostics.replacing import is_branch, mean_weights, replay_mean
from lookfar.ops._layout import to_tokens

SIMPLIFIED = ("nonlocal", "disentangled_nonlocal", "position_attention")
_ITERATIONS = 200  # of L-BFGS: seconds at most, a few suffice


def why_not_simple(module: nn.Module) -> str:
    """Why a block cannot be made a ``simplified_nonlocal``, in words; an empty string where it can.

    >>> from lookfar import create_block
    >>> why_not_simple(create_block("criss_cross", 16))
    'criss_cross cannot become one map: nonlocal, disentangled_nonlocal and position_attention can'
    >>> why_not_simple(create_block("nonlocal", 16, mode="dot_product"))
    "nonlocal: its weights are not a softmax (normalization='none')"
    """
    try:
        block: Any = inner_block(module)
    except ValueError:
        return f"{type(module).__name__} is not a block of the registry: {', '.join(SIMPLIFIED)} can become one map"
    name = block_info(block).name
    if name not in SIMPLIFIED:
        return f"{name} cannot become one map: {', '.join(SIMPLIFIED[:-1])} and {SIMPLIFIED[-1]} can"
    if block.normalization != "softmax" and getattr(block, "terms", "") != "unary":
        return f"{name}: its weights are not a softmax (normalization={block.normalization!r})"
    if block.subsample > 1 and block.subsample_order == "after":
        return f"{name}: keys and values are pooled after their convolutions, which one pooled vector cannot be"
    if block.norm is not None and getattr(block.norm, "running_mean", None) is None:
        return f"{name}: its norm is {type(block.norm).__name__}, want a BatchNorm with running statistics or none"
    return ""


def average_of(module: nn.Module) -> SimplifiedNonLocal:
    """The block with the plain average of the values in the place of its weighted sums: all copied, masks of zero.

    Args:
        module: A block for which :func:`why_not_simple` has no reason.

    Raises:
        ValueError: Another block.

    >>> from lookfar import create_block
    >>> x, block = torch.randn(2, 16, 5, 4), create_block("nonlocal", 16, zero_init=False).eval()
    >>> _ = nn.init.zeros_(block.query.weight)  # with its bias, zero at the start: all keys alike
    >>> torch.allclose(average_of(block)(x), block(x), atol=1e-6)
    True
    """
    if reason := why_not_simple(module):
        raise ValueError(reason)
    block: Any = inner_block(module)
    factors = _factors(block)
    weight, bias = _matrix(block, block._layers[2], _channels(block))
    out, out_bias = _matrix(block, block.project, weight.shape[0])
    options = options_of(block)
    simple = SimplifiedNonLocal(_channels(block), device=weight.device, dtype=weight.dtype, **options)
    with torch.no_grad():
        nn.init.zeros_(simple.mask.weight)
        nn.init.zeros_(cast(Tensor, simple.mask.bias))
        simple.value.weight.copy_(weight.repeat(len(factors), 1))
        simple.value.bias.copy_(bias.repeat(len(factors)))
        assert simple.project is not None
        simple.project.weight.copy_(torch.cat([factor * out for factor in factors], 1))
        if block.norm is not None:
            simple.norm = copy.deepcopy(block.norm)
            cast(Tensor, simple.norm.running_mean).sub_(out_bias)
        elif simple.project.bias is not None:
            simple.project.bias.copy_(out_bias)
    return simple.train(block.training)


def options_of(module: nn.Module) -> dict[str, Any]:
    """The options of the ``simplified_nonlocal`` that a block becomes, those that are not its defaults.

    >>> from lookfar import create_block
    >>> options_of(create_block("nonlocal", 16))
    {'inner_channels': 8, 'norm_layer': True}
    """
    block: Any = inner_block(module)
    maps = len(_factors(block))
    options = {
        "inner_channels": maps * len(_matrix(block, block._layers[2], _channels(block))[0]),
        "heads": maps * block.heads,
        "subsample": block.subsample,
        "project_bias": block.norm is None and getattr(block.project, "bias", None) is not None,
        "norm_layer": block.norm is not None,
        "dims": block.dims,
        "residual": keeps_input(block),
    }
    defaults = {"heads": 1, "subsample": 1, "project_bias": False, "norm_layer": False, "dims": 2, "residual": True}
    return {name: value for name, value in options.items() if value != defaults.get(name)}


def with_masks(simple: SimplifiedNonLocal, masks: Tensor) -> SimplifiedNonLocal:
    """A copy with these masks ``(h, C)``."""
    other = copy.deepcopy(simple)
    with torch.no_grad():
        other.mask.weight.copy_(masks.view_as(other.mask.weight))
    return other


@torch.no_grad()
def start_masks(module: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """The masks that a block's constant part has, ``(h, C)``: scale * W_k^T mean(q) over data, beside its own masks.

    Args:
        module: A block for which :func:`why_not_simple` has no reason.
        inputs: Of the block, batches ``(B, C, *S)``.
    """
    block: Any = inner_block(module)
    if not isinstance(block, DisentangledNonLocal):
        q = _mean([block._queries_keys_values(x)[0] for x in inputs])
        return block.scale * _through_keys(block, q)
    unary = []
    for source in block._unary_sources:
        if source == "mask":
            unary.append(_matrix(block, block.mask, _channels(block))[0])
            continue
        factor = block.scale if block.combine == "multiply" else 1.0
        asked = _mean([_mean_query(block, x) for x in inputs])
        unary.append(factor * _through_keys(block, asked))
    if block.terms == "unary":
        return torch.cat(unary)
    pairwise = block.scale * _through_keys(block, _mean([block._similar(x)[0] for x in inputs]))
    return sum(unary, pairwise) if block.combine == "multiply" else torch.cat([pairwise, *unary])


def fit_masks(module: nn.Module, inputs: Sequence[Tensor], start: Tensor) -> Tensor:
    """The masks ``(h, C)`` whose maps are nearest the mean maps of images, by cross-entropy.

    Args:
        module: A block for which :func:`why_not_simple` has no reason.
        inputs: Of the block, batches ``(B, C, *S)``.
        start: ``(h, C)``, as :func:`start_masks` gives it.
    """
    block: Any = inner_block(module)
    with torch.no_grad():
        wanted = [mean_weights(block, x, block.values(x))[:, :, 0].double() for x in inputs]  # (B, h, M)
    simple = average_of(block)
    keys = [simple.values(x)[:, 0].double() for x in inputs]  # (B, M, C), as sub-sampled
    images = sum(len(x) for x in keys)
    # by channel in units of its deviation: a problem of rounder form
    spread = (sum(k.var(1, correction=0).sum(0) for k in keys) / images).sqrt()  # pyright: ignore
    spread = spread.where(spread > 1e-12 * spread.max(), torch.inf)
    masks = (start.double() * spread.where(spread.isfinite(), 0)).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [masks], max_iter=_ITERATIONS, tolerance_grad=1e-9, tolerance_change=1e-13, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        weights = (masks / spread).T
        total = torch.zeros((), dtype=torch.float64, device=masks.device)
        for k, p in zip(keys, wanted):
            total = total - (p * (k @ weights).transpose(1, 2).log_softmax(-1)).sum() / images
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    fitted = (masks / spread).detach()
    constant = start.double() * spread.isinf()  # channels that do not vary tell nothing of their masks
    return (fitted + constant).to(start.dtype)


def distil(simple: nn.Module, module: nn.Module, inputs: Sequence[Tensor], steps: int, *, lr: float = 1e-3) -> None:
    """Train a block, in evaluation mode, to give what another gives: relative squared error of what it adds.

    Args:
        simple: The block that learns, in place.
        module: The block that it learns from.
        inputs: Of both, batches ``(B, C, *S)``, taken in turn.
        steps: Of Adam; the learning rate falls to zero linearly.
        lr: The first learning rate.
    """
    with torch.no_grad():
        added = [module(x) - _sum_of(module, x) for x in inputs]
    power = sum(float(a.square().sum()) for a in added) / sum(a.numel() for a in added)
    optimizer = torch.optim.Adam([p for p in simple.parameters() if p.requires_grad], lr)
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            x, wanted = inputs[step % len(inputs)], added[step % len(inputs)]
            optimizer.zero_grad()
            ((simple(x) - _sum_of(module, x) - wanted).square().mean() / max(power, 1e-30)).backward()
            optimizer.step()


@dataclass(frozen=True)
class Errors:
    """Relative errors of what a block adds, ||F'(x) - F(x)|| / ||F(x)||, over images.

    Attributes:
        floor: Of the best block that adds one vector to all positions of an image: what is left after their mean.
        mean_map: With the image's own mean map for every query.
        of: Of each block that was asked for, by its name.
    """

    floor: float
    mean_map: float
    of: dict[str, float]


def _sum_of(module: nn.Module, x: Tensor) -> Tensor:
    """What is in a block's output beside what it adds: its input, or nothing."""
    return x.new_zeros(()) if is_branch(module) else x


@torch.no_grad()
def errors_of(module: nn.Module, others: dict[str, nn.Module], inputs: Sequence[Tensor]) -> Errors:
    """How far other blocks are from a block on some inputs, and how near any block with one vector could come.

    Args:
        module: The block.
        others: Blocks by name.
        inputs: Batches ``(B, C, *S)``.
    """
    total: dict[str, float] = dict.fromkeys(("power", "floor", "mean_map", *others), 0.0)
    block = inner_block(module)
    for x in inputs:
        own = _sum_of(module, x)
        added = (module(x) - own).double()
        axes = tuple(range(2, x.dim()))
        found = {"floor": added.mean(axes, keepdim=True), "mean_map": replay_mean(block, x) - own}
        found |= {name: other(x) - own for name, other in others.items()}
        total["power"] += float(added.square().sum())
        for name, of in found.items():
            total[name] += float((of - added).square().sum())
    power = total.pop("power")
    relative = {name: (value / power) ** 0.5 if power else float("nan") for name, value in total.items()}
    return Errors(relative.pop("floor"), relative.pop("mean_map"), relative)


def _factors(block: Any) -> list[Tensor | float]:
    """What each map's sum of values is multiplied by, map after map; each has all heads."""
    if not isinstance(block, DisentangledNonLocal):
        return [1.0 if block.gamma is None else block.gamma.detach()]
    pairwise = [] if block.terms == "unary" else [1.0 if block.gamma is None else block.gamma.detach()]
    return pairwise + ([] if block.combine == "multiply" else [1.0] * len(block._unary_sources))


def _channels(block: Any) -> int:
    """Of the block's input: where nothing projects values, they are the input."""
    layer = next(filter(None, (block.value, block.embed)))
    return layer.weight.shape[1]


def _matrix(block: nn.Module, layer: nn.Module | None, width: int) -> tuple[Tensor, Tensor]:
    """Weight ``(E, C)`` and bias ``(E,)`` of a block's 1x1 convolution; the identity where there is none."""
    if layer is None:
        like = next(block.parameters())
        return torch.eye(width, device=like.device, dtype=like.dtype), like.new_zeros(width)
    with torch.no_grad():
        weight, bias = weights_of(layer)
    weight = weight.detach().flatten(1)
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach()


def _through_keys(block: QueryKeyValue, q: Tensor) -> Tensor:
    """W_k^T q of each head, ``(h, D/h) -> (h, C)``."""
    weight, _ = _matrix(block, block._layers[1], q.numel())
    return (q.to(weight).unsqueeze(1) @ weight.unflatten(0, q.shape)).squeeze(1)


def _mean_query(block: DisentangledNonLocal, x: Tensor) -> Tensor:
    """What whitening took off the queries, ``(B, h, 1, D/h)``: the query of the unary term."""
    q = to_tokens(block._maps(x)[0])
    mean = cast(Tensor, block._whitened(q, "query")[1])
    return mean.expand(len(q), -1, -1, q.shape[-1]).unflatten(-1, (block.heads, -1)).squeeze(1).transpose(1, 2)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    """Over images and queries, ``(B, h, N, D) -> (h, D)``."""
    total = sum(t.double().mean(2).sum(0) for t in tensors)
    return cast(Tensor, total) / sum(len(t) for t in tensors)

"""OCR: pixels look at soft object regions, one a class, that a first guess at the labels has gathered.

Traps: the gathering softmax runs over positions, so every class gives a region, also one that is absent; it takes raw
logits, not probabilities; they are not detached, the second loss trains the first guess too.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Positive, Share, divides
from lookfar.blocks._base import block
from lookfar.blocks._layers import (
    CONV,
    DROPOUT,
    ConvNorm,
    Dims,
    Norm,
    Placement,
    max_pool,
    only_on_images,
    resized,
)
from lookfar.blocks._reading import on_descriptors
from lookfar.blocks.pyramid_pooling import AtrousConv
from lookfar.ops._layout import match_format, to_tokens
from lookfar.ops._precision import softmax, wide, widened, without_autocast
from lookfar.ops.attention import Normalization, attention_weights

_INSIDE = r"((ocr\.)?(context\.2\.)?object_context_block\.)?"


@block(
    "object_contextual",
    title="Object-contextual representations (OCR)",
    paper="Object-Contextual Representations for Semantic Segmentation (ECCV 2020)",
    arxiv="1909.11065",
    formula=(
        r"r_k = \sum_n \text{softmax}_n(l_{kn})\,x_n",
        r"c_n = \text{act}\left(\text{norm}\left(W_{\text{up}} \sum_k \text{softmax}_k\left(\frac{q_n^\top"
        r" k_k}{\sqrt{D}}\right) v_k\right)\right), \quad k_k \text{ and } v_k \text{ from } r_k",
        r"y_n = \text{act}(\text{norm}(W_f\,[\,c_n,\; x_n\,]))",
    ),
    family="low_rank",
    kind="head",
    complexity="N K C, K classes",
    memory="N (K + C)",
    verified=(
        "openseg-group/openseg.pytorch@aefc7551:lib/models/modules/spatial_ocr_block.py",
        "open-mmlab/mmsegmentation@1.2.2:mmseg/models/decode_heads/ocr_head.py (its two modules)",
    ),
    attends="maps",
    residual=False,
    aliases=("ocr", "ocrnet"),
    differences=(
        "The authors' convolutions have biases although a norm follows them (the default), mmsegmentation's have none "
        "(bias=False).",
        "The authors' upper bound (use_gt) is `forward(x, logits, labels)`; its second, background context (use_bg) "
        "cannot run without labels and is left out.",
    ),
    author_keys={
        rf"{_INSIDE}f_pixel\.0": "query.0.conv",
        rf"{_INSIDE}f_pixel\.1\.0": "query.0.norm",
        rf"{_INSIDE}f_pixel\.2": "query.1.conv",
        rf"{_INSIDE}f_pixel\.3\.0": "query.1.norm",
        rf"{_INSIDE}f_object\.0": "key.0.conv",
        rf"{_INSIDE}f_object\.1\.0": "key.0.norm",
        rf"{_INSIDE}f_object\.2": "key.1.conv",
        rf"{_INSIDE}f_object\.3\.0": "key.1.norm",
        rf"{_INSIDE}f_down\.0": "value.conv",
        rf"{_INSIDE}f_down\.1\.0": "value.norm",
        rf"{_INSIDE}f_up\.0": "mix.conv",
        rf"{_INSIDE}f_up\.1\.0": "mix.norm",
        r"(ocr\.)?conv_bn_dropout\.0": "fuse.conv",
        r"(ocr\.)?conv_bn_dropout\.1\.0": "fuse.norm",
        **{
            rf"(object_context_block\.)?{theirs}\.{layer}": rf"{ours}.{place}"
            for layer, place in (("conv", "conv"), ("(bn|gn|in)", "norm"))
            for theirs, ours in (
                (r"query_project\.(\d)", r"query.\2"),
                (r"key_project\.(\d)", r"key.\2"),
                ("value_project", "value"),
                ("out_project", "mix"),
                ("bottleneck", "fuse"),
            )
        },
        r"context\.0": "first.conv",
        r"context\.1\.0": "first.norm",
        r"conv2\.0": "branches.0.conv",
        r"conv2\.1\.0": "branches.0.norm",
        r"conv3\.0": "branches.1.conv",
        r"conv3\.1\.0": "branches.1.norm",
        r"conv4\.0": "branches.2.conv",
        r"conv4\.1\.0": "branches.2.norm",
        r"conv5\.0": "branches.3.conv",
        r"conv5\.1\.0": "branches.3.norm",
    },
)
class ObjectContextual(nn.Module):
    """Every position attends to K regions, the means of the positions that a first guess gave to each class.

    r_k = sum_n softmax_n(l_kn) x_n; y = act(norm(W_f [act(norm(W_up softmax_k(q_n . k_k / sqrt(D)) v_k)), x]))

    W_up acts on the K regions, exactly, before they are mixed for N positions.

    Args:
        channels: Channels C of the input.
        inner_channels: D, of queries, keys and values; by default half of
            ``channels``, with ``dilations`` half of a branch.
        heads: Parallel attentions over the regions.
        regions: Where the first guess comes from: ``logits`` of classes beside the map, as published, or ``learned``, a
            1x1 convolution of the map; the block then takes the map alone, and keeps its shape.
        nodes: K of ``learned`` regions; a quarter of ``channels`` by default.
        reasoning: The relation of positions and regions; off, every position takes the regions by the first guess
            itself, softmax_k(l_kn), and there are no queries and keys.
        subsample: Stride of the max-pooling of the queries; the context is resized back.
        inverse_temperature: Factor on the logits when regions are gathered.
        dilations: Put the context beside a 1x1 and dilated 3x3 convolutions instead of beside x (ASP-OCR).
        branch_channels: Channels of the 1x1 and of each dilated convolution; by default half of ``channels``.
        bias: Biases of the convolutions.
        dropout: Dropout on the last map, in training.
        norm_layer: After every convolution; None for none.

    Shape: ``(B, C, *S), (B, K, *S) -> (B, out_channels, *S)``, the second are the raw logits of K classes; with
        ``learned`` regions ``(B, C, *S) -> (B, out_channels, *S)``; one, two or three axes by ``dims``

    Raises:
        ValueError: Heads that do not divide the inner channels; an unknown ``normalization``; without ``reasoning``
            several heads, ``subsample`` or another normalisation, which have no meaning there; ``nodes`` where logits
            give the regions; logits where the regions are learned, or none where they are not.

    Example:
        >>> block = ObjectContextual(16)
        >>> block(torch.randn(2, 16, 6, 5), torch.randn(2, 5, 6, 5)).shape
        torch.Size([2, 16, 6, 5])
    """

    dims: Dims

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        out_channels: int | None = None,
        heads: int = 1,
        regions: Literal["logits", "learned"] = "logits",
        nodes: int | None = None,
        subsample: int = 1,
        normalization: Normalization = "softmax",
        reasoning: bool = True,
        inverse_temperature: Positive = 1.0,
        dilations: Sequence[int] | None = None,
        branch_channels: int | None = None,
        bias: bool = True,
        dropout: Share = 0.0,
        norm_layer: Norm | None = nn.BatchNorm2d,
        dims: Dims = 2,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        layers: dict[str, Any] = {"bias": bias, "norm_layer": norm_layer, "act_layer": nn.ReLU, "dims": dims, **dd}
        width = channels if dilations is None else branch_channels or max(channels // 2, 1)
        inner, out = inner_channels or max(width // 2, 1), out_channels or channels
        divides("heads", heads, inner_channels=inner)
        if not reasoning and (heads > 1 or subsample > 1 or normalization != "softmax"):
            raise ValueError(f"without reasoning no attention has {heads=}, {subsample=} or {normalization=}")
        if nodes is not None and regions == "logits":
            raise ValueError(f"nodes is for regions='learned': the logits say how many there are, got {nodes=}")
        self.channels, self.heads, self.subsample = channels, heads, subsample
        self.inverse_temperature = inverse_temperature
        self.normalization: Normalization = normalization
        self.query = self.key = self.first = self.branches = None
        if reasoning:
            self.query = nn.Sequential(ConvNorm(width, inner, **layers), ConvNorm(inner, inner, **layers))
            self.key = nn.Sequential(ConvNorm(width, inner, **layers), ConvNorm(inner, inner, **layers))
        self.value = ConvNorm(width, inner, **layers)
        self.mix = ConvNorm(inner, width, **layers)
        if dilations is not None:
            only_on_images(dims, "dilations", "without them any axes do")
            self._add_branches(channels, width, dilations, **layers)
        self.fuse = ConvNorm(width * (2 if dilations is None else 2 + len(dilations)), out, **layers)
        self.dropout = DROPOUT[dims](dropout)
        # a bias is the same at all positions: the softmax over them cancels it, that over the regions does not
        learned = partial(CONV[dims], width, nodes or max(channels // 4, 1), 1, bias=not reasoning, **dd)
        self.guess = learned() if regions == "learned" else None

    def _add_branches(self, channels: int, width: int, dilations: Sequence[int], **layers: Any) -> None:
        """Convolutions beside the relation, which then works on a narrowed map."""
        self.branches = nn.ModuleList([ConvNorm(channels, width, **layers)])
        self.branches.extend(AtrousConv(channels, width, 3, dilation=d, **layers) for d in dilations)
        layers["bias"] = True
        self.first = ConvNorm(channels, width, 3, **layers)

    def sample_inputs(self, size: tuple[int, ...], *, batch: int = 2) -> tuple[Tensor, ...]:
        """Random features and, where they are wanted, logits of five classes."""
        x = torch.randn(batch, self.channels, *size)
        return (x, torch.randn(batch, 5, *size)) if self.guess is None else (x,)

    def forward(self, x: Tensor, logits: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """``labels`` ``(B, H, W)`` in place of both guesses give the ideal regions, and each position its own.

        All positions whose label is none of the K classes make up one region more, as in the authors' code.
        """
        pixels, logits = self._first_guess(x, logits)
        if labels is None:
            regions = self.regions(pixels, logits)
            return self.distribute(x, pixels, regions, None if self.query is not None else _shares(logits))
        if labels.shape != (x.shape[0], *x.shape[2:]):
            raise ValueError(f"want labels {(x.shape[0], *x.shape[2:])}, got {tuple(labels.shape)}")
        K = logits.shape[1]
        classes = torch.where((labels >= 0) & (labels < K), labels, K).flatten(1).long()
        own = F.one_hot(classes, K + 1).to(wide(x))  # (B, N, K + 1)
        with without_autocast(x):
            means = widened(pixels.flatten(2)) @ F.normalize(own, p=1, dim=1)
        return self.distribute(x, pixels, means.to(x.dtype), own[:, None].expand(-1, self.heads, -1, -1))

    def regions(self, pixels: Tensor, logits: Tensor) -> Tensor:
        """Means of the positions under each class's softmax: ``(B, C, H, W), (B, K, H, W) -> (B, C, K)``."""
        with without_autocast(pixels):
            weights = softmax(self.inverse_temperature * widened(logits.flatten(2)))
            return (widened(pixels.flatten(2)) @ weights.transpose(1, 2)).to(pixels.dtype)

    def distribute(self, x: Tensor, pixels: Tensor, regions: Tensor, weights: Tensor | None = None) -> Tensor:
        """The output from the regions: ``pixels`` ask them, the answer is fused with ``x`` or with its branches."""
        context = self.context(pixels, regions, weights)
        beside = [pixels] if self.branches is None else [branch(x) for branch in self.branches]
        return match_format(self.dropout(self.fuse(torch.cat([context, *beside], 1))), x)

    def context(self, pixels: Tensor, regions: Tensor, weights: Tensor | None = None) -> Tensor:
        """What ``pixels`` take of the regions: ``(B, C, H, W), (B, C, K) -> (B, C, H, W)``.

        Known ``weights`` ``(B, h, N, K)`` are taken as they are.
        """
        seen = pixels
        if weights is None:
            seen = max_pool(pixels, self.subsample)
            weights = self._attention(seen, regions)
        values = self.value(self._as_map(regions)).flatten(2).unflatten(1, (self.heads, -1))  # (B, h, D/h, K)
        with without_autocast(pixels):
            values = widened(values)
            # a head's values stand in its own channels, so that one convolution serves all heads
            apart = torch.eye(self.heads, dtype=values.dtype, device=values.device)[:, None, :, None]
            columns = (apart * values.transpose(2, 3).unsqueeze(3)).flatten(3).flatten(1, 2)  # (B, h K, D)
            context = on_descriptors(self.mix, weights.transpose(1, 2).flatten(2), columns, tuple(seen.shape[2:]))
        context = context.to(pixels.dtype)
        if context.shape[2:] != pixels.shape[2:]:
            context = resized(context, pixels.shape[2:])
        return context

    def maps(self, x: Tensor, logits: Tensor | None = None) -> Tensor:
        """Weights of the positions over the regions, ``(B, h, N, K)``."""
        pixels, logits = self._first_guess(x, logits)
        if self.query is None:
            return _shares(logits)
        return self._attention(max_pool(pixels, self.subsample), self.regions(pixels, logits))

    def _first_guess(self, x: Tensor, logits: Tensor | None) -> tuple[Tensor, Tensor]:
        """The map that asks and gives the regions, and the logits (B, K, *S) that say what belongs to each."""
        pixels = x if self.first is None else self.first(x)
        if self.guess is not None:
            if logits is not None:
                raise ValueError("regions='learned' takes the map alone, got logits beside it")
            return pixels, self.guess(pixels)
        if logits is None:
            raise ValueError("want logits (B, K, *S) of K classes beside the map, or a block of regions='learned'")
        if logits.shape[2:] != x.shape[2:]:
            raise ValueError(f"features and logits lie on one grid, got {tuple(x.shape)} and {tuple(logits.shape)}")
        return pixels, logits

    def _as_map(self, regions: Tensor) -> Tensor:
        """``(B, C, K)`` as a map of K positions with as many axes as the block's maps."""
        return regions.unflatten(2, (-1, *[1] * (self.dims - 1)))

    def _attention(self, pixels: Tensor, regions: Tensor) -> Tensor:
        assert self.query is not None
        assert self.key is not None
        q, k = to_tokens(self.query(pixels), self.heads), to_tokens(self.key(self._as_map(regions)), self.heads)
        return attention_weights(q, k, scale=q.shape[-1] ** -0.5, normalization=self.normalization)


def _shares(logits: Tensor) -> Tensor:
    """What each position takes of each class by the first guess, ``(B, 1, N, K)``."""
    return softmax(widened(logits.flatten(2)), 1).transpose(1, 2)[:, None]

"""GCNet: one attention map for all positions; a context vector is pooled with it, transformed, given back to each.

Trained non-local blocks were found to attend to nearly the same positions whatever the query. Traps: the raw x is
pooled, without a value transform; multiplication comes before addition, and alone it has no residual, so that it starts
by halving x; the authors' ``ratio`` is a factor (1/16) and ``int(C * ratio)`` truncates.
"""

from collections.abc import Sequence
from typing import Literal, cast

from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import divides
from lookfar.blocks._base import block
from lookfar.blocks._layers import (
    BATCH_NORM,
    CONV,
    Dims,
    Norm,
    Placement,
    added,
    keeps_input,
    max_pool,
    norm_of,
    normal_,
    normed,
    pooled_size,
    zero_,
)
from lookfar.ops._layout import positions, to_map, to_tokens
from lookfar.ops._pointwise import convolved_rows
from lookfar.ops.disentangled import unary_attention, unary_weights


def _pooled(mask: nn.Module | None, x: Tensor) -> Tensor:
    """The mean of x, or its means weighted by the softmaxes of a 1x1 convolution: ``(B, C, *S) -> (B, h, 1, C)``."""
    if mask is None:
        return x.flatten(2).mean(-1)[:, None, None]
    return unary_attention(convolved_rows(mask, x), x.flatten(2).transpose(1, 2).unsqueeze(1))


def _weights(mask: nn.Module | None, keys: Tensor, queries: int) -> Tensor:
    """The maps of :func:`_pooled`, once for each query: ``(B, h, Q, M)``."""
    if mask is None:
        M = positions(keys)
        return keys.new_full((keys.shape[0], 1, queries, M), 1 / M)
    return unary_weights(convolved_rows(mask, keys)).expand(-1, -1, queries, -1)


def _spread(t: Tensor, x: Tensor) -> Tensor:
    """One vector for all positions ``(B, 1, 1, C)``, or one for each ``(B, 1, N, C)``, ready to meet ``(B, C, *S)``."""
    if t.shape[2] == 1:
        return t.reshape(t.shape[0], t.shape[-1], *(1,) * (x.dim() - 2))
    return to_map(t, x)


@block(
    "global_context",
    title="Global context block",
    paper="GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond (ICCV 2019 workshop)",
    arxiv="1904.11492",
    formula=(
        r"c = \sum_n a_n\,x_n, \quad a_n = \text{softmax}_n(w^\top x_n) \text{ or } 1 / N",
        r"T(c) = W_2\,\text{ReLU}(\text{LN}(W_1\,c)), \text{ one for each fusion}",
        r"y = x \odot \sigma(T_{\text{mul}}(c)) + T_{\text{add}}(c)",
    ),
    family="global",
    complexity="N C + C^2 / reduction",
    memory="N",
    verified=(
        "xvjiarui/GCNet@029db540:mmdet/ops/gcb/context_block.py",
        "open-mmlab/mmcv@a8073c74:mmcv/cnn/bricks/context_block.py",
    ),
    attends="weights",
    aliases=("gc", "gcnet"),
    author_keys={"conv_mask": "mask", r"channel_add_conv": "add", r"channel_mul_conv": "mul"},
)
class GlobalContext(nn.Module):
    """Pools one context vector from the whole map and adds a transform of it to every position, or scales by one.

    c = sum_n a_n x_n with a = softmax_n(w . x_n) or 1/N; T(c) = W2 ReLU(LN(W1 c)), one for each fusion;
    y = x * sigmoid(T_mul(c)) + T_add(c).

    Args:
        inner_channels: Width of the transform; ``channels // reduction``, at least 2, when None (the LayerNorm of one
            channel is constant).
        pooling: ``att`` weighs positions by a learned softmax, ``avg`` equally.
        fusion: ``add``, ``mul`` (scales by a sigmoid, without a residual) or ``both``.
        zero_init: The transforms start at zero: the identity for ``add``, x / 2 where a sigmoid multiplies (insertion
            into a network then adds a gate of its own).

    Shape: ``(B, C, *S) -> (B, C, *S)``, one, two or three axes by ``dims``

    Raises:
        ValueError: An unknown choice.

    Example:
        >>> import torch
        >>> block = GlobalContext(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        reduction: int = 16,
        pooling: Literal["att", "avg"] = "att",
        fusion: Literal["add", "mul", "both"] = "add",
        dims: Dims = 2,
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        if fusion != "add" and not keeps_input(self):
            raise ValueError(f"residual=False is what is added alone: want fusion='add', got {fusion!r}")
        inner = inner_channels or max(channels // reduction, 2)

        def transform() -> nn.Sequential:
            last = nn.Linear(inner, channels, **dd)
            return nn.Sequential(
                nn.Linear(channels, inner, **dd),
                nn.LayerNorm(inner, **dd),
                nn.ReLU(),
                zero_(last) if zero_init else last,
            )

        self.mask = CONV[dims](channels, 1, 1, **dd) if pooling == "att" else None
        self.mul = transform() if fusion in ("mul", "both") else None
        self.add = transform() if fusion in ("add", "both") else None
        if self.mask is not None:
            nn.init.kaiming_normal_(self.mask.weight)
            nn.init.zeros_(cast(Tensor, self.mask.bias))

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """The mask's bias adds the same number to every logit of a softmax."""
        return () if self.mask is None else ("mask.bias",)

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(x, _pooled(self.mask, x))

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """The one map, ``(B, 1, Q, N)``, for each of the flat query positions ``(Q,)``, for all when None."""
        return _weights(self.mask, x, positions(x) if queries is None else queries.shape[0])

    def values(self, x: Tensor) -> Tensor:
        """What is pooled: x itself, ``(B, 1, N, C)``."""
        return to_tokens(x)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output from its input and the contexts, one ``(B, 1, 1, C)`` or each its own ``(B, 1, N, C)``."""
        mixed = mixed.to(x.dtype)
        y = x if self.mul is None else x * _spread(self.mul(mixed).sigmoid(), x)
        return y if self.add is None else added(self, y, _spread(self.add(mixed), x))


@block(
    "simplified_nonlocal",
    title="Simplified non-local block",
    paper="GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond (ICCV 2019 workshop)",
    arxiv="1904.11492",
    formula=(r"y_i = x_i + \text{norm}\left(W_o\,W_v \sum_j \text{softmax}_j(w^\top x_j)\,x_j\right)",),
    family="global",
    complexity="N C + C^2",
    memory="N",
    verified=("yinmh17/DNL-Semantic-Segmentation@594a3591:model/seg/ops/unary_block.py",),
    attends="weights",
    aliases=("snl",),
    differences=(
        "The authors' repository has no class for this block; the code of overlapping authors transforms all values "
        "and then pools. Here the pooled vector is transformed: the same, without N C^2.",
    ),
    author_keys={"conv_mask": "mask", "conv_value": "value", "conv_out": "project", "out_bn": "norm"},
)
class SimplifiedNonLocal(nn.Module):
    """Adds to every position one and the same vector, pooled from the map by one learned attention.

    y_i = x_i + norm(W_o W_v sum_j softmax_j(w . x_j) x_j)

    Args:
        inner_channels: Width of a bottleneck between W_v (then with a bias) and W_o; None has neither, W_v is C x C.
        heads: Masks w side by side, each for its share of the channels that W_v gives.
        subsample: Stride of max-pooling x before mask and values; 1 is off.
        project_bias: A bias of W_o, which ``inner_channels`` brings.
        norm_layer: Norm of the vector: a class or factory, True for BatchNorm, None or False for none.
        zero_init: Start as the identity: the norm's weight, else W_o, else W_v is zero.

    Shape: ``(B, C, *S) -> (B, C, *S)``, one, two or three axes by ``dims``

    Example:
        >>> import torch
        >>> block = SimplifiedNonLocal(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        heads: int = 1,
        subsample: int = 1,
        project_bias: bool = False,
        norm_layer: Norm | bool | None = None,
        dims: Dims = 2,
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        bottleneck = inner_channels is not None
        divides("heads", heads, **{"inner_channels" if bottleneck else "channels": inner_channels or channels})
        if project_bias and not bottleneck:
            raise ValueError("project_bias: there is no W_o without inner_channels")
        self.heads, self.subsample = heads, subsample
        self.mask = normal_(CONV[dims](channels, heads, 1, **dd))
        self.value = normal_(nn.Linear(channels, inner_channels or channels, bias=bottleneck, **dd))
        self.project = normal_(nn.Linear(inner_channels, channels, bias=project_bias, **dd)) if inner_channels else None
        norm = BATCH_NORM[dims] if norm_layer is True else norm_layer
        self.norm = norm_of(norm, dims)(channels, **dd) if norm else None
        if zero_init:
            norm = self.norm if getattr(self.norm, "weight", None) is not None else None
            zero_(norm or self.project or self.value)

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """The mask's bias adds the same number to every logit of a softmax; batch statistics take off the others."""
        centred = self.training and isinstance(self.norm, nn.modules.batchnorm._BatchNorm)
        own = dict(self.named_parameters())
        return ("mask.bias", *(n for n in ("value.bias", "project.bias") if centred and n in own))

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(x, _pooled(self.mask, max_pool(x, self.subsample)))

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Each head's one map, ``(B, h, Q, M)``, for each of the flat query positions ``(Q,)``, for all when None."""
        keys = max_pool(x, self.subsample)
        return _weights(self.mask, keys, positions(x) if queries is None else queries.shape[0])

    def key_grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """The grid ``(*S')`` that the keys form on a map ``(*S)``."""
        return pooled_size(size, self.subsample)

    def values(self, x: Tensor) -> Tensor:
        """What every head pools: x, after sub-sampling, ``(B, h, M, C)``."""
        return to_tokens(max_pool(x, self.subsample)).expand(-1, self.heads, -1, -1)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output from its input and the contexts, one ``(B, h, 1, C)`` or each its own ``(B, h, N, C)``."""
        y = self.value(mixed.to(x.dtype))
        if self.heads > 1:  # of what W_v gives for each head's context, the head's share
            y = y.unflatten(-1, (self.heads, -1)).diagonal(dim1=1, dim2=3).movedim(-1, 2).flatten(2).unsqueeze(1)
        if self.project is not None:
            y = self.project(y)
        y = _spread(y, x)
        return added(self, x, normed(self.norm, y))

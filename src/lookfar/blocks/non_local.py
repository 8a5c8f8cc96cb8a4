"""Non-local Neural Networks: every position receives a weighted sum over all positions, of space, time or both.

Traps: the authors' Caffe2 code pools x before the key and value convolutions, the paper and the PyTorch codes pool
their results; these are different functions (``subsample_order``). mmcv's concatenation cannot be trained (an in-place
division of a ReLU's output). Time is never sub-sampled, and axes of length 1 are left alone.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lookfar.blocks._base import block
from lookfar.blocks._layers import BATCH_NORM, CONV, Norm, max_pool, normal_, normed, wide, zero_
from lookfar.blocks._projections import Projections, after_mixing, check_heads, check_projections
from lookfar.ops._layout import to_map, to_tokens
from lookfar.ops._precision import widened, without_autocast
from lookfar.ops.attention import Normalization, attention, attention_weights
from lookfar.ops.concatenation import concatenation, concatenation_weights

Mode = Literal["gaussian", "embedded_gaussian", "dot_product", "concatenation"]

# the published normalisation first; "none" divides by the number of keys
NORMALIZATIONS: dict[str, tuple[Normalization, ...]] = {
    "gaussian": ("softmax", "double", "sigmoid"),
    "embedded_gaussian": ("softmax", "double", "sigmoid"),
    "dot_product": ("none", "l1"),
    "concatenation": ("none", "l1"),
}
_WHY_NOT = {
    ("gaussian", "l1"): "exponentials are positive: l1 is softmax",
    ("gaussian", "none"): "exponentials overflow without a normaliser; mode='dot_product' has none",
    ("dot_product", "softmax"): "that is mode='embedded_gaussian', scale=False",
    ("dot_product", "double"): "that is mode='embedded_gaussian', scale=False, normalization='double'",
    ("dot_product", "sigmoid"): "that is mode='embedded_gaussian', scale=False, normalization='sigmoid'",
}


@block(
    "nonlocal",
    title="Non-local block",
    paper="Non-local Neural Networks (CVPR 2018)",
    arxiv="1711.07971",
    family="pairwise",
    complexity="gaussians N M C, dot_product (N + M) C^2, concatenation (N + M) (log M + C)",
    memory="N C",
    verified=(
        "facebookresearch/video-nonlocal-net@c253ed5e:lib/models/nonlocal_helper.py",
        "open-mmlab/mmcv@a8073c74:mmcv/cnn/bricks/non_local.py",
        "AlexHex7/Non-local_pytorch@ec15789a:lib/non_local_*.py",
    ),
    attends="weights",
    aliases=("nl", "non_local"),
    differences=(
        "The authors' code and mmcv divide the logits of embedded_gaussian by sqrt(D) (scale=True, the default), the "
        "paper and AlexHex7's code do not (scale=False).",
        "Paper, mmcv and AlexHex7 sub-sample after the key and value convolutions (subsample_order='after', the "
        "default), the authors' code before them ('before').",
        "Paper, authors and AlexHex7 have a BatchNorm after the output convolution (the default), mmcv has none "
        "(norm_layer=None).",
    ),
    author_keys={
        r"theta(\.conv)?": "query",
        r"phi(\.0)?(\.conv)?": "key",
        r"g(\.0)?(\.conv)?": "value",
        r"concat_project\.(0|conv)\.weight": "pair",
        r"conv_out\.conv": "project",
        r"conv_out\.(bn|gn|in)": "norm",
        "W": "project",
        r"W\.0": "project",
        r"W\.1": "norm",
        r"\w+_theta_w": "query.weight",
        r"\w+_theta_b": "query.bias",
        r"\w+_phi_w": "key.weight",
        r"\w+_phi_b": "key.bias",
        r"\w+_g_w": "value.weight",
        r"\w+_g_b": "value.bias",
        r"\w+_out_w": "project.weight",
        r"\w+_out_b": "project.bias",
        r"\w+_bn_s": "norm.weight",
        r"\w+_bn_b": "norm.bias",
        r"\w+_bn_rm": "norm.running_mean",
        r"\w+_bn_riv": "norm.running_var",
    },
)
class NonLocal(nn.Module):
    """Adds to every position a weighted sum over all positions, weighted by a function of the two features.

    z_i = x_i + norm(W_z 1/Z sum_j f(x_i, x_j) g(x_j)), where q, k, g are 1x1 convolutions and f is

    - ``gaussian``: exp(x_i . x_j), Z = sum_j f
    - ``embedded_gaussian``: exp(scale q_i . k_j), Z = sum_j f
    - ``dot_product``: q_i . k_j, Z = M
    - ``concatenation``: ReLU(w . [q_i, k_j]), Z = M

    Args:
        channels: Channels C of input and output.
        mode: The pairwise function f.
        dims: Spatial axes of the input: 1, 2, or 3 (time first).
        inner_channels: Width D of query, key and value; ``channels // reduction`` when None.
        reduction: Divisor that gives the width.
        heads: Attentions side by side, each on its share of the channels.
        subsample: Stride of the max-pooling of keys and values along spatial axes; 1 is off.
        subsample_order: Pool ``after`` the key and value convolutions or x ``before`` them (cheaper).
        scale: Factor on the similarities: True is 1/sqrt(D) in embedded_gaussian and 1 elsewhere, False is 1.
        normalization: ``softmax``, ``double``, ``sigmoid`` for the gaussians, ``none`` (1/M), ``l1`` for the others;
            None is the published one, which stands first.
        share_query_key: One projection for queries and keys.
        projections: ``inside`` has q, k and g; ``around`` has one 1x1 convolution before, whose result serves as all
            three, and W_z after.
        bias: Biases of the convolutions.
        project_bias: Bias of W_z where it differs from ``bias`` (mmcv has none before a norm).
        norm_layer: Norm after W_z: a class or factory, True for BatchNorm, None or False for none.
        zero_init: Start as the identity: the norm's weight, or W_z where there is no norm, is zero.

    Shape: ``(B, C, L)``, ``(B, C, H, W)`` or ``(B, C, T, H, W)``, by ``dims``; the same out.

    Raises:
        ValueError: An unknown choice, or a normalisation that the mode does not have.
    """

    def __init__(
        self,
        channels: int,
        *,
        mode: Mode = "embedded_gaussian",
        dims: Literal[1, 2, 3] = 2,
        inner_channels: int | None = None,
        reduction: int = 2,
        heads: int = 1,
        subsample: int = 1,
        subsample_order: Literal["before", "after"] = "after",
        scale: bool | float = True,
        normalization: Normalization | None = None,
        share_query_key: bool = False,
        projections: Projections = "inside",
        bias: bool = True,
        project_bias: bool | None = None,
        norm_layer: Norm | bool | None = True,
        zero_init: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        inner = inner_channels or max(channels // reduction, 1)
        self.normalization: Normalization = normalization_of(mode, normalization)
        _check(channels, inner, mode, dims, heads, subsample, subsample_order, scale, share_query_key, projections)
        self.mode = mode
        self.heads = heads
        self.subsample = subsample
        self.subsample_order = subsample_order
        self.share_query_key = share_query_key
        self.projections = projections
        conv = CONV[dims]

        def projection() -> nn.Module:
            return normal_(conv(channels, inner, 1, bias=bias, **dd))

        inside, embedded = projections == "inside", mode != "gaussian"
        self.embed = None if inside else projection()
        self.query = projection() if inside and embedded else None
        self.key = projection() if inside and embedded and not share_query_key else None
        self.value = projection() if inside else None
        self.pair = nn.Parameter(torch.empty(heads, 2 * inner // heads, **dd)) if mode == "concatenation" else None
        project = conv(inner, channels, 1, bias=bias if project_bias is None else project_bias, **dd)
        self.project = normal_(project)
        norm = BATCH_NORM[dims] if norm_layer is True else norm_layer or None
        self.norm = norm(channels, **dd) if norm else None

        if scale is True:
            self.scale = (inner // heads) ** -0.5 if mode == "embedded_gaussian" else 1.0
        else:
            self.scale = 1.0 if scale is False else float(scale)
        if self.pair is not None:
            nn.init.uniform_(self.pair, -((2 * inner / heads) ** -0.5), (2 * inner / heads) ** -0.5)
        if zero_init:
            zero_(self.project if self.norm is None or getattr(self.norm, "weight", None) is None else self.norm)

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """Biases that add the same number to all logits of a softmax, or that batch statistics take off again."""
        names = []
        if self.query is not None and self.key is not None:
            # double normalisation: what a query adds to all its logits, every key has in its popularity
            names += {"softmax": ["key.bias"], "double": ["query.bias"]}.get(self.normalization, [])
        if self.training and isinstance(self.norm, nn.modules.batchnorm._BatchNorm):
            names += ["project.bias"]
            if self.normalization in ("softmax", "double"):
                names += ["value.bias"]
        own = dict(self.named_parameters())
        return tuple(name for name in names if name in own)

    def forward(self, x: Tensor) -> Tensor:
        if self.pair is not None:
            a, b, v = self._scores(x)
            return self.finish(x, concatenation(a, b, v, normalization=self.normalization))  # type: ignore[arg-type]
        q, k, v = self._tokens(x)
        return self.finish(x, attention(q, k, v, scale=self.scale, normalization=self.normalization))

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, M)`` of the flat query positions ``(Q,)``, all when None; M keys after sub-sampling."""
        if self.pair is not None:
            a, b, _ = self._scores(x)
            a = a if queries is None else a[..., queries]
            return concatenation_weights(a, b, normalization=self.normalization)  # type: ignore[arg-type]
        q, k, _ = self._tokens(x)
        some = q if queries is None else q[..., queries, :]
        return attention_weights(some, k, scale=self.scale, normalization=self.normalization, all_queries=q)

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, h, M, D/h)``."""
        return self._tokens(x)[2]

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output from its input and the weighted sums ``(B, h, N, D/h)``."""
        y = after_mixing(self.project, to_map(mixed, x), self.normalization)
        return x + (y if self.norm is None else normed(self.norm, y))

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of queries ``(B, D, *S)``, keys and values ``(B, D, *S / subsample)``."""
        before = self.subsample_order == "before"
        source = max_pool(x, self.subsample) if before else x
        query = self._embed_query(x)
        if self.mode != "gaussian" and self.key is not None:
            key = self.key(source)
        else:
            key = query if source is x else self._embed_query(source)
        value = key if self.value is None else self.value(source)
        if before:
            return query, key, value
        pooled = max_pool(key, self.subsample)
        return query, pooled, pooled if value is key else max_pool(value, self.subsample)

    def _embed_query(self, x: Tensor) -> Tensor:
        embed = self.embed or self.query
        return x if embed is None else embed(x)

    def _tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self._maps(x)
        q = to_tokens(query, self.heads)
        k = q if key is query else to_tokens(key, self.heads)
        v = k if value is key else to_tokens(value, self.heads)
        if self.normalization == "none":
            q, k, v = widened(q), widened(k), widened(v)
        return q, k, v

    def _scores(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The two halves of w . [q_i, k_j], ``(B, h, N)`` and ``(B, h, M)``, and the values ``(B, h, M, D/h)``.

        w . (W x + b) = (w W) . x + w . b: a convolution to one channel a head takes the place of one to D, except for
        keys that are pooled in between.
        """
        assert self.pair is not None
        for_query, for_key = self.pair.chunk(2, 1)
        pooled_after = self.subsample > 1 and self.subsample_order == "after"
        if self.projections == "around":
            query, key, value = self._maps(x)
            a, b = self._score(query, for_query), self._score(key, for_key)
        else:
            assert self.query is not None
            assert self.value is not None
            source = max_pool(x, self.subsample) if self.subsample_order == "before" else x
            key_projection = self.key or self.query
            a = self._score(x, for_query, self.query)
            if pooled_after:
                b = self._score(max_pool(key_projection(x), self.subsample), for_key)
            else:
                b = self._score(source, for_key, key_projection)
            value = self.value(source)
            value = max_pool(value, self.subsample) if pooled_after else value
        v = to_tokens(value, self.heads)
        return a, b, widened(v) if self.normalization == "none" else v

    def _score(self, x: Tensor, w: Tensor, projection: nn.Module | None = None) -> Tensor:
        """w_t . (projection of x in head t): ``(B, C, *S), (h, D/h) -> (B, h, N)``, in float32 at least."""
        with without_autocast(x):
            w = widened(w)
            h, d = w.shape
            bias = None
            if projection is None:  # a convolution of each head's channels to one
                weight = torch.block_diag(*w) if h > 1 else w
            else:
                weight = (w.unsqueeze(-1) * widened(projection.weight).view(h, d, -1)).sum(1)  # type: ignore[arg-type]
                if projection.bias is not None:
                    bias = (w * widened(projection.bias).view(h, d)).sum(1)  # type: ignore[arg-type]
            return wide(x, weight, bias).flatten(2)


def normalization_of(mode: str, normalization: Normalization | None) -> Normalization:
    """That of the mode when None; a ValueError for one that the mode does not have."""
    if mode not in NORMALIZATIONS:
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    allowed = NORMALIZATIONS[mode]
    if normalization is None:
        return allowed[0]
    if normalization not in allowed:
        why = _WHY_NOT.get((mode.removeprefix("embedded_"), normalization))
        raise ValueError(
            f"mode={mode!r} takes the normalizations {', '.join(allowed)}, got {normalization!r}"
            + (f" ({why})" if why else "")
        )
    return normalization


def _check(
    channels: int,
    inner: int,
    mode: str,
    dims: int,
    heads: int,
    subsample: int,
    subsample_order: str,
    scale: bool | float,
    share_query_key: bool,
    projections: str,
) -> None:
    if dims not in CONV:
        raise ValueError(f"dims must be 1, 2 or 3, got {dims!r}")
    if subsample < 1:
        raise ValueError(f"subsample is a stride, 1 for none; got {subsample!r}")
    if subsample_order not in ("before", "after"):
        raise ValueError(f"subsample_order must be before or after, got {subsample_order!r}")
    check_projections(projections)
    if share_query_key and (mode == "gaussian" or projections == "around"):
        raise ValueError("share_query_key: there is one projection of queries and one of keys only in the modes other "
                         "than gaussian with projections='inside'")  # fmt: skip
    if mode == "concatenation" and not isinstance(scale, bool):
        raise ValueError(f"mode='concatenation' has learned weights and no scale, got {scale!r}")
    of_x = {"channels": channels} if mode == "gaussian" and projections == "inside" else {}
    check_heads(heads, **of_x, inner_channels=inner)

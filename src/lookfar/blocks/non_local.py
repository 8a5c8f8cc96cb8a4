"""Non-local Neural Networks: every position receives a weighted sum over all positions, of space, time or both.

Traps: the authors' Caffe2 code pools x before the key and value convolutions, the paper and the PyTorch codes pool
their results; these are different functions (``subsample_order``). mmcv's concatenation cannot be trained (an in-place
division of a ReLU's output). Time is never sub-sampled, and axes of length 1 are left alone.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import choice, divides
from lookfar.blocks._base import block
from lookfar.blocks._layers import BATCH_NORM, CONV, Dims, Norm, Placement, max_pool, norm_of, normal_, zero_last
from lookfar.blocks._projections import PairwiseAttention, Projections, Switches, reduced
from lookfar.blocks._reading import weights_of, wide
from lookfar.ops._layout import to_tokens
from lookfar.ops._precision import widened, without_autocast
from lookfar.ops.attention import Normalization
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
    formula=(
        r"y_i = x_i + \text{norm}\left(W_z\,\frac{1}{Z} \sum_j f(x_i, x_j)\,g(x_j)\right)",
        r"f = \exp(x_i^\top x_j), \quad Z = \sum_j f \quad \text{(gaussian)}",
        r"f = \exp(\text{scale} \cdot q_i^\top k_j), \quad Z = \sum_j f \quad \text{(embedded gaussian)}",
        r"f = q_i^\top k_j, \quad Z = M \quad \text{(dot product)}",
        r"f = \text{ReLU}(w^\top [\,q_i,\; k_j\,]), \quad Z = M \quad \text{(concatenation)}",
    ),
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
class NonLocal(PairwiseAttention):
    """Adds to every position a weighted sum over all positions, weighted by a function of the two features.

    y_i = x_i + norm(W_z 1/Z sum_j f(x_i, x_j) g(x_j))
    gaussian: f = exp(x_i . x_j), Z = sum_j f
    embedded_gaussian: f = exp(scale q_i . k_j), Z = sum_j f
    dot_product: f = q_i . k_j, Z = M
    concatenation: f = ReLU(w . [q_i, k_j]), Z = M

    q, k and g are 1x1 convolutions of x, j runs over M positions, and ``mode`` names f.

    Args:
        mode: The pairwise function f.
        inner_channels: Width D of query, key and value; ``channels // reduction`` when None.
        subsample: Stride of the max-pooling of keys and values along spatial axes; 1 is off.
        subsample_order: Pool ``after`` the key and value convolutions or x ``before`` them (cheaper).
        scale: Factor on the similarities: True is 1/sqrt(D) in embedded_gaussian and 1 elsewhere, False is 1.
        normalization: ``softmax``, ``double``, ``sigmoid`` for the gaussians, ``none`` (1/M), ``l1`` for the others;
            None is the published one, which stands first.
        projections: ``inside`` has q, k and g; ``around`` has one 1x1 convolution before, whose result serves as all
            three, and W_z after.
        bias: Biases of the convolutions.
        project_bias: Bias of W_z where it differs from ``bias`` (mmcv has none before a norm).
        norm_layer: Norm after W_z: a class or factory, True for BatchNorm, None or False for none.

    Shape: ``(B, C, L)``, ``(B, C, H, W)`` or ``(B, C, T, H, W)``, by ``dims``; the same out.

    Raises:
        ValueError: An unknown choice, or a normalisation that the mode does not have.

    Example:
        >>> block = NonLocal(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        mode: Mode = "embedded_gaussian",
        dims: Dims = 2,
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
        **dd: Unpack[Placement],
    ) -> None:
        inner, conv = inner_channels or reduced(channels, reduction, heads), CONV[dims]
        how = normalization_of(mode, normalization)
        switches = Switches(heads, how, share_query_key, projections, subsample, subsample_order)
        _check(channels, inner, mode, scale, switches)

        def projection() -> nn.Module:
            return normal_(conv(channels, inner, 1, bias=bias, **dd))

        super().__init__(switches, None if mode == "gaussian" else projection, projection)
        self.mode = mode
        self.pair = pair_vectors(heads, inner, **dd) if mode == "concatenation" else None
        self.scale = scale_of(scale, inner // heads if mode == "embedded_gaussian" else 1)
        self.project = normal_(conv(inner, channels, 1, bias=bias if project_bias is None else project_bias, **dd))
        norm = BATCH_NORM[dims] if norm_layer is True else norm_layer
        self.norm = norm_of(norm, dims)(channels, **dd) if norm else None
        if zero_init:
            zero_last(self.norm, self.project)

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """Biases that shift all logits of a softmax equally, or that batch statistics take off again."""
        names = list(super().inert_parameters)
        if self.training and isinstance(self.norm, nn.modules.batchnorm._BatchNorm):
            names += ["project.bias"]
            if self.normalization in ("softmax", "double"):
                names += ["value.bias"]
        own = dict(self.named_parameters())
        return tuple(name for name in names if name in own)

    def forward(self, x: Tensor) -> Tensor:
        if self.pair is None:
            return super().forward(x)
        a, b, v = self._scores(x)
        return self.finish(x, concatenation(a, b, v, normalization=self.normalization))

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, M)`` of the flat query positions ``(Q,)``, all when None; M keys after sub-sampling."""
        if self.pair is None:
            return super().attention(x, queries)
        a, b, _ = self._scores(x)
        return concatenation_weights(a if queries is None else a[..., queries], b, normalization=self.normalization)

    def values(self, x: Tensor) -> Tensor:
        """What is mixed, ``(B, h, M, D/h)``."""
        return super().values(x) if self.pair is None else self._scores(x)[2]

    def _scores(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The two halves of w . [q_i, k_j], ``(B, h, N)`` and ``(B, h, M)``, and the values ``(B, h, M, D/h)``.

        w . (W x + b) = (w W) . x + w . b: a convolution to one channel a head takes the place of one to D, except for
        keys that are pooled in between.
        """
        assert self.pair is not None
        for_query, for_key = self.pair.chunk(2, 1)
        of_queries, of_keys, of_values = self._layers
        a = _score(x, for_query, of_queries)
        if self.subsample > 1 and self.subsample_order == "after":
            b = _score(self._pooled(of_keys, x), for_key)
        else:
            b = _score(max_pool(x, self.subsample), for_key, of_keys)
        v = to_tokens(self._pooled(of_values, x), self.heads)
        return a, b, widened(v) if self.normalization == "none" else v


def _score(x: Tensor, w: Tensor, projection: nn.Module | None = None) -> Tensor:
    """w_t . (projection of x in head t): ``(B, C, *S), (h, D/h) -> (B, h, N)``, in float32 at least."""
    with without_autocast(x):
        w, bias = widened(w), None
        h, d = w.shape
        if projection is None:  # a convolution of each head's channels to one
            weight = torch.block_diag(*w) if h > 1 else w
        else:
            own, shift = weights_of(projection)
            weight = (w.unsqueeze(-1) * widened(own).view(h, d, -1)).sum(1)
            if shift is not None:
                bias = (w * widened(shift).view(h, d)).sum(1)
        return wide(x, weight, bias).flatten(2)


def scale_of(scale: bool | float, width: int) -> float:
    """The factor on similarities: True is ``width ** -0.5``, False is 1."""
    if isinstance(scale, bool):
        return width**-0.5 if scale else 1.0
    return float(scale)


def pair_vectors(heads: int, inner: int, **dd: Any) -> nn.Parameter:
    """w of ``mode="concatenation"``, a vector for queries beside one for keys in each head: ``(h, 2 D/h)``."""
    bound = (2 * inner / heads) ** -0.5
    return nn.Parameter(nn.init.uniform_(torch.empty(heads, 2 * inner // heads, **dd), -bound, bound))


def normalization_of(mode: Mode, normalization: Normalization | None) -> Normalization:
    """That of the mode when None; a ValueError for one that the mode does not have."""
    allowed = NORMALIZATIONS[mode]
    if normalization is None:
        return allowed[0]
    why = _WHY_NOT.get((mode.removeprefix("embedded_"), normalization), "")
    choice(f"normalization of {mode=}", normalization, allowed, why=why)
    return normalization


def _check(channels: int, inner: int, mode: str, scale: bool | float, switches: Switches) -> None:
    if switches.share_query_key and mode == "gaussian":
        raise ValueError("share_query_key: mode='gaussian' has no projections of queries and keys")
    if mode == "concatenation" and not isinstance(scale, bool):
        raise ValueError(f"scale: mode='concatenation' has learned weights in its place, got {scale!r}")
    of_x = {"channels": channels} if mode == "gaussian" and switches.inside else {}
    divides("heads", switches.heads, **of_x, inner_channels=inner)

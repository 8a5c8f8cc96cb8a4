"""HamNet: a low-rank factorisation of the features, between two 1x1 convolutions, as global context.

Traps: the published bases are random in every forward, in eval too; here they come from a stored seed in eval. The
published gradient differentiates the last update alone; mmsegmentation's goes through all iterations.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import NotNegative, Positive, Share, Steps, divides
from lookfar.blocks._base import block
from lookfar.blocks._layers import CONV, ConvNorm, Dims, Placement, added, gate, norm_of, normed, zero_
from lookfar.blocks._reading import weights_of
from lookfar.ops._layout import match_format, positions
from lookfar.ops._precision import widened, without_autocast
from lookfar.ops._rectified import rectified
from lookfar.ops.matrix_decomposition import Method, matrix_decomposition


class Ham(nn.Module):
    """The factorisation of a map ``(B, C, *S)``: two factors whose product is its low-rank form.

    Args:
        channels: C of the map.
        bases: R, columns of a factor.
        heads: Parts into which the channels are split.
        method, iterations, eval_iterations, inverse_temperature, ridge, gradient, random_bases, momentum: see
            :class:`Hamburger`.
        spatial: Columns are feature vectors and positions are coded in them; else columns are maps.
    """

    seed: Tensor
    bases: Tensor | None

    def __init__(
        self,
        channels: int,
        *,
        bases: int = 64,
        heads: int = 1,
        method: Method = "nmf",
        iterations: int = 6,
        eval_iterations: int = 7,
        inverse_temperature: float = 100.0,
        ridge: float = 0.1,
        gradient: Literal["one_step", "full"] = "one_step",
        random_bases: Literal["train", "always", "never"] = "train",
        momentum: float = 0.9,
        spatial: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        divides("heads", heads, inner_channels=channels)
        self.rank, self.heads, self.spatial = bases, heads, spatial
        self.method: Method = method
        self.iterations, self.eval_iterations = iterations, eval_iterations
        self.inverse_temperature, self.ridge, self.momentum = inverse_temperature, ridge, momentum
        self.gradient, self.random_bases = gradient, random_bases
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64, device=dd.get("device")))
        kept = None
        if random_bases == "never" and spatial:  # bases that are maps have the size of the input
            start = torch.rand if method == "nmf" else torch.randn
            kept = F.normalize(start(heads, channels // heads, bases, **dd), dim=1)
        self.register_buffer("bases", kept)

    def forward(self, x: Tensor, bases: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(B, C, *S) -> (B, h, C/h, R), (B, h, N, R)``; their product is the factorised map."""
        B, C = x.shape[:2]
        with without_autocast(x):
            tokens = widened(x.reshape(B * self.heads, C // self.heads, positions(x)))
            tokens = tokens if self.spatial else tokens.transpose(1, 2)
            start = self._start(tokens) if bases is None else bases.to(tokens)
            found, coefficients = matrix_decomposition(
                tokens,
                start,
                method=self.method,
                iterations=self.iterations if self.training else self.eval_iterations,
                inverse_temperature=self.inverse_temperature,
                ridge=self.ridge,
                full_gradient=self.gradient == "full",
            )
            if self.bases is not None and not self.training and B > 0:
                self._keep(found.detach().unflatten(0, (B, self.heads)).mean(0))
        left, right = (found, coefficients) if self.spatial else (coefficients, found)
        return left.unflatten(0, (B, self.heads)), right.unflatten(0, (B, self.heads))

    def make_room(self, bases: Tensor) -> None:
        """A buffer for kept ``bases`` that are maps, of the size that they were kept at."""
        if not self.spatial and self.random_bases == "never" and self.bases is None:
            self.bases = torch.zeros_like(bases, device=self.seed.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if prefix + "bases" in state_dict:
            self.make_room(state_dict[prefix + "bases"])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _start(self, tokens: Tensor) -> Tensor:
        """Unit bases (B h, D, R)."""
        shape = (*tokens.shape[:2], self.rank)
        if self.bases is not None:
            if self.bases.shape[1] != shape[1]:
                raise ValueError(f"the kept bases are maps of {self.bases.shape[1]} positions, got {shape[1]}")
            return self.bases.to(tokens.dtype).repeat(shape[0] // self.heads, 1, 1)
        if self.random_bases == "always" or (self.training and self.random_bases == "train"):
            draw = torch.rand if self.method == "nmf" else torch.randn
            return F.normalize(draw(shape, dtype=tokens.dtype, device=tokens.device), dim=1)
        index = torch.arange(self.heads * shape[1] * self.rank, device=tokens.device)
        uniform = _uniform(index, self.seed).to(tokens.dtype)
        if self.method != "nmf":
            angle = _uniform(index, self.seed + 1).to(tokens.dtype) * 2 * torch.pi
            uniform = (-2 * (1 - uniform).clamp_min(1e-7).log()).sqrt() * angle.cos()  # Box-Muller: normal
        start = F.normalize(uniform.reshape(self.heads, shape[1], self.rank), dim=1)
        return start.repeat(shape[0] // self.heads, 1, 1)

    def _keep(self, found: Tensor) -> None:
        assert self.bases is not None
        moved = self.bases + self.momentum * (found.to(self.bases.dtype) - self.bases)
        self.bases.copy_(F.normalize(moved, dim=1))


def _uniform(index: Tensor, seed: Tensor) -> Tensor:
    """Numbers in [0, 1) that depend on index and seed alone: a mixing hash, the same on every device and in exports."""
    h = (index + 1) * 1640531527 + (seed + 1) * 362437
    for factor in (73244475, 1540483477):
        h = h & 0x7FFFFFFF
        h = ((h >> 15) ^ h) * factor
    return (h & 0xFFFFFF).to(torch.float64) / 0x1000000


def apply_to_factors(
    conv: nn.modules.conv._ConvNd, factors: list[tuple[Tensor, Tensor]], size: tuple[int, ...]
) -> Tensor:
    """A 1x1 convolution of the concatenated products of some factors, ``(B, O, *size)``.

    It acts on the R columns of each left factor instead of on N positions.
    """
    widths = [left.shape[1] * left.shape[2] for left, _ in factors]
    weight, bias = weights_of(conv)
    weights = weight.flatten(1).to(factors[0][0].dtype).split(widths, 1)
    products = []
    for weight, (left, right) in zip(weights, factors):
        # a product of matrices would copy the weight, and its gradient, for every image
        columns = torch.einsum("ohd,bhdr->bohr", weight.unflatten(1, left.shape[1:3]), left).flatten(2)
        products.append(columns @ right.transpose(2, 3).flatten(1, 2))
    y = sum(products[1:], products[0])
    if bias is not None:
        y = y + bias.to(y.dtype)[:, None]
    return y.unflatten(2, size)


@block(
    "hamburger",
    title="Hamburger (HamNet)",
    paper="Is Attention Better Than Matrix Decomposition? (ICLR 2021)",
    arxiv="2109.04553",
    formula=(r"D C^\top \approx \text{ReLU}(W_l\,x), \quad y = x + \text{norm}(W_u\,D C^\top)",),
    family="low_rank",
    complexity="N C D + T N D K",
    memory="N (D + K)",
    verified=(
        "Gsunshine/Enjoy-Hamburger@d9b51f6f:seg/HamNet/hamburger/",
        "open-mmlab/mmsegmentation@1.2.2:decode_heads/ham_head.py",
    ),
    attends="maps",
    aliases=("hamnet", "ham"),
    differences=(
        "Published bases are random in every forward pass; here they come from a stored seed in eval"
        ' (random_bases="always" is the published behaviour).',
        'The paper differentiates the last update alone (gradient="one_step", the default), mmsegmentation all'
        ' iterations (gradient="full").',
        "The original ends in a ReLU after the sum: final_act=True, set when its weights are loaded.",
    ),
    author_keys={
        r"(lower_bread(\.0)?|ham_in\.conv)": "value",
        r"cheese\.conv": "mix.conv",
        r"cheese\.bn": "mix.norm",
        r"(upper_bread\.1|ham_out\.(bn|gn|in))": "norm",
        r"(upper_bread\.0|upper_bread|ham_out\.conv)": "project",
        "coef_ham": "gamma",
        "coef_shortcut": "shortcut",
    },
)
class Hamburger(nn.Module):
    """Replaces the features by a low-rank form of the whole map and adds it: context without a pairwise map.

    y = x + norm(W_u D C^T), with D, C factors of ReLU(W_l x) by a few iterations.

    The convolution that follows acts on the K columns of D: (W D) C^T, never on the N positions.

    Args:
        inner_channels: D, channels of the factorised map; C by default.
        bases: K, columns of the factors.
        heads: Parts of the inner channels that are factorised separately.
        method: ``nmf`` (with a ReLU before), ``cd`` (concept decomposition) or ``vq`` (soft vector quantisation).
        variant: ``v1``; ``v2`` has a conv-norm-ReLU after the factors and no last norm; ``v2plus`` has learned scales
            of both branches, 1 and 0 at the start.
        dual: Of ``v2plus``: a second factorisation whose columns are maps, beside the first.
        spatial: Of a single factorisation: its columns are feature vectors, in which positions are coded; else its
            columns are maps, in which channels are coded.
        squeeze: Of ``v2plus``: the conv after the factors has ``inner_channels // squeeze`` channels.
        iterations, eval_iterations: T, updates in training and in eval.
        inverse_temperature, ridge: Of ``cd`` and ``vq``; see :func:`lookfar.ops.matrix_decomposition`.
        gradient: ``one_step`` (paper) or ``full`` (mmsegmentation).
        random_bases: Drawn in training only (in eval from a stored seed), ``always``, or ``never``: kept in a buffer
            that follows the bases found in eval with ``momentum``, as in the original's online update. Bases that are
            maps come from the seed unless kept ones were loaded, whose size the map must have.
        momentum: Share of the found bases that the kept ones take over in a step.
        reasoning: The factorisation; off, what stands around it remains.
        norm_layer: After the convolutions; None in ``v1`` leaves the last convolution with a bias.
        final_act: End in a ReLU, as the original does.

    Shape: ``(B, C, *S) -> (B, C, *S)``, one, two or three axes by ``dims``

    Example:
        >>> block = Hamburger(16)
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(block(x), x)  # starts as the identity
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        bases: int = 64,
        heads: int = 1,
        method: Method = "nmf",
        variant: Literal["v1", "v2", "v2plus"] = "v1",
        dual: bool = True,
        spatial: bool = True,
        squeeze: int = 1,
        iterations: Steps = 6,
        eval_iterations: Steps = 7,
        inverse_temperature: Positive = 100.0,
        ridge: NotNegative = 0.1,
        gradient: Literal["one_step", "full"] = "one_step",
        random_bases: Literal["train", "always", "never"] = "train",
        momentum: Share = 0.9,
        reasoning: bool = True,
        dims: Dims = 2,
        norm_layer: Callable[..., nn.Module] | None = nn.BatchNorm2d,
        final_act: bool = False,
        zero_init: bool = True,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        ham = partial(
            Ham, bases=bases, heads=heads, method=method, iterations=iterations, eval_iterations=eval_iterations,
            inverse_temperature=inverse_temperature, ridge=ridge, gradient=gradient, random_bases=random_bases,
            momentum=momentum, **dd,
        )  # fmt: skip
        self.reasoning, self.final_act, self.rectify = reasoning, final_act, method == "nmf"
        # soft quantisation takes the length of x for a constant, as published, even in the full gradient
        self.exact_gradient = not reasoning or (gradient == "full" and method != "vq")
        self._add_hams(channels, inner_channels or channels, variant == "v2plus" and dual, spatial, ham, dims, **dd)
        self._add_output(channels, squeeze, variant, norm_layer and norm_of(norm_layer, dims), zero_init, dims, **dd)

    def _add_hams(
        self, channels: int, inner: int, dual: bool, spatial: bool, ham: Callable[..., Ham], dims: Dims, **dd: Any
    ) -> None:
        """What is factorised, and the one or two factorisations."""
        if dual and not spatial:
            raise ValueError("spatial=False is of a single factorisation: dual=False, or another variant")
        parts = 2 if dual else 1
        self.inner_channels = inner
        self.value = CONV[dims](channels, parts * inner, 1, **dd)
        self.hams = nn.ModuleList(ham(inner, spatial=spatial and n == 0) for n in range(parts))

    def _add_output(
        self,
        channels: int,
        squeeze: int,
        variant: str,
        norm_layer: Callable[..., nn.Module] | None,
        zero_init: bool,
        dims: Dims,
        **dd: Any,
    ) -> None:
        """What leads the factorised maps back: in v1 a convolution and a norm, later two convolutions."""
        width = self.inner_channels
        divides("squeeze", squeeze, inner_channels=width)
        width = width // squeeze if variant == "v2plus" else width
        self.mix = self.norm = self.gamma = self.shortcut = None
        if variant != "v1":
            norm = norm_layer or nn.Identity
            self.mix = ConvNorm(self.value.out_channels, width, norm_layer=norm, act_layer=nn.ReLU, dims=dims, **dd)
        elif norm_layer:
            self.norm = norm_layer(channels, **dd)
        self.project = CONV[dims](width, channels, 1, bias=variant == "v1" and norm_layer is None, **dd)
        if variant == "v2plus":
            self.gamma = gate(self, zero_init, **dd)
            self.shortcut = gate(self, False, **dd)
        for conv in (self.value, self.project, *([] if self.mix is None else [self.mix.conv])):
            nn.init.normal_(conv.weight, std=(2 / conv.out_channels) ** 0.5)
        if zero_init and self.gamma is None:
            zero_(self.norm or self.project)

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The original ends in a ReLU; bases that it keeps stand in its factorisations."""
        self.final_act = True
        places = {"ham.": "hams.0.", "ham_1.": "hams.0.", "ham_2.": "hams.1."}
        for theirs, ours in places.items():
            state = {ours + k[len(theirs) :] if k.startswith(theirs) else k: v for k, v in state.items()}
        for n, ham in enumerate(self.hams):
            if (kept := state.get(f"hams.{n}.bases")) is not None:
                cast(Ham, ham).make_room(kept)
        return state

    @property
    def unpublished(self) -> tuple[str, ...]:
        """The originals have no seed."""
        return tuple(f"hams.{n}.seed" for n in range(len(self.hams)))

    def forward(self, x: Tensor, bases: Tensor | tuple[Tensor, ...] | None = None) -> Tensor:
        """``bases`` are first bases ``(B heads, D, K)``, a pair of them for two factorisations."""
        y = self._value(x)
        if self.reasoning:
            factors = self._factors(y, bases)
            first = self.project if self.mix is None else self.mix.conv
            with without_autocast(x):
                y = apply_to_factors(first, factors, tuple(x.shape[2:])).to(x.dtype)
        elif self.mix is None:
            y = self.project(y)
        else:
            y = self.mix.conv(y)
        if self.mix is not None:
            y = self.project(self.mix.after(y))
        y = normed(self.norm, y)
        y = added(self, x, y) if self.gamma is None or self.shortcut is None else self.shortcut * x + self.gamma * y
        return match_format(rectified(y, inplace=True) if self.final_act else y, x)

    def maps(self, x: Tensor) -> Tensor:
        """How much each column holds of each position, ``(B, h K, N)``, of the first factorisation."""
        _, right = self._factors(self._value(x), None)[0]
        return right.transpose(2, 3).flatten(1, 2)

    def _value(self, x: Tensor) -> Tensor:
        y = self.value(x)
        return rectified(y, inplace=True) if self.rectify else y  # a convolution's output, which only it has seen

    def _factors(self, y: Tensor, bases: Tensor | tuple[Tensor, ...] | None) -> list[tuple[Tensor, Tensor]]:
        starts = bases if isinstance(bases, tuple) else (bases,) * len(self.hams)
        return [ham(part, start) for ham, part, start in zip(self.hams, y.chunk(len(self.hams), 1), starts)]

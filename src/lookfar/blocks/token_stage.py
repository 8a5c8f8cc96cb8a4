"""Stages of tokens: T2T-ViT's and EAMLP's blocks (attention, then a two-layer perceptron) and their narrowing stage.

Traps: where a stage changes the width, what is added is not its input but the values (T2T) or the embedded tokens
(EAMLP); its scale is that of the input's width.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Positive, largest_divisor
from lookfar.blocks._base import block, block_info
from lookfar.blocks._layers import Norm, Placement
from lookfar.blocks._mixers import create_mixer, from_grid, mix, to_grid
from lookfar.blocks._token_norm import token_norm
from lookfar.blocks.multi_head_external import MultiHeadExternal
from lookfar.blocks.performer import Performer
from lookfar.blocks.self_attention import SelfAttention
from lookfar.ops._layout import merge_heads
from lookfar.ops.attention import Normalization

# tuples: torch 2.8 does not compile unions of types
_WEIGHING = (SelfAttention, Performer)
_OF_TOKENS = (*_WEIGHING, MultiHeadExternal)


@block(
    "token_stage",
    title="Token stage (T2T-ViT, EAMLP)",
    paper="Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet (ICCV 2021)",
    arxiv="2101.11986",
    formula=(
        r"u = x + \text{mixer}(\text{LN}(x)),"
        r" \quad \text{with another width: } u = \text{skip} + \text{mixer}(\text{LN}(x))",
        r"y = u + \text{MLP}(\text{LN}(u))",
    ),
    family="pairwise",
    kind="tokens",
    complexity="N^2 C + N C^2",
    memory="N C",
    verified=(
        "MenghaoGuo/EANet@59c03cb:EAMLP/models/transformer_block.py, EAMLP/models/token_transformer.py",
        "yitu-opensource/T2T-ViT@3862e28:models/token_performer.py",
        "yitu-opensource/T2T-ViT@0f63dc9:models/transformer_block.py, through self_attention",
    ),
    attends="weights",
    aliases=("token_transformer",),
    differences=(
        "The originals' dropouts and stochastic depth are left out: they do nothing in evaluation.",
        "The stage of EAMLP shares the storage of its two memories when it is built; here they are independent.",
    ),
    author_keys={
        r"attn\.(?:trans_dims|q_linear)": "mixer.embed",
        r"(?:attn\.)?proj": "mixer.project",
        "attn": "mixer",
        "kqv": "mixer.kqv",  # of T2T-ViT's performer
        "w": "mixer.features",
        r"mlp\.0": "mlp.fc1",
        r"mlp\.2": "mlp.fc2",
    },
)
class TokenStage(nn.Module):
    """Tokens look at each other, or into memories, then each goes through a perceptron; both add to what came in.

    u = x + mixer(LN(x)); y = u + MLP(LN(u)); with ``out_channels`` u = skip + mixer(LN(x))

    A mixer may be any block that keeps the shape of a map: the tokens are laid on their grid, and what the block adds
    stands alone, without its own sum and gate. There is then no class token: what is built of such stages pools. Mixers
    with batch statistics or running bases (``hamburger``, ``external_attention``, ``expectation_maximization``) take
    those of the grids they were trained on; that of ``expectation_maximization`` moves its bases by a running mean, and
    with its default ``gradient`` its first convolution never learns.

    Args:
        channels: Channels C of the tokens.
        out_channels: Width of the output, for a stage that changes it; the skip then comes from within the attention.
        mixer: ``self`` (:class:`SelfAttention`), ``external`` (:class:`MultiHeadExternal`), ``performer``
            (:class:`Performer`), ``none``, or a block of maps with options or without (``hamburger``,
            ``nonlocal(mode=gaussian)``); it gets those of the options below that are given.
        heads: Heads of the attention; by default 1 where the width changes, else 8, as published, or the largest
            divisor of the width below it. A block of maps has its own.
        normalization: Normalisation of the similarities; ``softmax`` of self-attention, ``double`` of external
            attention by default; ``performer`` has its own.
        mlp_ratio: Width of the perceptron's middle, times that of its ends.
        bias: Projections to queries, keys and values have a bias; by default those of ``performer`` have, as published.
        scale: Self-attention: factor on the similarities; (C / heads)^-1/2 by default.
        expansion: External attention: 4 by default, 1 where the width changes, as published.
        bases: External attention: 64 slots by default, 128 where the width changes, as published.
        norm_layer: Normalisation of the tokens before attention and perceptron; over images and tokens it is
            ``lookfar.blocks.TokenBatchNorm``.
        act_layer: Activation in the perceptron.

    Shape: ``(B, N, C) -> (B, N, out_channels or C)``; with a block of maps the N tokens are a square grid, or that of
        ``forward(x, size=(H, W))``

    Raises:
        ValueError: An unknown ``mixer``, heads that do not divide the width, a norm that is not for tokens, a block of
            maps where the width changes.
        TypeError: An option that the block of maps does not have.

    Example:
        >>> block = TokenStage(16)
        >>> block(torch.randn(2, 30, 16)).shape
        torch.Size([2, 30, 16])
    """

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        mixer: Literal["self", "external", "performer", "none"] | str = "self",
        heads: int | None = None,
        normalization: Normalization | None = None,
        mlp_ratio: Positive = 4.0,
        bias: bool | None = None,
        scale: float | None = None,
        expansion: int | None = None,
        bases: int | None = None,
        norm_layer: Norm = nn.LayerNorm,
        act_layer: Norm = nn.GELU,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        self.channels, self.changes_width = channels, out_channels is not None
        out, heads = out_channels or channels, 1 if heads is None and self.changes_width else heads
        self.norm1 = token_norm(norm_layer, channels, **dd)
        self.mixer: nn.Module
        if mixer == "performer":
            if normalization is not None or scale is not None:
                raise ValueError("mixer='performer' has neither normalization nor scale: its features decide")
            heads = largest_divisor(8, out) if heads is None else heads
            self.mixer = Performer(channels, heads=heads, out_channels=out, bias=bias is not False, **dd)
        elif mixer == "self":
            self.mixer = SelfAttention(
                channels, heads=heads, out_channels=out, bias=bool(bias), scale=scale,
                normalization=normalization or "softmax", **dd,
            )  # fmt: skip
        elif mixer == "external":
            self.mixer = MultiHeadExternal(
                channels, heads=heads, out_channels=out, key_bias=not self.changes_width,
                expansion=expansion or (1 if self.changes_width else 4),
                bases=bases or (128 if self.changes_width else 64),
                normalization=normalization or "double", **dd,
            )  # fmt: skip
        else:
            if self.changes_width:
                raise ValueError(f"{mixer=} keeps the width: out_channels is for self, external and performer")
            more = {"normalization": normalization, "bias": bias, "scale": scale, "expansion": expansion}
            self.mixer = create_mixer(mixer, channels, heads=heads, bases=bases, **more, **dd)
        self.norm2 = token_norm(norm_layer, out, **dd)
        hidden = int(out * mlp_ratio)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(out, hidden, **dd), act=act_layer(), fc2=nn.Linear(hidden, out, **dd))
        )

    @property
    def attends(self) -> str:
        """What the mixer has: weights over tokens, maps, or none; it may have been replaced."""
        if (own := getattr(self.mixer, "attends", None)) is not None:
            return own
        try:
            return block_info(self.mixer).attends
        except ValueError:  # none, or a module that is no block of ours
            return "none"

    @property
    def inert_parameters(self) -> tuple[str, ...]:
        """Those of the attention, and what adds one vector to all tokens that it alone sees."""
        inner = [f"mixer.{name}" for name in getattr(self.mixer, "inert_parameters", ())]
        if "mixer.embed.bias" not in inner:
            return tuple(inner)
        if self.changes_width:  # the skip carries the embedded tokens
            return tuple(name for name in inner if name != "mixer.embed.bias")
        return (*inner, "norm1.bias") if getattr(self.norm1, "bias", None) is not None else tuple(inner)

    def sample_inputs(self, size: tuple[int, ...], *, batch: int = 2) -> tuple[Tensor, ...]:
        """Tokens, one a position of a map of ``size``; those of a square grid where the mixer works on one."""
        N = torch.Size(size).numel()
        return (torch.randn(batch, math.isqrt(N) ** 2 if self._on_grid else N, self.channels),)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """``size`` is that of the grid of the tokens, for mixers that work on one."""
        normed = self.norm1(x)
        if self._on_grid:
            return self._perceptron(x + from_grid(mix(self.mixer, to_grid(normed, size))).to(x.dtype))
        if isinstance(self.mixer, _WEIGHING):
            mixed, values = self.mixer.mix(normed)
            skip = merge_heads(values).to(x.dtype) if self.changes_width else x
            return self._perceptron(skip + self.mixer.finish(normed, mixed))
        if not self.changes_width:
            return self._perceptron(x + self.mixer(normed))
        external = cast(MultiHeadExternal, self.mixer)
        u = external.embed(normed)
        return self._perceptron(u + external.mix(u))

    def attention(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Weights ``(B, h, Q, N)`` of the mixer for the tokens ``queries`` (Q,), for all when None."""
        return self._mixer_of("weights").attention(self._mixed(x), queries)

    def values(self, x: Tensor) -> Tensor:
        """What the mixer mixes, ``(B, h, N, D)``."""
        return self._mixer_of("weights").values(self._mixed(x))

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The output from the input and the weighted sums ``(B, h, N, D)``."""
        mixer, normed = self._mixer_of("weights"), self._mixed(x)
        skip = merge_heads(mixer.values(normed)).to(x.dtype) if self.changes_width else x
        y = mixer.finish(normed, mixed)
        return self._perceptron(skip + (from_grid(y).to(x.dtype) if self._on_grid else y))

    def maps(self, x: Tensor) -> Tensor:
        """Maps of the mixer; of external attention the weights over its slots, ``(B, h, S, N)``."""
        return self._mixer_of("maps").maps(self._mixed(x))

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those of the attention."""
        inner = {k.removeprefix("mixer."): v for k, v in state.items() if k.startswith("mixer.")}
        rest = {k: v for k, v in state.items() if not k.startswith("mixer.")}
        convert = getattr(self.mixer, "from_authors", lambda state: state)
        return rest | {f"mixer.{k}": v for k, v in convert(inner).items()}

    def _perceptron(self, u: Tensor) -> Tensor:
        return u + self.mlp(self.norm2(u))

    @property
    def _on_grid(self) -> bool:
        """Whether the mixer is a block of maps."""
        return not isinstance(self.mixer, _OF_TOKENS)

    def _mixed(self, x: Tensor) -> Tensor:
        """What the mixer takes: the normalised tokens, or their map."""
        return to_grid(self.norm1(x)) if self._on_grid else self.norm1(x)

    def _mixer_of(self, wanted: Literal["weights", "maps"]) -> Any:
        """The mixer, if it has weights over tokens, or maps."""
        if self.attends != wanted:
            ask = {"weights": ": ask attention(x)", "maps": ": ask maps(x)"}.get(self.attends, "")
            raise ValueError(f"{type(self.mixer).__name__} has no {wanted} over tokens{ask}")
        return self.mixer

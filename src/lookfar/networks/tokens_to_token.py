"""T2T-ViT and EAMLP: an image becomes tokens in three overlapping splits, with a small attention between them.

Traps: the attention between the splits divides similarities by the root of its input's width (147, 576), as the
authors' code does, the body by that of a head's. ``pos_embed`` is a fixed table in the checkpoint. Its code's
``pretrained=True`` sets the body's scale to C^-1/2, while the command in its README that evaluates the published files
does not: ``scale`` is for whoever knows.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookfar._options import check, choice
from lookfar.blocks import create_block
from lookfar.blocks.token_stage import TokenStage
from lookfar.networks.attention_resnets import pretrained_cfg
from lookfar.weights import State, convert

Stage = Literal["performer", "self", "external"]
# width, depth, heads, width of the perceptron over that of the tokens
_SIZES: dict[int, tuple[int, int, int, float]] = {
    7: (256, 7, 4, 2.0),
    10: (256, 10, 4, 2.0),
    12: (256, 12, 4, 2.0),
    14: (384, 14, 6, 3.0),
    19: (448, 19, 7, 3.0),
    24: (512, 24, 8, 3.0),
}
VISION_TRANSFORMERS: dict[str, tuple[int, Stage, Literal["self", "external"]]] = {
    **{f"t2t_vit_{depth}": (depth, "performer", "self") for depth in (7, 10, 12, 14, 19, 24)},
    **{f"t2t_vit_t_{depth}": (depth, "self", "self") for depth in (14, 19, 24)},
    **{f"eamlp_{depth}": (depth, "external", "external") for depth in (7, 14, 19)},
}


class Splits(nn.Module):
    """The tokens-to-token module: 7x7 windows at stride 4, then twice 3x3 at stride 2, attention after the first two.

    The last split and the linear layer behind it are one convolution, whose output is the grid of the tokens.

    Shape: ``(B, in_chans, H, W) -> (B, C, h, w)``, H / 16 and W / 16 where that has no remainder, see :func:`grid_of`
    """

    def __init__(self, channels: int, inner: int, stage: Stage, in_chans: int) -> None:
        super().__init__()
        make: dict[str, Any] = {"out_channels": inner, "mixer": stage, "mlp_ratio": 1.0}
        self.attention1 = create_block("token_stage", 49 * in_chans, **make)
        self.attention2 = create_block("token_stage", 9 * inner, **make)
        self.project = nn.Conv2d(inner, channels, 3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        H, W = ((n + 1) // 4 for n in images.shape[2:])
        x = self.attention1(F.unfold(images, 7, padding=2, stride=4).transpose(1, 2))  # (B, N, 64)
        x = F.unfold(x.transpose(1, 2).unflatten(2, (H, W)), 3, padding=1, stride=2)
        x = self.attention2(x.transpose(1, 2)).transpose(1, 2)
        return self.project(x.unflatten(2, ((H + 1) // 2, (W + 1) // 2)))


def grid_of(size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the tokens of an image.

    >>> grid_of((224, 160)), grid_of((65, 50))
    ((14, 10), (4, 3))
    """
    H, W = (((n + 1) // 4 + 3) // 4 for n in size)
    return H, W


class TokensToToken(nn.Module):
    """A transformer on tokens that :class:`Splits` makes of an image, with timm's interface.

    Args:
        channels: Width C of the tokens.
        depth: Number of blocks.
        heads: Of each block.
        mlp_ratio: Width of the perceptrons over that of the tokens.
        stage: Attention between the splits: ``performer``, ``self``, ``external``.
        attention: Of the blocks: ``self`` or ``external``.
        inner_channels: Width of the tokens between the splits.
        scale: Factor on the similarities of the blocks; (C / heads)^-1/2 by default.
        num_classes: Of the classifier; 0 for none.
        in_chans: Bands of the images.
        size: Of the images; the table of positions is made for it, and resized elsewhere.

    Shape: ``(B, in_chans, H, W) -> (B, num_classes)``
    """

    def __init__(
        self,
        channels: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        *,
        stage: Stage = "performer",
        attention: Literal["self", "external"] = "self",
        inner_channels: int = 64,
        scale: float | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        size: tuple[int, int] = (224, 224),
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.embed_dim = self.head_hidden_size = channels
        self.num_prefix_tokens, self.global_pool = 1, "token"
        self.grid_size = grid_of(size)
        self.tokens_to_token = Splits(channels, inner_channels, stage, in_chans)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        table = _sinusoids(1 + math.prod(self.grid_size), channels)
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        options: dict[str, Any] = {"heads": heads, "mlp_ratio": mlp_ratio, "mixer": attention, "scale": scale}
        self.blocks = nn.ModuleList(create_block("token_stage", channels, **options) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        self.feature_info = [{"num_chs": channels, "reduction": 16, "module": f"blocks.{n}"} for n in range(depth)]
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(_init)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """All tokens after the last norm, the class token first, ``(B, 1 + N, C)``."""
        x = self._embedded(images)[0]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the tokens ``(B, 1 + N, C)``, or the class token alone."""
        x = x[:, 0]
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps ``(B, C, h, w)`` of the blocks ``indices``, of the last so many or of all, as timm's transformers do."""
        choice("output_fmt", str(getattr(output_fmt, "value", output_fmt)), ("NCHW", "NLC"))
        depth = len(self.blocks)
        wanted = (
            range(depth) if indices is None else range(depth - indices, depth) if isinstance(indices, int) else indices
        )
        take = {n % depth for n in wanted}
        x, size = self._embedded(images)
        found: list[Any] = []
        for n, block in enumerate(self.blocks):
            if stop_early and n > max(take):
                break
            x = block(x)
            if n in take:
                y = self.norm(x) if norm else x
                y, prefix = y[:, 1:], y[:, :1]
                y = y.transpose(1, 2).unflatten(2, size) if output_fmt == "NCHW" else y
                found.append((y, prefix) if return_prefix_tokens else y)
        return found if intermediates_only else (self.norm(x), found)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer; the class token is all that it can see."""
        choice("global_pool", global_pool, (None, "", "token"))
        self.num_classes = num_classes
        like = self.cls_token
        self.head = nn.Identity() if num_classes == 0 else nn.Linear(self.embed_dim, num_classes).to(like)
        _init(self.head)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not to decay."""
        return {"cls_token", "pos_embed"}

    def from_authors(self, state: State) -> State:
        """The names of T2T-ViT, of EAMLP and of mmpretrain's T2T-ViT."""
        state = {k.removeprefix("backbone."): v for k, v in state.items()}
        state = {(f"blocks.{k[8:]}" if k.startswith("encoder.") else k): v for k, v in state.items()}
        state = {(f"head.{k[8:]}" if k.startswith("head.fc.") else k): v for k, v in state.items()}
        found: State = {}
        stages = {name: module for name, module in self.named_modules() if isinstance(module, TokenStage)}
        for name, module in stages.items():
            part = {k[len(name) + 1 :]: v for k, v in state.items() if k.startswith(f"{name}.")}
            found |= {f"{name}.{k}": v for k, v in convert(module, _of_mmpretrain(part)).items()}
        rest = {k: v for k, v in state.items() if not any(k.startswith(f"{name}.") for name in stages)}
        project = rest.get("tokens_to_token.project.weight")
        if project is not None and project.dim() == 2:  # a linear layer behind an unfolding
            rest["tokens_to_token.project.weight"] = project.unflatten(1, (-1, 3, 3))
        if (table := rest.get("pos_embed")) is not None and table.shape != self.pos_embed.shape:
            rest["pos_embed"] = _resized(table, self.grid_size)
        return found | rest

    def _embedded(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Class token and tokens with their positions, and the size of their grid."""
        grid = self.tokens_to_token(images)
        size = (grid.shape[2], grid.shape[3])
        x = torch.cat([self.cls_token.expand(len(grid), -1, -1), grid.flatten(2).transpose(1, 2)], 1)
        table = self.pos_embed if size == self.grid_size else _resized(self.pos_embed, size, self.grid_size)
        return x + table, size


def build_tokens_to_token(
    name: str,
    num_classes: int = 1000,
    *,
    in_chans: int = 3,
    size: int | tuple[int, int] = 224,
    scale: float | None = None,
    channels: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    mlp_ratio: float | None = None,
    inner_channels: int = 64,
) -> TokensToToken:
    """A network of :data:`VISION_TRANSFORMERS` by its name.

    Args:
        name: Of the table.
        num_classes: Of the classifier; 0 for none.
        in_chans: Bands of the images.
        size: Of the images.
        scale: Factor on the similarities of the blocks; that of a head's width by default.
        channels: Another width than the name's; likewise ``depth``, ``heads`` and ``mlp_ratio``.
        depth: Number of blocks.
        heads: Of each block; one for 64 channels by default.
        mlp_ratio: Width of the perceptrons over that of the tokens.
        inner_channels: Width of the tokens between the splits.

    Raises:
        ValueError: A scale where similarities are those with memories, heads that do not divide the width.
    """
    number, stage, attention = VISION_TRANSFORMERS[name]
    width, blocks, _, ratio = _SIZES[number]
    width = channels or width
    sides = (size, size) if isinstance(size, int) else size
    check("size", sides, tuple[int, int])
    if scale is not None and attention == "external":
        raise ValueError(f"{name} has no scale: its similarities are those with memories")
    network = TokensToToken(
        width, depth or blocks, heads or max(width // 64, 1), mlp_ratio or ratio, stage=stage, attention=attention,
        inner_channels=inner_channels, scale=scale, num_classes=num_classes, in_chans=in_chans, size=sides,
    )  # fmt: skip
    cfg = pretrained_cfg(name, num_classes, in_chans, sides, first="", classifier="head")
    network.pretrained_cfg = network.default_cfg = cfg  # type: ignore[assignment]
    return network


def scale_of(name: str, *, channels: int | None = None, heads: int | None = None, **others: Any) -> dict[str, Any]:
    """What no shape of a file tells, by default: heads of a width of its own, and the scale of their similarities."""
    number, _, attention = VISION_TRANSFORMERS[name]
    width = channels or _SIZES[number][0]
    found: dict[str, Any] = {} if channels is None else {"heads": heads or max(width // 64, 1)}
    if attention == "self":
        found["scale"] = (width // (heads or max(width // 64, 1))) ** -0.5
    return found


def seen_in_tokens(state: State) -> dict[str, Any] | None:
    """Arguments of :func:`build_tokens_to_token` that the names and shapes of a file tell; None where it is another's.

    Raises:
        ValueError: Positions of no square grid.
    """
    state = {key.removeprefix("backbone."): value for key, value in state.items()}
    first = "tokens_to_token.attention1."
    marks = {"kqv.weight": "t2t_vit_", "attn.qkv.weight": "t2t_vit_t_", "attn.q_linear.weight": "eamlp_"}
    start = next((start for mark, start in marks.items() if f"{first}{mark}" in state), None)
    if start is None or "pos_embed" not in state:
        return None
    table, inner = (
        state["pos_embed"],
        state[f"{first}norm2.weight" if f"{first}norm2.weight" in state else f"{first}ln2.weight"],
    )
    bands = state[f"{first}norm1.weight" if f"{first}norm1.weight" in state else f"{first}ln1.weight"].shape[0] // 49
    N, channels = table.shape[1] - 1, table.shape[2]
    if math.isqrt(N) ** 2 != N:
        raise ValueError(f"its positions are of {N} tokens, which do not form a square grid")
    body = "encoder" if any(key.startswith("encoder.") for key in state) else "blocks"
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith(f"{body}."))
    hidden = next(v for k, v in state.items() if k in (f"{body}.0.mlp.fc1.weight", f"{body}.0.ffn.layers.0.0.weight"))
    head = state.get("head.weight", state.get("head.fc.weight"))
    found: dict[str, Any] = {"num_classes": 0 if head is None else head.shape[0], "in_chans": bands}
    found["size"] = 16 * math.isqrt(N)
    shape = (channels, depth, hidden.shape[0] / channels)
    for name, (number, *_) in VISION_TRANSFORMERS.items():
        width, blocks, _, ratio = _SIZES[number]
        if name == f"{start}{number}" and (width, blocks, ratio) == shape and len(inner) == 64:
            return {"name": name, **found}
    name = next(name for name in VISION_TRANSFORMERS if name.startswith(start))
    more = dict(zip(("channels", "depth", "mlp_ratio"), shape))
    return {"name": name, **found, **more, "inner_channels": len(inner)}


def _of_mmpretrain(state: State) -> State:
    """mmpretrain's names of a stage into T2T-ViT's."""
    names = {"ln1": "norm1", "ln2": "norm2", "ffn.layers.0.0": "mlp.fc1", "ffn.layers.1": "mlp.fc2"}
    return {
        next((f"{to}{k[len(start) :]}" for start, to in names.items() if k.startswith(f"{start}.")), k): v
        for k, v in state.items()
    }


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _sinusoids(positions: int, channels: int) -> Tensor:
    """The table ``(1, positions, C)`` of sines and cosines by turns, the class token at 0."""
    rates = 10000.0 ** (-2 * (torch.arange(channels, dtype=torch.float64) // 2) / channels)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * rates
    angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
    return angles.float()[None]


def _resized(table: Tensor, size: Sequence[int], old: Sequence[int] | None = None) -> Tensor:
    """Positions ``(1, 1 + N, C)`` of a grid at those of another, bicubically; that of the class token stays."""
    side = math.isqrt(table.shape[1] - 1)
    old = (side, side) if old is None else old
    if math.prod(old) != table.shape[1] - 1:
        raise ValueError(f"pos_embed of {table.shape[1] - 1} tokens is of no square grid")
    grid = table[:, 1:].transpose(1, 2).unflatten(2, tuple(old))
    grid = F.interpolate(grid, tuple(size), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], 1)

"""PCT: attention among the points of a cloud; what a layer learns from is the offset of a point from what it attends.

Traps: the code's softmax and its division run over two axes (the output's, then the summed one): double normalisation;
query and key are one layer under two names; ``attention`` of a few points still needs all points for their keys.
"""

from functools import partial

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar._options import Steps
from lookfar.blocks._base import block
from lookfar.blocks._layers import Norm, Placement
from lookfar.blocks._projections import PairwiseAttention, Projections, Switches, after_mixing, applied, reduced
from lookfar.ops._rectified import rectified
from lookfar.ops.attention import Normalization

_PAPER = "PCT: Point Cloud Transformer (Computational Visual Media 2021)"
_VERIFIED = ("Strawberry-Eat-Mango/PCT_Pytorch@0199a3b:model.py", "equations of MenghaoGuo/PCT@b7152d6 (Jittor)")
_LAYER_KEYS = {
    "q_conv": "query",
    "k_conv": "key",
    "v_conv": "value",
    "trans_conv": "project",
    "after_norm": "norm",
}
_LAYERS = 16  # author_keys name so many; the authors have 4


@block(
    "offset_attention",
    title="Offset attention (PCT)",
    paper=_PAPER,
    arxiv="2012.09688",
    formula=(
        r"y = x + \text{ReLU}(\text{BN}(P\,(x - A v) + b)), \quad"
        r" A = \text{double}(q^\top k) \text{, over queries, then keys}",
    ),
    family="pairwise",
    kind="tokens",
    complexity="N^2 C + N C^2",
    memory="N C",
    verified=_VERIFIED,
    attends="weights",
    aliases=("pct",),
    differences=(
        "The paper divides similarities by the square root of their width; the code does not, nor does this.",
    ),
    author_keys=_LAYER_KEYS,
)
class OffsetAttention(PairwiseAttention):
    """Adds to every point what a layer makes of its offset from the points that it attends to.

    y = x + ReLU(BN(P (x - A v) + b)), A = double normalisation (over queries, then keys) of q^T k

    Args:
        channels: Channels C of the points.
        reduction: Queries and keys have ``channels // reduction`` channels.
        share_query_key: Queries are the keys; by default they are, as published, where there are any.
        projections: ``inside`` has queries, keys and values; ``around`` has one before P, of C channels for all
            ``reduction``, whose result is all three.
        norm_layer: Normalisation after the last projection.

    Shape: ``(B, C, N) -> (B, C, N)``

    Raises:
        ValueError: An unknown choice, choices that exclude each other.

    Example:
        >>> block = OffsetAttention(16)
        >>> block(torch.randn(2, 16, 30)).shape
        torch.Size([2, 16, 30])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 4,
        normalization: Normalization = "double",
        share_query_key: bool | None = None,
        projections: Projections = "inside",
        norm_layer: Norm = nn.BatchNorm1d,
        **dd: Unpack[Placement],
    ) -> None:
        inside = projections == "inside"
        inner = reduced(channels, reduction) if inside else channels
        super().__init__(
            Switches(1, normalization, inside if share_query_key is None else share_query_key, projections),
            partial(nn.Conv1d, channels, inner, 1, bias=False, **dd),
            partial(nn.Conv1d, channels, channels, 1, **dd),
        )
        self.channels = channels
        self.project = nn.Conv1d(channels, channels, 1, **dd)
        self.norm = norm_layer(channels, **dd)

    def sample_inputs(self, size: tuple[int, ...], *, batch: int = 2) -> tuple[Tensor, ...]:
        """Points, one a position of a map of ``size``."""
        return (torch.randn(batch, self.channels, torch.Size(size).numel()),)

    def _finish_map(self, x: Tensor, y: Tensor) -> Tensor:
        offset = x - y if self.normalization == "none" else x - y.to(x.dtype)
        return x + rectified(applied(self.norm, after_mixing(self.project, offset, self.normalization)))

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Their shared layer has two names."""
        return {k: v for k, v in state.items() if self.key is not None or not k.startswith("key.")}


@block(
    "point_stage",
    title="Stage of offset attention (PCT)",
    paper=_PAPER,
    arxiv="2012.09688",
    formula=(
        r"y = [\,z_1, \ldots, z_L\,], \quad z_l = \text{layer}_l(z_{l-1} + \text{position}),"
        r" \quad z_0 = \text{embed}(x)",
    ),
    family="pairwise",
    kind="tokens",
    complexity="L N^2 C + L N C^2",
    memory="L N C",
    verified=(*_VERIFIED, "Strawberry-Eat-Mango/PCT_Pytorch@0199a3b:model_new.py (positions)"),
    attends="none",
    residual=False,
    differences=("With positions the embedding is one layer, without them two, as in the authors' two files.",),
    author_keys={
        r"conv([12])": r"embed.\1.conv",
        r"bn([12])": r"embed.\1.norm",
        "pos_xyz": "position",
        **{rf"sa{n}\.{a}": rf"layers.{n}.{o}" for n in range(1, _LAYERS + 1) for a, o in _LAYER_KEYS.items()},
    },
)
class PointStage(nn.Module):
    """Points are embedded and go through layers of offset attention; the outputs of all layers stand side by side.

    y = [z_1, .., z_L], z_l = layer_l(z_{l-1} + position), z_0 = embedded x

    Args:
        channels: Channels C of the points.
        recurrence: Number of layers L, each with its own weights.
        positions: Add a projection of the coordinates, the second input ``(B, N, 3)``, before every layer.
        reduction: Queries and keys of a layer have ``channels // reduction`` channels.
        normalization: Normalisation of the layers' similarities, see :class:`OffsetAttention`.
        norm_layer: Normalisation in embedding and layers.

    Shape: ``(B, C, N)[, (B, N, 3)] -> (B, L C, N)``

    Raises:
        ValueError: Coordinates that are missing or not wanted, an unknown ``normalization``.

    Example:
        >>> block = PointStage(16)
        >>> block(torch.randn(2, 16, 30)).shape
        torch.Size([2, 64, 30])
    """

    def __init__(
        self,
        channels: int,
        *,
        recurrence: Steps = 4,
        positions: bool = False,
        reduction: int = 4,
        normalization: Normalization = "double",
        norm_layer: Norm = nn.BatchNorm1d,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        self.channels = channels
        self.position = nn.Conv1d(3, channels, 1, **dd) if positions else None
        # counted from one, as the authors count
        self.embed = nn.ModuleDict(
            {
                str(n): nn.ModuleDict(
                    {"conv": nn.Conv1d(channels, channels, 1, bias=False, **dd), "norm": norm_layer(channels, **dd)}
                )
                for n in range(1, 2 if positions else 3)
            }
        )
        self.layers = nn.ModuleDict(
            {
                str(n): OffsetAttention(
                    channels, reduction=reduction, normalization=normalization, norm_layer=norm_layer, **dd
                )
                for n in range(1, recurrence + 1)
            }
        )

    def sample_inputs(self, size: tuple[int, ...], *, batch: int = 2) -> tuple[Tensor, ...]:
        """Points, one a position of a map of ``size``, and their coordinates where they are asked for."""
        N = torch.Size(size).numel()
        x = torch.randn(batch, self.channels, N)
        return (x,) if self.position is None else (x, torch.rand(batch, N, 3))

    def forward(self, x: Tensor, coordinates: Tensor | None = None) -> Tensor:
        if (coordinates is None) is not (self.position is None):
            asked = (
                "takes no coordinates: build it with positions=True" if self.position is None else "wants coordinates"
            )
            raise ValueError(f"this stage {asked}")
        for layer in self.embed.values():
            x = rectified(layer["norm"](layer["conv"](x)))  # type: ignore[index]
        offset = None
        if self.position is not None and coordinates is not None:
            offset = self.position(coordinates.to(x.dtype).transpose(1, 2))
        outputs = []
        for layer in self.layers.values():
            x = layer(x if offset is None else x + offset)
            outputs.append(x)
        return torch.cat(outputs, 1)

    def from_authors(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The shared layers have two names."""
        return {k: v for k, v in state.items() if ".key." not in k}

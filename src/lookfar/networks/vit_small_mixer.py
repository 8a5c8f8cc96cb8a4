"""The backbone ``vit_small_mixer``: a small transformer in which mixers are exchanged and nothing else."""

from torch import Tensor, nn

from lookfar.blocks import create_block
from lookfar.blocks._layers import Norm
from lookfar.blocks._mixers import from_grid
from lookfar.networks.patch import PATCH, WIDTH, CellNormAct


class VitSmallMixer(nn.Module):
    """Cells of 8x8 pixels become tokens, then two stages of a mixer and a perceptron, 64 channels; no class token.

    Without a mixer no cell hears of another. There are no positions: where a cell lies is the mixer's to know, and its
    map is pooled behind. ``lookfar.replace`` puts a block in the places ``blocks.*.mixer``.

    Args:
        in_chans: Bands of the images.
        mixer: As :class:`lookfar.blocks.token_stage.TokenStage` takes it: ``none``, ``self``, ``hamburger(bases=8)``.
        heads: Of the mixer, where it has any.
        depth: Number of stages.
        norm_layer: Of the tokens.

    Shape: ``(B, in_chans, H, W) -> (B, 64, ceil(H / 8), ceil(W / 8))``
    """

    def __init__(
        self,
        in_chans: int = 3,
        *,
        mixer: str = "none",
        heads: int | None = None,
        depth: int = 2,
        norm_layer: Norm = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.layer1 = CellNormAct(in_chans, WIDTH, cell=PATCH)
        stages = (
            create_block("token_stage", WIDTH, mixer=mixer, heads=heads, norm_layer=norm_layer) for _ in range(depth)
        )
        self.blocks = nn.ModuleList(stages)
        self.norm = norm_layer(WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        grid = self.layer1(images)
        size = (grid.shape[2], grid.shape[3])
        x = from_grid(grid)
        for block in self.blocks:
            x = block(x, size=size)
        return self.norm(x).transpose(1, 2).unflatten(2, size)

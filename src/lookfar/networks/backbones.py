"""ResNets of published segmentation networks, built by timm and dilated as their authors do.

Traps: names and shapes of parameters are the same whatever is dilated, so a wrong choice loads without a complaint;
mmsegmentation dilates the first convolution of a basic block alone, timm both.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lookfar.networks.segmentation import timm_backbone
from lookfar.weights import State, rename

# what timm has no name for: the deep stem of ResNet-C on basic blocks
_NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    f"resnet{depth}c": (f"resnet{depth}", {"stem_type": "deep", "stem_width": 32}) for depth in (18, 34)
}
_RATES = {8: (2, 4), 16: (1, 2), 32: (1, 1)}  # of the last two stages, by output stride
MMSEG_KEYS = {r"stem\.7": "bn1", "stem": "conv1"}


def build_backbone(
    name: str,
    *,
    maps: int = 1,
    output_stride: int = 8,
    dilations: Sequence[int] | None = None,
    last_dilations: Sequence[int] | None = None,
    contract_dilation: bool = True,
    ceil_mode: bool = False,
    in_chans: int = 3,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A backbone that gives the maps of its last stages.

    Args:
        name: A model of timm with feature maps, or ``resnet18c``, ``resnet34c``: those with a deep stem.
        maps: How many of the last maps it gives.
        output_stride: Stride of the last map; strides taken away become dilations.
        dilations: Of a ResNet's last two stages, where they are not those that make up for the strides: (2, 4) at
            output stride 8, (1, 2) at 16, (1, 1) at 32.
        last_dilations: Of the blocks of a ResNet's last stage, as in ``(2, 8, 16)`` (multi-grid).
        contract_dilation: The first block of a dilated stage has half its dilation; False: the whole.
        ceil_mode: Of the first max-pool.
        options: Of the timm model, such as ``channels`` and ``stem_width`` of a thin ResNet; and ``stem_channels`` of a
            thin plain stem, which timm has not.

    Raises:
        ValueError: An unknown name, a stride that the model cannot have, dilations of a model that is no ResNet.
    """
    timm_name, named = _NAMED.get(name, (name, {}))
    given: dict[str, Any] = {**named, **(options or {}), "out_indices": tuple(range(-maps, 0))}
    if (plain := given.pop("stem_channels", None)) is not None:
        given |= {"stem_type": "deep", "stem_width": plain // 2}  # the stages are as behind a deep stem of this width
    backbone = timm_backbone(timm_name, in_chans, output_stride, pretrained, **given)
    if plain is not None:
        backbone["conv1"] = nn.Conv2d(in_chans, plain, 7, stride=2, padding=3, bias=False)  # type: ignore[index]
    last = [module for name, module in backbone.named_children() if name in ("layer3", "layer4")]
    if len(last) == 2 and all(_is_residual(block) for stage in last for block in stage.children()):
        _dilate(last, dilations or _RATES[output_stride], last_dilations, contract_dilation)
        if ceil_mode and isinstance(pool := getattr(backbone, "maxpool", None) or backbone["maxpool"], nn.MaxPool2d):  # type: ignore[index]
            pool.ceil_mode = True
    elif dilations or last_dilations or not contract_dilation or ceil_mode:
        raise ValueError(
            f"dilations, last_dilations, contract_dilation and ceil_mode are settings of a ResNet, {name} is none"
        )
    return backbone


def _dilate(stages: Sequence[nn.Module], of: Sequence[int], last: Sequence[int] | None, contract: bool) -> None:
    if len(of) != 2:
        raise ValueError(f"dilations: one for each of the last two stages, got {tuple(of)}")
    for stage, rate in zip(stages, of):
        blocks = list(stage.children())
        rates = [max(rate // 2, 1) if contract else rate] + [rate] * (len(blocks) - 1)
        if last is not None and stage is stages[-1]:
            if len(last) != len(blocks):
                raise ValueError(f"last_dilations: one for each of {len(blocks)} blocks, got {tuple(last)}")
            rates = list(last)
        for block, d in zip(blocks, rates):
            basic = not hasattr(block, "conv3")
            _set_dilation(block.conv1 if basic else block.conv2, d)  # type: ignore[arg-type]
            if basic:
                _set_dilation(block.conv2, 1)  # type: ignore[arg-type]


def _is_residual(block: nn.Module) -> bool:
    conv = getattr(block, "conv2", None)
    return isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3)


def _set_dilation(conv: nn.Conv2d, d: int) -> None:
    conv.dilation = conv.padding = (d, d)


def from_mmseg(state: Mapping[str, Tensor]) -> State:
    """mmsegmentation's names of a ResNet, without ``backbone.``, into timm's: its deep stem is called otherwise."""
    return rename(state, MMSEG_KEYS)

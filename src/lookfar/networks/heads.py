"""Heads of published segmentation networks, each built from a row of data by one class.

Traps: DANet has three classifiers, of which the first alone predicts; ANN has a dropout between its two blocks;
DeepLabV3's block ends in the fusing convolution itself.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lookfar.blocks import block_info, create_block
from lookfar.blocks._base import _explain
from lookfar.blocks._layers import ConvNorm, Norm, Placement
from lookfar.networks.plans import Path, Plan, Width
from lookfar.weights import State, convert, rename


class Way(nn.Module):
    """The modules of a :class:`Path`: ``(B, C, H, W) -> (B, out_channels, H, W)``."""

    def __init__(
        self,
        path: Path,
        channels: int,
        widths: Mapping[Width, int],
        *,
        kernel_size: int,
        dilation: int,
        act_layer: Norm,
        options: Mapping[str, Any],
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        layers: dict[str, Any] = {"norm_layer": nn.BatchNorm2d, "act_layer": act_layer, "dilation": dilation, **dd}
        self.before = self.block = self.after = None
        if path.before is not None:
            self.before = ConvNorm(channels, widths[path.before], kernel_size, **layers)
            channels = widths[path.before]
        if path.block is not None:
            inner = {} if path.inner is None else {"inner_channels": widths[path.inner]}
            self.block = create_block(path.block, channels, **options, **inner, **dd)
            if path.gives is not None:
                bins = len(getattr(self.block, "bins", None) or getattr(self.block, "scales", ()))
                channels = path.gives(channels, widths[path.inner or "channels"], bins)
        if path.after:
            self.after = ConvNorm(channels, widths["channels"], kernel_size, **layers)
            channels = widths["channels"]
        self.out_channels = channels

    def forward(self, x: Tensor, *second: Tensor) -> Tensor:
        x = x if self.before is None else self.before(x)
        x = x if self.block is None else self.block(x, *second)
        return x if self.after is None else self.after(x)


class Head(nn.Module):
    """From a backbone's maps to logits, as a :class:`Plan` says.

    y = classify(fuse [x, sum_p after_p(block_p(before_p(x)))]), x first merged with the map of the stage before in ANN

    Args:
        plan: What it consists of.
        channels: Channels of the last map.
        num_classes: Number K of classes.
        width: Channels of the head; ``channels // plan.width`` by default.
        inner_channels: Inner channels of its blocks; by default as published in proportion.
        low_channels: Channels of the map of the stage before, where the plan merges it.
        align_corners: Of the resizing within blocks.
        kernel_size: Of the convolutions around a block.
        dilation: Of the convolutions around a block, as FCN-D6 has it.
        dropout: Before the classifier, in training.
        negative_slope: Of the rectifiers around a block.
        concat: Whether a convolution of x and the result follows; as published by default.
        options: Of the blocks, instead of the published ones; each block takes those that it has.

    Shape: ``(B, C, H, W) -> (B, K, H, W)``

    Raises:
        TypeError: An option that no block of the head has.
    """

    def __init__(
        self,
        plan: Plan,
        channels: int,
        num_classes: int,
        *,
        width: int | None = None,
        inner_channels: int | None = None,
        low_channels: int | None = None,
        align_corners: bool = False,
        kernel_size: int = 3,
        dilation: int = 1,
        dropout: float = 0.1,
        negative_slope: float = 0.0,
        concat: bool | None = None,
        options: Mapping[str, Any] | None = None,
        **dd: Unpack[Placement],
    ) -> None:
        super().__init__()
        self.plan = plan
        width = width or max(channels // plan.width, 1)
        inner = inner_channels or (-plan.inner * width if plan.inner < 0 else max(width // plan.inner, 1))
        widths: dict[Width, int] = {"channels": width, "inner": inner}
        options = dict(options or {})
        if inner_channels is not None and not plan.has_inner:
            options["inner_channels"] = inner_channels
        given = {"align_corners": align_corners, **options}
        _check_known(plan, options)
        self.merge = None
        if plan.merge is not None:
            name, published = plan.merge
            chosen = _chosen(name, published, given)
            self.merge = create_block(
                name, channels, **chosen, low_channels=low_channels, inner_channels=inner, out_channels=channels, **dd
            )
        act: Norm = partial(nn.LeakyReLU, negative_slope) if negative_slope else nn.ReLU
        layers: dict[str, Any] = {"kernel_size": kernel_size, "dilation": dilation, "act_layer": act, **dd}
        ways = []
        for path in plan.paths:
            own = {} if path.block is None else _chosen(path.block, path.options, given)
            ways.append(Way(path, channels, widths, options=own, **layers))
        self.paths = nn.ModuleList(ways)
        out = ways[0].out_channels
        self.fuse = None
        if plan.concat if concat is None else concat:
            layer = ConvNorm(channels + out, width, kernel_size, norm_layer=nn.BatchNorm2d, act_layer=act, **dd)
            self.fuse, out = layer, width
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(out, num_classes, 1, **dd)
        several = len(ways) if len(ways) > 1 else 0
        self.classifiers = nn.ModuleList(nn.Conv2d(out, num_classes, 1, **dd) for _ in range(several))
        for conv in (self.classifier, *self.classifiers):
            nn.init.normal_(conv.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, *, low: Tensor | None = None, guess: Tensor | None = None) -> Tensor:
        """The logits; ``low`` is the map of the stage before, ``guess`` other logits, where the plan has them."""
        return self.outputs(x, low=low, guess=guess, only_first=True)[0]

    def outputs(
        self, x: Tensor, *, low: Tensor | None = None, guess: Tensor | None = None, only_first: bool = False
    ) -> list[Tensor]:
        """The logits, then those of each path by itself where there are several."""
        if self.merge is not None:
            x = self.dropout(self.merge(x, low))
        second = () if guess is None or not self.plan.guess else (guess,)
        maps = [way(x, *second) for way in self.paths]
        y = maps[0]
        for other in maps[1:]:
            y = y + other
        if self.fuse is not None:
            y = self.fuse(torch.cat([x, y], 1))
        outputs = [self.classifier(self.dropout(y))]
        if not only_first:
            outputs += [classify(self.dropout(m)) for classify, m in zip(self.classifiers, maps)]
        return outputs

    def from_authors(self, state: State) -> State:
        """Others' names of a head, without what stands before them, into ours."""
        keys = next((some for some in self.plan.keys if any(key.startswith(some.mark) for key in state)), None)
        if keys is None:
            return state
        found = rename(state, keys.patterns)
        blocks = {place: dict[str, Tensor]() for place in keys.blocks.values()}
        for key in list(found):
            for theirs, place in keys.blocks.items():
                if key in state and key.startswith(theirs and f"{theirs}."):
                    blocks[place][key.removeprefix(theirs).lstrip(".")] = found.pop(key)
                    break
        for place, part in blocks.items():
            if part:
                found |= {f"{place}.{key}": v for key, v in convert(self.get_submodule(place), part).items()}
        return self._without_biases(found)

    def _without_biases(self, state: State) -> State:
        """Biases before a norm, where the layer has none, taken into the norm's running mean: exactly the same."""
        own = self.state_dict()
        for key in [key for key in state if key.endswith(".conv.bias") and key not in own]:
            mean = key.replace(".conv.bias", ".norm.running_mean")
            if mean in state:
                state = {**state, mean: state[mean] - state[key]}
                del state[key]
        return state


def _chosen(block: str, published: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a block: the published ones, then those that are given and that it has."""
    return {**published, **{name: value for name, value in given.items() if name in block_info(block).options}}


def _check_known(plan: Plan, options: Mapping[str, Any]) -> None:
    names = [path.block for path in plan.paths if path.block is not None]
    names += [] if plan.merge is None else [plan.merge[0]]
    for option in options:
        if not any(option in block_info(name).options for name in names):
            raise TypeError(
                _explain(block_info(names[0]), option) if names else f"{plan.title} has no block, so no {option!r}"
            )

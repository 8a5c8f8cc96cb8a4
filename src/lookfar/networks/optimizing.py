"""A network made quicker for inference: what is linear and stands in a row becomes one convolution.

Batch norms go into the convolutions before them; a 1x1 convolution that takes what another convolution gave, with
nothing between, joins it; and so does the one behind softmax attention join the values', since averages with weights
that sum to one pass through it. Queries and keys stay apart: one convolution for both was measured to take as long.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_leaves, tree_map

from lookfar._drawing import randomise
from lookfar.blocks._projections import PairwiseAttention
from lookfar.insertion.dry_run import Inputs, example_inputs, untouched

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TOLERANCE = 1e-4

Pair = tuple[str, str]  # names of a layer and of the one that becomes a part of it
Value = tuple[int, int]  # id of a tensor, and how often it was changed in place: a ReLU in place is told apart
Calls = list[tuple[str, Value, Value]]  # name of a layer, its input and its output


def optimize(network: nn.Module, example: Any = None) -> nn.Module:
    """A copy in evaluation in which linear layers that follow each other are one convolution.

    Which follow each other is found by running a copy with random parameters; layers become one where the outputs
    stay the same. Layers with hooks or parametrizations stay as they are. For inference
    alone: parameters have other names and no longer learn alike.

    Args:
        network: Left as it was.
        example: An input, a tuple of arguments or a dict of keyword arguments; None where the network says what it
            takes (timm's ``pretrained_cfg``).

    Raises:
        ValueError: No example for a network that does not say what it takes.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    >>> optimize(network, torch.randn(1, 3, 9, 9))
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )
    """
    trial = _Trial(network, example_inputs(network, example))
    network = copy.deepcopy(network).eval()
    for find, join in ((_norms, _fold), (_rows, _join), (_around_attention, _join)):
        while pairs := trial.accepted(find, join):  # what was joined may have joined another
            for pair in pairs:
                join(network, pair)
    return network


class _Trial:
    """A copy of a network with random parameters: behind a factor that is still 0 no mistake would be seen."""

    def __init__(self, network: nn.Module, inputs: Inputs) -> None:
        with untouched(network):
            self.network = randomise(_cast(copy.deepcopy(network))).eval()
        self.inputs = tree_map(_cast, inputs)
        self.calls, self.want = _run(self.network, self.inputs)

    def accepted(
        self, find: Callable[[nn.Module, Calls], list[Pair]], join: Callable[[nn.Module, Pair], None]
    ) -> list[Pair]:
        """The pairs that can be joined, which they then are here, too."""
        return self._of(find(self.network, self.calls), join)

    def _of(self, pairs: list[Pair], join: Callable[[nn.Module, Pair], None]) -> list[Pair]:
        """All of them, or those of each half: where something else reads what lies between two, they stay apart."""
        if not pairs or self._joined(pairs, join):
            return pairs
        half = len(pairs) // 2
        return [*self._of(pairs[:half], join), *self._of(pairs[half:], join)] if half else []

    def _joined(self, pairs: list[Pair], join: Callable[[nn.Module, Pair], None]) -> bool:
        # parameters are replaced, not changed: the copy may share them
        network = copy.deepcopy(self.network, {id(p): p for p in self.network.parameters()})
        try:
            for pair in pairs:
                join(network, pair)
            calls, found = _run(network, self.inputs)
            same = _alike(found, self.want)
        except Exception:  # whatever it raises without one of its layers, that layer is needed
            return False
        if same:
            self.network, self.calls = network, calls
        return same


def _cast(some: Any) -> Any:
    """In float32: half precision tells too little apart, and float64 takes too long."""
    floating = isinstance(some, nn.Module) or (isinstance(some, Tensor) and some.is_floating_point())
    return some.float() if floating else some


def _run(network: nn.Module, inputs: Inputs) -> tuple[Calls, list[Tensor]]:
    """Calls of convolutions and norms, by name; what the network gives."""
    calls: Calls = []
    alive: list[Any] = []  # only of living tensors are ids their own

    def called(name: str, args: Any, y: Any) -> None:
        x = args[0] if args else None
        alive.extend((x, y))
        calls.append((name, _value(x), _value(y)))

    hooks = [
        module.register_forward_hook(lambda _, args, y, name=name: called(name, args, y))  # type: ignore[misc]
        for name, module in network.named_modules()
        if _plain(module, (*CONVS, *NORMS))
    ]
    args, kwargs = inputs
    try:
        with untouched(network), torch.no_grad():
            y = network.eval()(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    outputs = [t.clone() for t in tree_leaves(y) if isinstance(t, Tensor)]
    return calls, outputs


def _value(some: Any) -> Value:
    return id(some), some._version if isinstance(some, Tensor) and not some.is_inference() else 0


def _alike(got: list[Tensor], want: list[Tensor]) -> bool:
    return all((a - b).abs().max() <= TOLERANCE * b.abs().max() for a, b in zip(got, want, strict=True) if b.numel())


def _norms(network: nn.Module, calls: Calls) -> list[Pair]:
    """Convolutions, and the norms with statistics that take what they give."""
    pairs = _following(network, calls, NORMS)
    for name, layer in network.named_modules():  # blocks may read a convolution's weight instead of running it
        parts = dict(layer.named_children())
        for first in ("conv", "project"):
            if _plain(parts.get(first), CONVS) and _plain(parts.get("norm"), NORMS):
                pairs.append((f"{name}.{first}".lstrip("."), f"{name}.norm".lstrip(".")))
    return [p for p in dict.fromkeys(pairs) if network.get_submodule(p[1]).running_mean is not None]


def _rows(network: nn.Module, calls: Calls) -> list[Pair]:
    """Convolutions, and the 1x1 convolutions that take what they give, where one for both is less work."""
    pairs = _following(network, calls, CONVS)
    return [pair for pair in pairs if _saves(network.get_submodule(pair[0]), network.get_submodule(pair[1]))]


def _around_attention(network: nn.Module, calls: Calls) -> list[Pair]:
    """The values' convolutions of softmax attention, and the 1x1 convolutions behind it that do not widen them."""
    pairs = []
    for name, block in network.named_modules():
        if not isinstance(block, PairwiseAttention) or block.normalization != "softmax" or block.heads != 1:
            continue
        value, layers = block.value, dict(block.named_modules())
        place = next((n for n in ("project.conv", "project", "mix") if _plain(layers.get(n), CONVS)), None)
        if place is None or not _plain(value, CONVS):
            continue
        second: Any = layers[place]
        if second.out_channels <= second.in_channels and _saves(value, second):
            pairs.append((f"{name}.value".lstrip("."), f"{name}.{place}".lstrip(".")))
    return pairs


def _following(network: nn.Module, calls: Calls, kinds: tuple[type, ...]) -> list[Pair]:
    """Names of convolutions and of the layers of these kinds that take what they give."""
    made = {y: name for name, _, y in calls if isinstance(network.get_submodule(name), CONVS)}
    found = [(made[x], name) for name, x, _ in calls if x in made and isinstance(network.get_submodule(name), kinds)]
    return list(dict.fromkeys(found))


def _plain(module: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a module is of one of these very classes, and nothing else is told when it runs."""
    return type(module) in kinds and not (module._forward_hooks or module._forward_pre_hooks)


def _saves(first: Any, second: Any) -> bool:
    """Whether a 1x1 convolution can join the one before, into less work than that of both."""
    pointwise = {*second.kernel_size, *second.stride} == {1} and not any(second.padding) and second.groups == 1
    if not pointwise or first.groups != 1:
        return False
    area = first.weight[0, 0].numel()
    before = first.in_channels * area * first.out_channels + second.in_channels * second.out_channels
    return first.in_channels * area * second.out_channels <= before


def _fold(network: nn.Module, pair: Pair) -> None:
    """A norm becomes a part of the convolution before it, computed in float64."""
    conv: Any = network.get_submodule(pair[0])
    norm: Any = network.get_submodule(pair[1])
    wide = [
        None if t is None else t.double()
        for t in (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    ]
    with torch.no_grad():
        weight, bias = fuse_conv_bn_weights(*wide[:4], norm.eps, *wide[4:])  # type: ignore[arg-type]
    _replace(network, pair, weight, bias)


def _join(network: nn.Module, pair: Pair) -> None:
    """A 1x1 convolution becomes a part of the one before it, computed in float64."""
    first: Any = network.get_submodule(pair[0])
    second: Any = network.get_submodule(pair[1])
    with torch.no_grad():
        by = second.weight.double().flatten(1)  # (E, D)
        weight = (by @ first.weight.double().flatten(1)).unflatten(1, first.weight.shape[1:])
        bias = weight.new_zeros(len(by)) if second.bias is None else second.bias.double()
        if first.bias is not None:
            bias = bias + by @ first.bias.double()
    first.out_channels = second.out_channels
    _replace(network, pair, weight, bias)


def _replace(network: nn.Module, pair: Pair, weight: Tensor, bias: Tensor) -> None:
    conv: Any = network.get_submodule(pair[0])
    learns = conv.weight.requires_grad
    like = conv.weight
    conv.weight = nn.Parameter(weight.to(like), requires_grad=learns)
    conv.bias = nn.Parameter(bias.to(like), requires_grad=learns)
    network.set_submodule(pair[1], nn.Identity())

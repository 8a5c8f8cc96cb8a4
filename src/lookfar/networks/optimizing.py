"""A network made quicker for inference: each batch norm that follows a convolution becomes a part of it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_leaves

from lookfar._drawing import randomise
from lookfar.insertion.dry_run import example_inputs, untouched

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TOLERANCE = 1e-4


def optimize(network: nn.Module, example: Any = None) -> nn.Module:
    """A copy in evaluation whose batch norms are folded into the convolutions before them.

    Pairs are found by a forward pass of a copy with random parameters: a norm is folded where its input is what a
    convolution gave, and the outputs stay the same. For inference alone: the parameters have other names
    and no longer learn alike.

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
    args, kwargs = example_inputs(network, example)
    with untouched(network):
        # random parameters: behind a factor that is still 0 no mistake would be seen
        drawn = randomise(copy.deepcopy(network)).eval()
    pairs, want = _followed(drawn, args, kwargs)
    if not _alike(_outputs(_folded(drawn, pairs), args, kwargs), want):
        # where something else reads what a convolution gives, the two stay apart
        pairs = [pair for pair in pairs if _alike(_outputs(_folded(drawn, [pair]), args, kwargs), want)]
    return _folded(network, pairs).eval()


def _outputs(network: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    with untouched(network), torch.no_grad():
        return [t.clone() for t in tree_leaves(network.eval()(*args, **kwargs)) if isinstance(t, Tensor)]


def _alike(got: list[Tensor], want: list[Tensor]) -> bool:
    return all((a - b).abs().max() <= TOLERANCE * b.abs().max() for a, b in zip(got, want, strict=True) if b.numel())


def _followed(network: nn.Module, args: Any, kwargs: Any) -> tuple[list[tuple[str, str]], list[Tensor]]:
    """Names of convolutions and of the norms that take their outputs, and what the network gives."""
    with _calls(network) as calls:
        want = _outputs(network, args, kwargs)
    modules = dict(network.named_modules(remove_duplicate=False))
    made = {id(y): name for name, _, y in calls if isinstance(modules[name], CONVS)}
    found = [(made[id(x)], name) for name, x, _ in calls if id(x) in made and isinstance(modules[name], NORMS)]
    pairs = [pair for pair in dict.fromkeys(found) if modules[pair[1]].running_mean is not None]
    return pairs, want


@contextmanager
def _calls(network: nn.Module) -> Iterator[list[tuple[str, Any, Any]]]:
    """Name, first argument and output of each call, all kept alive, of modules of torch's very classes."""
    calls: list[tuple[str, Any, Any]] = []
    hooks = [
        module.register_forward_hook(
            lambda _, args, y, name=name: calls.append((name, args[0] if args else None, y))  # type: ignore[misc]
        )
        for name, module in network.named_modules()
        if type(module) in (*CONVS, *NORMS)
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _folded(network: nn.Module, pairs: list[tuple[str, str]]) -> nn.Module:
    """A copy with these norms in their convolutions, computed in float64."""
    network = copy.deepcopy(network)
    for conv_name, norm_name in pairs:
        conv: Any = network.get_submodule(conv_name)
        norm: Any = network.get_submodule(norm_name)
        wide = [
            None if t is None else t.double()
            for t in (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        ]
        with torch.no_grad():
            weight, bias = fuse_conv_bn_weights(*wide[:4], norm.eps, *wide[4:])  # type: ignore[arg-type]
            conv.weight = nn.Parameter(weight.to(conv.weight))
            conv.bias = nn.Parameter(bias.to(conv.weight))
        network.set_submodule(norm_name, nn.Identity())
    return network

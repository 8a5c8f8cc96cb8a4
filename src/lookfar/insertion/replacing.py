"""Put a layer of attention in the place of a convolution, or a norm in the place of another.

What :func:`insert` adds starts as the identity; what :func:`replace` brings in does not: the network computes something
else from then on, and wants training.
"""

import inspect
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lookfar.blocks import BlockInfo, block_info, create_block, list_blocks
from lookfar.blocks._mixers import NoMixer, alone, is_layer
from lookfar.blocks._token_norm import takes_channels_first
from lookfar.insertion.building import known_block, path_of, random_like
from lookfar.insertion.dry_run import (
    Call,
    asks_for_example,
    example_inputs,
    only_tensor,
    recorded,
    run,
    untouched,
    watched,
)
from lookfar.insertion.gated import block_name
from lookfar.insertion.hanging import Record, detach, insertions, stand_in
from lookfar.insertion.inserting import named_block
from lookfar.insertion.layouts import Layout
from lookfar.insertion.places import find_modules, is_norm, refuse_host


@torch.inference_mode(False)
def replace(
    network: nn.Module,
    block: str | type[nn.Module],
    at: str | Sequence[str],
    *,
    example: Any = None,
    **options: Any,
) -> list[str]:
    """Put layers in the place of convolutions, in place; **the network's output changes**, as its weights are new.

    Channels, stride, dilation, groups and extent are those of the convolution that goes, where the layer has such an
    option and the caller does not say. :func:`remove` brings the convolutions back, with their weights.

    >>> import timm
    >>> from lookfar.insertion import remove
    >>> net = timm.create_model("resnet18")
    >>> replace(net, "stand_alone", at="layer4.*.conv2", kernel_size=7)
    ['layer4.0.conv2', 'layer4.1.conv2']
    >>> remove(net)
    ['layer4.0.conv2', 'layer4.1.conv2']

    A block of kind context with ``residual=False`` is such a layer too, one that keeps width and size. Where a host
    keeps a place for a mixer of tokens (``mixer="none"`` of ``token_stage``, the host ``vit_small_mixer``), every block
    of maps stands there without its sum.

    Args:
        network: Any module whose forward calls the named convolutions.
        block: Name of a block of kind ``layer``, or of kind ``context`` with ``residual=False``, with options or
            without (``"stand_alone(heads=4)"``); a class that takes channels first, or its address
            (``"my.py:MyLayer"``), which is given ``out_channels``, ``stride`` and the rest where its constructor names
            them. In the place of a norm: a class of norms that takes the width.
        at: Names of convolutions or globs in which ``*`` does not cross dots: ``"layer*.*.conv2"``.
        example: An input for trying the network, as for :func:`insert`.
        **options: The layer's own options.

    Returns:
        Names of the replaced modules, in the network's order.

    Shape: of the convolution, ``(B, C, H, W) -> (B, O, H', W')``

    Raises:
        ValueError: No such module; it is no convolution, is never called, or more than once, or stands under two names;
            it has groups, a stride or a dilation that the layer has not; the layer gives another shape. The network is
            then as it was.
        TypeError: Unknown option.
    """
    refuse_host(network)
    if isinstance(block, str):
        block, written = named_block(block, options)
        options = {**written, **options}
    info = _known(block)
    present = insertions(network)
    hidden = [one.module for one in present if one.record.replaced is None]
    places = find_modules(network, at, hidden)
    given = {}
    for place in places:
        given[place] = _options_at(network.get_submodule(place), info, options)
        _refuse_place(network, place, info)
    inputs = example_inputs(network, example)
    with asks_for_example(network, example, inputs), recorded(network, places) as (calls, _):
        run(network, inputs, train=False)

    order = 1 + max((one.record.order for one in present), default=0)
    layers: dict[str, nn.Module] = {}
    for number, place in enumerate(places, order):
        layers[place] = _build(block, info, network.get_submodule(place), place, calls[place], given[place])
        layers[place].inserted.order = number  # type: ignore[union-attr]
    done: list[str] = []
    try:
        for place, layer in layers.items():
            stand_in(network, layer, place)
            done.append(place)
        with watched(layers.values()) as seen:
            run(network, inputs, train=False)
        wrong = {place: one.calls for place, one in zip(layers, seen) if one.calls != 1}
        for place, count in wrong.items():
            raise ValueError(f"the layer at {place} is called {count} times in a forward pass, want once")
    except BaseException:
        for place in done:
            detach(network, place)
        raise
    return places


def takes_mixers(network: nn.Module, at: str) -> bool:
    """Whether a network keeps the modules at a place for mixers of its tokens, and has none there."""
    return all(isinstance(network.get_submodule(name), NoMixer) for name in find_modules(network, at))


def _known(block: Any) -> BlockInfo | None:
    """The facts of a block; None for a class that is not ours.

    Raises:
        ValueError: A module that is already built.
    """
    if isinstance(block, nn.Module):
        raise ValueError(f"replace takes a name or a class, got a {type(block).__name__} that is built already")
    return known_block(block)


def _options_at(old: nn.Module, info: BlockInfo | None, options: dict[str, Any]) -> dict[str, Any]:
    """Options of a block in the place of ``old``: where a mixer belongs, it has no sum of its own.

    Raises:
        ValueError: The block is none that can stand there.
    """
    if info is None:
        return options
    if isinstance(old, NoMixer):
        return {**alone(info.name)[1], **options}
    if is_layer(info, options):
        return options
    sums = "; with residual=False it is such a layer" if "residual" in info.options else ""
    raise ValueError(
        f"{info.name} is of kind {info.kind}: only blocks of kind layer stand in the place of a convolution "
        f"({', '.join(list_blocks(kind='layer'))}){sums}; lookfar.insert puts others behind a module"
    )


def _refuse_place(network: nn.Module, place: str, info: BlockInfo | None) -> None:
    """Raise a ValueError where a layer cannot stand."""
    module = network.get_submodule(place)
    what = f"{place} is a {type(module).__name__}"
    if getattr(module, "inserted", None) is not None:
        raise ValueError(f"{what} that replace has put there: bring the convolution back first, lookfar.remove")
    norm = info is None and is_norm(module) and all(isinstance(m, nn.Identity) for m in module.children())
    if not isinstance(module, nn.Conv2d | NoMixer) and not norm:
        inside = [f"{place}.{name}" for name, one in module.named_modules() if isinstance(one, nn.Conv2d)]
        norms = "" if info is not None else ", and a class of norms the place of a norm"
        hint = f". Convolutions in it: {', '.join(inside[:4])}" if inside else ""
        raise ValueError(f"{what}: a layer takes the place of a Conv2d{norms}{hint}")
    names = [name for name, one in network.named_modules(remove_duplicate=False) if one is module]
    if len(names) > 1:
        raise ValueError(f"{what} that stands under {len(names)} names ({', '.join(names[:3])}): want one")
    behind = [one.name for one in insertions(network) if place in (one.spot, one.place, one.holder)]
    if behind:
        raise ValueError(f"{what} with {behind[0]} behind it: replace first, insert then (lookfar.remove undoes it)")
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(f"{what} with hooks of its own, which would be lost: remove them first")


def _build(
    block: Any, info: BlockInfo | None, old: nn.Module, place: str, calls: list[Call], options: dict[str, Any]
) -> nn.Module:
    """The new layer with its record."""
    if len(calls) != 1:
        how = f"called {len(calls)} times in" if calls else "never called in"
        raise ValueError(f"{place} is {how} a forward pass, want once")
    x, y = only_tensor(next(iter(calls[0].args), None)), only_tensor(calls[0].output)
    if x is None or y is None:
        raise ValueError(f"{place} is not called with one tensor, or gives none")
    cls = info.cls if info is not None else block
    known = inspect.signature(cls).parameters
    if isinstance(old, nn.Conv2d):
        name = info.name if info is not None else cls.__name__
        options = {**_taken_over(name, place, old, tuple(y.shape[2:]), known, options), **options}
    like = next(old.parameters(), x)
    device = torch.device("cpu") if like.is_meta else like.device  # built and tried on the CPU, then moved there
    dd: dict[str, Any] = {"device": device, "dtype": like.dtype}
    width = _width(old)
    try:
        make: Any = cls if info is None else partial(create_block, info.name)
        layer: nn.Module = make(width, **{k: v for k, v in dd.items() if k in known}, **options).to(**dd)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    if takes_channels_first(layer) and isinstance(old, nn.LayerNorm) and not takes_channels_first(old):
        raise ValueError(
            f"{place} norms (B, .., C), and {type(layer).__name__} would take another axis for the channels: "
            "lookfar.blocks.TokenBatchNorm norms them over images and positions"
        )
    _check_shape(place, layer, random_like(x, device=device), tuple(y.shape))
    what = info.name if info is not None else path_of(block)
    layer.inserted = Record(what, options, width, "replace", Layout())  # type: ignore[assignment]
    return layer.to("meta") if like.is_meta else layer


def _width(old: nn.Module) -> int:
    """Channels that a convolution or a norm takes."""
    shape = getattr(old, "normalized_shape", None)
    if shape:
        return shape[-1]
    for name in ("in_channels", "num_features", "num_channels"):
        if isinstance(width := getattr(old, name, None), int):
            return width
    for parameter in old.parameters():
        return len(parameter)
    raise ValueError(f"a {type(old).__name__} without parameters does not say how wide it is")


def _taken_over(
    name: str, place: str, conv: nn.Conv2d, size: tuple[int, ...], known: Collection[str], given: Collection[str]
) -> dict[str, Any]:
    """Options that the convolution decides, where the layer has them and the caller does not say.

    Raises:
        ValueError: The convolution has groups, a stride, a dilation or another width, and the layer no such option.
    """
    plain = {"out_channels": conv.in_channels, "stride": 1, "dilation": 1, "groups": 1}
    found: dict[str, Any] = {option: _one_number(getattr(conv, option)) for option in plain}
    for option, value in found.items():
        if value != plain[option] and option not in known:
            others = [other for other in list_blocks(kind="layer") if option in block_info(other).options]
            raise ValueError(f"{place} has {option}={value}, and {name} has no such option; {', '.join(others)} have")
    if conv.groups == 1:
        del found["groups"]  # how many a layer wants by itself says nothing of a convolution in one group
    found["kernel_size"] = _one_number(conv.kernel_size)
    found["size"] = size  # attention_augmented's tables of relative positions are those of one size
    return {option: value for option, value in found.items() if option in known and option not in given}


def _one_number(value: int | tuple[int, ...]) -> int | tuple[int, ...]:
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _check_shape(place: str, layer: nn.Module, x: Tensor, want: tuple[int, ...]) -> None:
    name = block_name(layer)
    try:
        with untouched(layer), torch.no_grad():
            y = layer.eval()(x)
    except Exception as error:
        raise ValueError(f"{name} does not run on the input of {place}, {tuple(x.shape)}: {error}") from error
    got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
    if got != want:
        raise ValueError(f"{name} gives {got} for the input of {place}, {tuple(x.shape)}; want {want}, as before")

"""Put a block into a network, and check that what the network computes has not changed."""

import contextlib
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lookfar._options import choice
from lookfar.blocks import parse_block
from lookfar.blocks._own import find_own, parse_address
from lookfar.insertion.building import build, info_of
from lookfar.insertion.dry_run import (
    Call,
    Inputs,
    Seen,
    Shapes,
    asks_for_example,
    bit_equal,
    example_inputs,
    only_tensor,
    recorded,
    run,
    untouched,
    watched,
)
from lookfar.insertion.gated import block_name
from lookfar.insertion.hanging import attach, detach, insertions
from lookfar.insertion.layouts import Layout, OffGridError, convolutions, find_layout, forget_grids
from lookfar.insertion.places import blocks_of, branch_ends, find_modules, holders, refuse_host, spot_of

Position = Literal["last", "every", "branch"]


@torch.inference_mode(False)
def insert(
    network: nn.Module,
    block: str | type[nn.Module] | nn.Module,
    at: str | Sequence[str],
    *,
    position: Position = "last",
    example: Any = None,
    raw: bool = False,
    shared: bool = False,
    **options: Any,
) -> list[str]:
    """Put a block into a network, in place; what the network computes stays the same bit for bit, which is checked.

    >>> import timm
    >>> net = timm.create_model("resnet18")
    >>> insert(net, "position_attention", at="layer3", reduction=4)
    ['layer3.1.position_attention']

    Args:
        network: Any module whose forward calls the named modules: of timm, torchvision, transformers, one of your own.
        block: Name of a block, with options or without (``"nonlocal"``, ``"nonlocal(mode=gaussian)"``), a class that
            takes channels first, its address (``"my.py:MyBlock"``), or a module (for one place).
        at: Names of modules or globs in which ``*`` does not cross dots: ``"layer3"``, ``["layer*", "stem"]``.
            Leading parts may be left out where that is unambiguous.
        position: ``last``: after the output of each named module. ``every``: after each of the blocks in it.
            ``branch``: at the end of the residual branch of each block in it, before the sum (as SE and GC stand).
        example: An input for trying the network: a tensor, a tuple of arguments, or a dict of keyword arguments. By
            default random images in the size of a timm network's ``pretrained_cfg``.
        raw: Leave a block that is not residual (SE, CBAM, filters by nature; others with ``residual=False``) as it is;
            the network's output changes. Otherwise it enters as x + gamma (block(x) - x) with gamma 0, see
            :class:`Gated`.
        shared: The place may be called several times in a forward pass, as a head over the levels of a pyramid is.
        **options: The block's own options.

    Returns:
        Names of the inserted modules, in the network's order.

    Shape: of the place's output (B, C, H, W), (B, C, L), (B, C, T, H, W). Maps (B, H, W, C) are permuted; tokens
        (B, n + N, C) of a transformer are laid on the grid of its patches, the n class and register tokens pass by.

    Raises:
        ValueError: No such module; it is never called, or more than once; it gives no feature map; the block does not
            keep the map's shape; the output changed. The network is then as it was.
        TypeError: Unknown option.
    """
    choice("position", position, ("last", "every", "branch"))
    refuse_host(network)
    if isinstance(block, str):
        block, written = named_block(block, options)
        options = {**written, **options}
    info = info_of(block)
    present = insertions(network)
    hidden = [one.module for one in present if one.record.replaced is None]
    stage_of = _places(network, at, position, hidden)
    places = list(stage_of)
    if isinstance(block, nn.Module) and len(places) > 1:
        raise ValueError(f"one module cannot stand at {len(places)} places ({', '.join(places)}): give its class")
    inputs = example_inputs(network, example)

    spots = {place: place if position == "branch" else spot_of(network, place, hidden) for place in places}
    with (
        asks_for_example(network, example, inputs),
        recorded(network, {*stage_of.values(), *places, *spots.values()}, convolutions(network, hidden)) as (
            calls,
            shapes,
        ),
    ):
        before = run(network, inputs, train=False)
    for place in places:  # a Sequential's last child may be one that stands at several ends, such as a ReLU
        if len(calls[spots[place]]) > len(calls[place]) > 0:
            spots[place] = place

    new: list[_Slot] = []
    try:
        for place in places:
            features = _features(network, spots[place], place, calls, shared)
            sequence = options.get("dims") == 1
            tokens = info.name if info is not None and info.kind == "tokens" else None
            layout = _layout(network, place, features, calls[spots[place]][0], shapes, tokens, sequence)
            if position == "every":
                _check_same_width(stage_of[place], calls[stage_of[place]], layout, features[0])
            maps = [layout.enter(y) for y in features]
            module = build(block, info, place, maps, layout, raw=raw, position=position, shared=shared, options=options)
            module.inserted.order = 1 + max((one.record.order for one in present), default=0) + len(new)  # type: ignore[union-attr]
            new.append(_Slot(place, spots[place], module, calls[spots[place]]))
        _warn_of_twice(present, new)
        meant = raw or options.get("zero_init") is False
        _settle(network, inputs, new, hidden, before, given=isinstance(block, nn.Module), meant=meant)
    except BaseException:
        for slot in new:
            _take_back(network, slot)
            del slot.module.inserted
        forget_grids(network, [one.record.layout.grid for one in insertions(network) if one.record.layout.grid])
        raise
    for slot in new:
        slot.module.train(network.get_submodule(slot.spot).training)
    return [slot.name for slot in new]


def named_block(text: str, more: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A block from its text, and the options that stand there."""
    if address := parse_address(text):
        return find_own(address, more).constructor, dict(address.options)
    return parse_block(text)


@dataclass
class _Slot:
    """A block that is being inserted."""

    place: str
    spot: str
    module: nn.Module
    calls: list[Call]
    name: str = ""


def _places(
    network: nn.Module, at: str | Sequence[str], position: str, hidden: Collection[nn.Module]
) -> dict[str, str]:
    """Names of the modules behind which blocks go -> the names found for ``at`` that hold them."""
    named = find_modules(network, at, hidden)
    if position == "last":
        return {name: name for name in named}
    places: dict[str, str] = {}
    for name in named:
        stage = network.get_submodule(name)
        inside = branch_ends(stage) if position == "branch" else blocks_of(stage, hidden)
        if not inside:
            raise ValueError(
                f"{name} ({type(stage).__name__}) is not a stage of several blocks: position='last' fits it"
            )
        places |= {f"{name}.{own}": name for own in inside}
    return places


def _features(network: nn.Module, spot: str, place: str, calls: dict[str, list[Call]], shared: bool) -> list[Tensor]:
    """The feature map that a place gives, at each call, or the reason why a block cannot stand there."""
    module = network.get_submodule(place)
    what = f"{place} ({type(module).__name__})"
    if not calls[spot]:
        if isinstance(network, torch.fx.GraphModule) or any(
            isinstance(m, torch.fx.GraphModule) for m in network.modules()
        ):
            raise ValueError(f"{what} is not called by a network that torch.fx has traced: insert first, trace then")
        inside = [f"{place}.{name}" for name, _ in module.named_children()]
        hint = f"; the network may call its children instead ({', '.join(inside[:6])})" if inside else ""
        hint += ": position='every' puts a block after each" if isinstance(module, nn.ModuleList) else ""
        raise ValueError(f"{what} is never called in a forward pass{hint}")
    if len(calls[spot]) > 1 and not shared:
        raise ValueError(
            f"{what} is called {len(calls[spot])} times in a forward pass, want once. Insert into the part that is "
            "called so often, as in insert(network.encoder, ...); or put one block behind all calls with shared=True"
        )
    features = []
    for call in calls[spot]:
        y = only_tensor(call.output)
        if y is None:
            many = f" of {len(call.output)}" if isinstance(call.output, list | tuple | dict) else ""
            inside = ", ".join(f"{place}.{name}" for name, _ in list(module.named_children())[:3])
            hint = f"; what is in it may give one ({inside})" if inside else ""
            raise ValueError(
                f"{place} gives a {type(call.output).__name__}{many}, want one feature map (B, C, H, W){hint}"
            )
        if y.dim() < 3:
            raise ValueError(f"{place} gives a tensor of shape {tuple(y.shape)}, want a feature map (B, C, H, W)")
        features.append(y)
    return features


def _layout(
    network: nn.Module,
    place: str,
    features: list[Tensor],
    call: Call,
    shapes: Shapes,
    tokens: str | None,
    sequence: bool,
) -> Layout:
    seen = shapes[: call.before]
    return find_layout(network, place, features[0], tokens=tokens, sequence=sequence, seen=seen)


def _check_same_width(stage: str, calls: list[Call], layout: Layout, feature: Tensor) -> None:
    outputs = [only_tensor(call.output) for call in calls]
    if any(y is not None and layout.channels(y) != layout.channels(feature) for y in outputs):
        raise ValueError(
            f"the parts of {stage} give other channels than {stage} itself (as densenet's layers, which give only "
            "what is new): position='last' works there"
        )


def _warn_of_twice(present: list[Any], new: list[_Slot]) -> None:
    def what(record: Any) -> tuple[Any, ...]:
        return record.block, repr(record.options), record.position

    have = {(one.place, what(one.record)) for one in present}
    again = [slot.place for slot in new if (slot.place, what(slot.module.inserted)) in have]
    if again:
        warnings.warn(
            f"{block_name(new[0].module)} stands after {', '.join(again[:3])} twice now: if you ran a notebook cell "
            "again, call lookfar.remove(network) first",
            stacklevel=3,
        )


def _settle(
    network: nn.Module,
    inputs: Inputs,
    new: list[_Slot],
    hidden: Collection[nn.Module],
    before: list[Tensor],
    *,
    given: bool,
    meant: bool,
) -> None:
    """Keep each block where it runs exactly once for a call of its place; check that nothing has changed.

    The network has run once. It runs once more in eval, where its outputs are compared, and once in training, where
    each block is watched: if it returns its input and draws no random numbers, the network cannot notice it.
    """
    modules = [*hidden, *(slot.module for slot in new)]
    choices = {id(slot): holders(network, slot.spot, modules) for slot in new}
    for slot in new:
        _attach_somewhere(network, slot, choices[id(slot)])
    after: list[Tensor] | None = None
    while after is None:
        error, wrong = None, new
        with watched(slot.module for slot in new) as seen:
            try:
                after = run(network, inputs, train=False)
            except Exception as raised:  # as from a block that runs once more where it does not fit
                error = raised
            else:
                wrong = [slot for slot, one in zip(new, seen) if one.calls != len(slot.calls)]
        for slot in wrong:
            after = None
            _take_back(network, slot)
            _attach_somewhere(network, slot, choices[id(slot)], error)
        if after is not None and (meant or _differs(network, new, seen, before, after, given=given)):
            return
    with watched(slot.module for slot in new) as seen:
        try:
            run(network, inputs, train=True)
        except Exception as error:
            if isinstance(error, OffGridError) or any(one.entered > one.calls for one in seen):
                raise ValueError(
                    f"with {block_name(new[0].module)} the network does not train on the example: {error}. Give "
                    "example= with more images"
                ) from error
            return  # a host that cannot train on this example is checked in eval alone
    changed = [(slot, one) for slot, one in zip(new, seen) if one.off_by is not None]
    if changed:
        _report(_changed(changed, "training"), given)


def _differs(
    network: nn.Module,
    new: list[_Slot],
    seen: list[Seen],
    before: list[Tensor],
    after: list[Tensor],
    *,
    given: bool,
) -> bool:
    """Whether a block changes the network in eval mode; a change is reported."""
    changed = [(slot, one) for slot, one in zip(new, seen) if one.off_by is not None]
    if changed:
        _report(_changed(changed, "eval"), given)
        return True
    drew = [slot for slot, one in zip(new, seen) if one.drew]
    if len(before) != len(after) or not all(map(bit_equal, before, after)):
        if drew:
            _report(f"{block_name(drew[0].module)} after {drew[0].place} draws random numbers in eval mode", given)
            return True
        restrided = [slot for slot, one in zip(new, seen) if one.restrided]
        if restrided:
            warnings.warn(
                f"{block_name(restrided[0].module)} after {restrided[0].place} gives its map in another memory format, "
                "on which the last bits of the network's outputs depend",
                stacklevel=4,
            )
            return False
        warnings.warn(
            f"{type(network).__name__} itself gives other outputs each time it runs in eval mode (it counts its calls, "
            "or draws its own random numbers): the blocks were checked alone, where each returns its input",
            stacklevel=4,
        )
    return False


def _changed(changed: list[tuple[_Slot, Seen]], mode: str) -> str:
    largest = max(one.off_by or 0.0 for _, one in changed)
    places = ", ".join(slot.place for slot, _ in changed[:3])
    return (
        f"{block_name(changed[0][0].module)} after {places} changes the network in {mode} mode: its output "
        f"differs from its input by up to {largest:.2g}"
    )


def _report(message: str, given: bool) -> None:
    """Raise; or warn, where the block was given as a module, which may have been trained."""
    if not given:
        raise ValueError(f"{message}. The network is as it was")
    warnings.warn(message, stacklevel=5)


def _attach_somewhere(network: nn.Module, slot: _Slot, choices: Iterator[str], error: Exception | None = None) -> None:
    """In the first holder under which the spot, run alone, calls the block as often as itself."""
    for holder in choices:
        slot.name = attach(network, slot.module, place=slot.place, spot=slot.spot, holder=holder)
        call, module = slot.calls[0], network.get_submodule(slot.spot)
        with watched([slot.module]) as (one,), contextlib.suppress(Exception), untouched(module), torch.no_grad():
            module.eval()(*call.args, **call.kwargs)
        if one.entered <= 1:
            return
        _take_back(network, slot)
    raise ValueError(
        f"{slot.place} ({type(network.get_submodule(slot.place)).__name__}) runs whatever it contains: a block kept "
        f"inside would run twice. Name a module around it or inside it{f' ({error})' if error else ''}"
    ) from error


def _take_back(network: nn.Module, slot: _Slot) -> None:
    if slot.name:
        detach(network, slot.name)
        slot.name = ""

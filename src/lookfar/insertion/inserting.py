"""Put a block into an existing network: output unchanged, checkpoints of the host still load, and it can be undone.

A block is kept as a child of the place after which it runs (of its last child where the place runs all its children)
and a forward hook on the place calls it. Hook and block survive deepcopy, pickle, compile and export.

Traps:
    A hook runs only when its module is called. A host that switches to gradient checkpointing after the insertion
    calls the children of a stage instead of the stage. ``SyncBatchNorm.convert_sync_batchnorm`` replaces norm layers
    and drops their hooks: convert first, insert then, where a block stands behind a norm (``position="branch"``);
    :mod:`lookfar.training` converts by itself and keeps them.
"""

import contextlib
import inspect
import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lookfar.blocks import block_info, create_block, parse_block
from lookfar.insertion.dry_run import Inputs, bit_equal, example_inputs, recorded, run, untouched
from lookfar.insertion.hanging import Gated, Slot, attach, block_name, detach, insertions
from lookfar.insertion.places import blocks_of, branch_ends, find_modules, holders

Position = Literal["last", "every", "branch"]


def insert(
    network: nn.Module,
    block: str | type[nn.Module] | nn.Module,
    *,
    at: str | Sequence[str],
    position: Position = "last",
    example: Any = None,
    raw: bool = False,
    **options: Any,
) -> list[str]:
    """Put a block into a network, in place; what the network computes stays the same bit for bit, which is checked.

    >>> import timm
    >>> net = timm.create_model("resnet18")
    >>> insert(net, "position_attention", at="layer3", reduction=4)
    ['layer3.1.position_attention']

    Args:
        network: Any module whose forward calls the named modules: a timm or torchvision network, one of your own.
        block: Name of a block, with options or without (``"nonlocal"``, ``"nonlocal(mode=gaussian)"``), a class that
            takes channels first, or a module (for one place).
        at: Names of modules or globs in which ``*`` does not cross dots: ``"layer3"``, ``["layer*", "stem"]``.
            Leading parts may be left out where that is unambiguous.
        position: ``last``: after the output of each named module. ``every``: after each of the blocks in it.
            ``branch``: at the end of the residual branch of each block in it, before the sum (as SE and GC stand).
        example: An input for trying the network: a tensor, a tuple of arguments, or a dict of keyword arguments. By
            default random images in the size of a timm network's ``pretrained_cfg``.
        raw: Leave a block that is not residual by nature (SE, CBAM, filters) as it is; the network's output changes.
            Otherwise it enters as x + gamma (block(x) - x) with gamma 0, see :class:`Gated`.
        **options: The block's own options.

    Returns:
        Names of the inserted modules, in the network's order.

    Raises:
        ValueError: No such module; it is never called, or more than once; it gives no feature map; the block does not
            keep the map's shape; the output changed. The network is then as it was.
        TypeError: Unknown option.
    """
    if isinstance(block, str):
        block, written = parse_block(block)
        options = {**written, **options}
    hidden = [found.module for found in insertions(network)]
    stage_of = _places(network, at, position, hidden)
    places = list(stage_of)
    if isinstance(block, nn.Module) and len(places) > 1:
        raise ValueError(f"one module cannot stand at {len(places)} places ({', '.join(places)}): give its class")
    inputs = example_inputs(network, example)

    with recorded(network, [*stage_of.values(), *places]) as outputs:
        before = {False: run(network, inputs, train=False)}
    features = {place: _feature(network, place, outputs[place]) for place in places}
    for place, stage in stage_of.items():
        if position == "every" and any(
            isinstance(y, Tensor) and y.shape[1] != features[place].shape[1] for y in outputs[stage]
        ):
            raise ValueError(
                f"the parts of {stage} give other channels than {stage} itself (as densenet's layers, which give only "
                "what is new): position='last' works there"
            )
    with contextlib.suppress(Exception):  # a host that cannot train on this example is checked in eval alone
        before[True] = run(network, inputs, train=True)

    new = [Slot(place, _build(block, features[place], place, raw, options), features[place]) for place in places]
    try:
        _settle(network, inputs, new, hidden)
        _check_unchanged(network, inputs, new, before, block, raw or options.get("zero_init") is False)
    except BaseException:
        for slot in new:
            detach(network, slot.name, slot.place)
        raise
    for slot in new:
        slot.module.train(network.get_submodule(slot.place).training)
    return [slot.name for slot in new]


def _places(
    network: nn.Module, at: str | Sequence[str], position: str, hidden: Collection[nn.Module]
) -> dict[str, str]:
    """Names of the modules behind which blocks go -> the names found for ``at`` in which they are."""
    named = find_modules(network, at, hidden)
    if position == "last":
        return {name: name for name in named}
    if position not in ("every", "branch"):
        raise ValueError(f"position is last, every or branch, got {position!r}")
    places: dict[str, str] = {}
    for name in named:
        stage = network.get_submodule(name)
        inside = branch_ends(stage) if position == "branch" else blocks_of(stage, hidden)
        if not inside:
            raise ValueError(f"{name} ({type(stage).__name__}) is no stage of several blocks: position='last' fits it")
        places |= {f"{name}.{own}": name for own in inside}
    return places


def _feature(network: nn.Module, place: str, outputs: list[Any]) -> Tensor:
    """The one feature map that a place gives, or the reason why a block cannot stand there."""
    module = network.get_submodule(place)
    if not outputs:
        inside = [f"{place}.{name}" for name, _ in module.named_children()]
        hint = f"; the network may call its children instead ({', '.join(inside[:6])})" if inside else ""
        raise ValueError(f"{place} ({type(module).__name__}) is never called in a forward pass{hint}")
    if len(outputs) > 1:
        raise ValueError(
            f"{place} ({type(module).__name__}) is called {len(outputs)} times in a forward pass, want once"
        )
    y = outputs[0]
    if not isinstance(y, Tensor):
        many = f" of {len(y)}" if isinstance(y, list | tuple | dict) else ""
        raise ValueError(f"{place} gives a {type(y).__name__}{many}, want one feature map (B, C, H, W)")
    parents = [network.get_submodule(place.rsplit(".", n)[0]) for n in range(place.count(".") + 1)]
    if any(str(getattr(parent, "output_fmt", "")).endswith("NHWC") for parent in [network, *parents]):
        raise ValueError(f"{place} gives maps (B, H, W, C); blocks take (B, C, H, W)")
    if y.dim() < 3:
        raise ValueError(f"{place} gives a tensor of shape {tuple(y.shape)}, want a feature map (B, C, H, W)")
    return y


def _build(block: Any, x: Tensor, place: str, raw: bool, options: dict[str, Any]) -> nn.Module:
    dd: dict[str, Any] = {"device": x.device, "dtype": x.dtype}
    try:
        info = block_info(block)
    except ValueError:
        if isinstance(block, str):
            raise
        info = None
    if info is not None and info.kind != "context":
        raise ValueError(f"{info.name} is of kind {info.kind}: only blocks of kind context keep the shape of their map")
    dims = x.dim() - 2
    if dims == 1 and options.get("dims") != 1:
        raise ValueError(f"{place} gives {tuple(x.shape)}: tokens or a sequence (the latter needs dims=1), no map")
    if isinstance(block, nn.Module):
        if options:
            raise TypeError(f"a module that is already built takes no options, got {', '.join(options)}")
        module = block
    elif info is not None:
        if "dims" in info.options:
            options = {"dims": dims, **options}
        elif dims != 2:
            raise ValueError(f"{info.name} takes maps (B, C, H, W), {place} gives {tuple(x.shape)}")
        module = create_block(info.name, x.shape[1], **dd, **options)
    else:
        takes = inspect.signature(block).parameters
        module = block(x.shape[1], **{k: v for k, v in dd.items() if k in takes}, **options).to(**dd)

    name = block_name(module)
    try:
        with untouched(module), torch.no_grad():
            y = module.eval()(x)
    except Exception as error:
        raise ValueError(f"{name} does not run on the output of {place}, {tuple(x.shape)}: {error}") from error
    if not isinstance(y, Tensor) or y.shape != x.shape:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"{name} gives {got} for {tuple(x.shape)}: only a block that keeps the shape can be inserted")
    as_given = info is not None and info.residual and (module is block or options.get("zero_init") is False)
    return module if raw or as_given or torch.equal(y, x) else Gated(module, **dd)


def _settle(network: nn.Module, inputs: Inputs, new: list[Slot], hidden: Collection[nn.Module]) -> None:
    """Keep each block where it runs exactly once a forward, on what the place gave, and decides what the place gives.

    With zero factors a block that runs twice looks like one that runs once: this is tried with random weights.
    """
    modules = [*hidden, *(slot.module for slot in new)]
    choices = {slot.place: holders(network, slot.place, modules) for slot in new}
    wrong = new
    error: Exception | None = None
    while wrong:
        for slot in wrong:
            holder = next(choices[slot.place], None)
            if holder is None:
                reason = f" ({error})" if error else ""
                raise ValueError(
                    f"{slot.place} ({type(network.get_submodule(slot.place)).__name__}) runs whatever it contains: a "
                    f"block kept inside would run twice. Name a module around it or inside it{reason}"
                )
            attach(network, slot, holder)
        error = None
        try:
            with _randomised(new):
                names = [slot.name for slot in new]
                with (
                    recorded(network, [slot.place for slot in new]) as gave,
                    recorded(network, names) as outs,
                    recorded(network, names, inputs=True) as ins,
                ):
                    run(network, inputs, train=False)
        except Exception as raised:
            error, wrong = raised, new
        else:
            wrong = [
                slot
                for slot in new
                if len(outs[slot.name]) != 1
                or not bit_equal(gave[slot.place][0], outs[slot.name][0])
                or (len(new) == 1 and not bit_equal(ins[slot.name][0], slot.feature))
            ]
        for slot in wrong:
            detach(network, slot.name, slot.place)
            slot.name = ""


@contextlib.contextmanager
def _randomised(new: list[Slot]) -> Iterator[None]:
    kept = [(p, p.detach().clone()) for slot in new for p in slot.module.parameters()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for p, value in kept:
                scale = max(value[0].numel(), 1) ** -0.5 if p.dim() > 1 else 0.5
                p.copy_(value + scale * torch.randn(p.shape).to(p))
        yield
    finally:
        with torch.no_grad():
            for p, value in kept:
                p.copy_(value)


def _check_unchanged(
    network: nn.Module, inputs: Inputs, new: list[Slot], before: dict[bool, dict[str, Tensor]], block: Any, meant: bool
) -> None:
    """Outputs and the host's buffers are what they were, in eval and in training; else say where they differ."""
    if meant:
        return
    for train, want in before.items():
        try:
            if train and any(_draws(slot) for slot in new):
                continue  # the host's own random numbers are then others
            got = run(network, inputs, train=train)
        except Exception as error:
            raise ValueError(
                f"with {block_name(new[0].module)} the network does not train on the example: {error}. Give "
                "example= with more images"
            ) from error
        changed = [key for key, value in want.items() if not bit_equal(got[key], value)]
        if changed:
            largest = max(float((got[key].double() - want[key].double()).abs().max()) for key in changed)
            message = (
                f"{block_name(new[0].module)} after {', '.join(slot.place for slot in new)} changes the network in "
                f"{'training' if train else 'eval'} mode: {', '.join(changed[:3])} by up to {largest:.2g}"
            )
            if not isinstance(block, nn.Module):
                raise ValueError(f"{message}. The network is as it was")
            warnings.warn(message, stacklevel=3)
            return


def _draws(slot: Slot) -> bool:
    """Whether the block takes random numbers in training."""
    if slot.feature.is_cuda:
        return True  # not cheap to know there; eval has been checked
    with untouched(slot.module), torch.no_grad():
        state = torch.random.get_rng_state()
        slot.module.train()(slot.feature)
        return not torch.equal(state, torch.random.get_rng_state())

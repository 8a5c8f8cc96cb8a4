"""How a block hangs in a network: where it is kept, the hook that calls it, and the watch over a norm in front of it.

A block is a child of its holder, with a name of its own, so that the host's keys stay. Most often the holder is the
place, or the innermost last child where the place is a Sequential: that child runs whoever calls it, also where a
host runs the children of a stage one by one (checkpointing, feature nets). A module that has no children, a norm
above all, may be replaced by conversions: its block is kept in the module around it, whose pre-hook, the watch, sees
at every call whether the block still hangs there.

All hooks are functions of this file bound by ``functools.partial``: they are copied, pickled, compiled and exported.
"""

import functools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.utils.hooks import RemovableHandle

from lookfar.insertion.gated import child_name, snake
from lookfar.insertion.layouts import Layout
from lookfar.insertion.places import CONTAINERS, is_norm


@dataclass(eq=False)
class Record:
    """What was inserted and how; it stands at the block's module, as its attribute ``inserted``.

    Attributes:
        block: Registered name, or ``package.module:Class``.
        options: As given to the block's constructor.
        channels: As given to the block's constructor; None for a module that came built.
        position: ``last``, ``every``, ``branch``, or ``replace``: then the block stands in the place itself.
        place: The module that was asked for, from the holder: levels up, then names down.
        spot: The module after which the block runs, from the holder in the same way.
        was: Class of the spot's module.
        order: Number of the insertion in the network: a later one at the same spot runs later.
        layout: How the spot's output becomes the block's map.
        shared: The spot may be called several times in a forward pass.
        off: The spot's output passes unchanged, see :func:`switched_off`.
        replaced: The module that stood in the place before, with ``replace``. Nobody's child: its weights are in no
            state dict, and no optimizer sees them.
    """

    block: str
    options: dict[str, Any]
    channels: int | None
    position: str
    layout: Layout
    order: int = 0
    shared: bool = False
    place: tuple[int, str] = (0, "")
    spot: tuple[int, str] = (0, "")
    was: str = ""
    off: bool = False
    replaced: nn.Module | None = None


@dataclass(frozen=True)
class Insertion:
    """A block in a network.

    Attributes:
        name: Name of the block's module in the network; its parameters' keys start with it.
        place: Name of the module on whose output the block works.
        module: The block, inside :class:`Gated` where it needs that to enter as the identity.
        record: What was asked for.
    """

    name: str
    place: str
    module: nn.Module = field(repr=False)
    record: Record = field(repr=False)

    @property
    def holder(self) -> str:
        """Name of the module whose child the block is."""
        return self.name.rpartition(".")[0]

    @property
    def spot(self) -> str:
        """Name of the module whose hook calls the block."""
        return resolve(self.holder, self.record.spot)


def insertions(network: nn.Module) -> list[Insertion]:
    """The blocks that :func:`insert` has put into ``network``, in the network's order.

    >>> from lookfar.insertion import insert
    >>> net, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()), torch.randn(1, 3, 8, 8)
    >>> insert(net, "nonlocal", at="1", example=x)
    ['1.non_local']
    >>> insertions(net)
    [Insertion(name='1.non_local', place='1')]
    """
    order = {name: number for number, (name, _) in enumerate(network.named_modules())}
    found = []
    for name, module in network.named_modules():
        record = getattr(module, "inserted", None)
        if name and isinstance(record, Record):
            found.append(Insertion(name, resolve(name.rpartition(".")[0], record.place), module, record))
    return sorted(found, key=lambda one: (order.get(one.place, len(order)), one.record.order))


def relative(base: str, name: str) -> tuple[int, str]:
    """How to come from one module to another by their names: levels up, then names down."""
    one, other = (text.split(".") if text else [] for text in (base, name))
    common = 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    return len(one) - common, ".".join(other[common:])


def resolve(base: str, path: tuple[int, str]) -> str:
    """The name that :func:`relative` came from."""
    up, down = path
    parts = base.split(".") if base else []
    return ".".join([*parts[: len(parts) - up], *filter(None, [down])])


def attach(network: nn.Module, block: nn.Module, *, place: str, spot: str, holder: str, name: str = "") -> str:
    """Keep a block, whose ``inserted`` is a :class:`Record`, in ``holder`` and call it behind ``spot``.

    Returns:
        The name of the block's module.
    """
    record: Record = block.inserted  # type: ignore[assignment]
    keeper, module = network.get_submodule(holder), network.get_submodule(spot)
    base = child_name(block)
    name = name or next(n for n in _numbered(base) if not hasattr(keeper, n))
    record.place, record.spot, record.was = relative(holder, place), relative(holder, spot), type(module).__name__
    old = _old_name(module, snake(block), base, name, record)
    keeper.add_module(name, block)
    if record.spot[0] or not record.spot[1]:  # the holder is the spot or inside it
        path = ".".join(filter(None, [relative(spot, holder)[1], name]))
        _register(module, functools.partial(call_inside, path=path, layout=record.layout))
        if spot == holder and "." not in path and is_norm(module):  # nothing else could keep it: a net of Sequentials
            around, _, own = spot.rpartition(".")
            _register(network.get_submodule(around), functools.partial(miss, child=own, name=name), pre=True)
    else:
        _hang_on(module, block, name, record.layout)
        _register(keeper, functools.partial(watch, target=record.spot[1], name=name), pre=True)
        around, _, child = spot.rpartition(".")
        if around != holder:
            _register(network.get_submodule(around), functools.partial(announce, child=child), pre=True)
    if old != name:
        keeper._register_load_state_dict_pre_hook(functools.partial(accept_old_keys, old=old, new=name))
    return f"{holder}.{name}".lstrip(".")


def detach(network: nn.Module, name: str) -> None:
    """Undo :func:`attach`; the block keeps its record."""
    holder, _, child = name.rpartition(".")
    keeper = network.get_submodule(holder)
    block: nn.Module = getattr(keeper, child)
    record: Record = block.inserted  # type: ignore[assignment]
    if record.replaced is not None:
        exchange(network, name, record.replaced)
        return
    spot = resolve(holder, record.spot)
    path = relative(spot, name)[1]
    alive = {id(module) for module in network.modules()}
    for other, module in network.named_modules():  # conversions carry hooks, and copies of blocks in them, elsewhere
        if other == spot:
            _drop(module._forward_hooks, call_inside, path=path)
        hooks: dict[int, Any] = module._forward_hooks
        for key, hook in list(hooks.items()):
            mine = _is(hook, call_kept, block=block)
            if mine or (_is(hook, call_kept, name=child) and id(hook.keywords["block"]) not in alive):
                del hooks[key]
        if not any(_is(hook, call_kept) for hook in hooks.values()) and _is_marked(module):
            del module.__module__
            _drop(module._forward_pre_hooks, refuse_tracing)
    _drop(keeper._forward_pre_hooks, watch, name=child)
    around, _, own = spot.rpartition(".")
    for module in (m for n, m in network.named_modules() if n == around):
        _drop(module._forward_pre_hooks, miss, child=own, name=child)
    if around != holder and not any(one.spot == spot and one.name != name for one in insertions(network)):
        for module in (m for n, m in network.named_modules() if n == around):
            _drop(module._forward_pre_hooks, announce, child=own)
    for key, hook in list(keeper._load_state_dict_pre_hooks.items()):
        inner = getattr(hook, "hook", hook)
        if _is(inner, accept_old_keys, new=child):
            del keeper._load_state_dict_pre_hooks[key]
    delattr(keeper, child)


def stand_in(network: nn.Module, layer: nn.Module, place: str) -> None:
    """Put a layer, whose ``inserted`` is a :class:`Record`, in the place of the module that stands there."""
    record: Record = layer.inserted  # type: ignore[assignment]
    old = network.get_submodule(place)
    own = place.rpartition(".")[2]
    record.replaced, record.was, record.place, record.spot = old, type(old).__name__, (0, own), (0, own)
    exchange(network, place, layer)


def exchange(network: nn.Module, place: str, module: nn.Module) -> None:
    """Another module under a name of the network, on the device and in the mode of the one that goes."""
    around, _, own = place.rpartition(".")
    parent = network.get_submodule(around)
    old = parent.get_submodule(own)
    like = next(old.parameters(), None)
    if like is not None and not like.is_meta:
        module.to(like.device, like.dtype)
    module.train(old.training)
    setattr(parent, own, module)


def is_hung(network: nn.Module, one: Insertion) -> bool:
    """Whether the hook that calls the block is where it was put."""
    if one.record.replaced is not None:
        return True
    module = dict(network.named_modules()).get(one.spot)
    if module is None:
        return False
    path = relative(one.spot, one.name)[1]
    hooks = module._forward_hooks.values()
    return any(_is(hook, call_inside, path=path) or _is(hook, call_kept, block=one.module) for hook in hooks)


# the hooks


def call_inside(module: nn.Module, args: Any, output: Any, *, path: str, layout: Layout) -> Any:
    """Runs a block that is kept below the module."""
    return _run(module.get_submodule(path), output, layout)


def call_kept(module: nn.Module, args: Any, output: Any, *, block: nn.Module, name: str, layout: Layout) -> Any:
    """Runs a block that is kept in a module around."""
    if isinstance(output, Proxy) and output.node.target is with_blocks:
        return output
    return _run(block, output, layout)


def watch(module: nn.Module, args: Any, *, target: str, name: str) -> None:
    """Checks that the block ``name`` of ``module`` hangs on ``target``; hangs it on what replaced a norm.

    Raises:
        RuntimeError: Something else stands there, as after folding a norm into its convolution.
    """
    spot, block = module.get_submodule(target), getattr(module, name)
    for hook in spot._forward_hooks.values():
        if isinstance(hook, functools.partial) and hook.func is call_kept and hook.keywords["block"] is block:
            break
    else:
        _hang_again(module, spot, block, target, name)
    if "." not in target:
        announce(module, args, child=target)


def miss(module: nn.Module, args: Any, *, child: str, name: str) -> None:
    """Checks that the norm in which the block is kept is still there."""
    if name not in module.get_submodule(child)._modules:
        raise RuntimeError(
            f"{name} was kept in the norm {child!r}, in whose place there is another module now: the block is lost. "
            "Convert first, insert then"
        )


def announce(module: nn.Module, args: Any, *, child: str) -> None:
    """While torch.fx traces ``module``, a layer of torch becomes one node together with the blocks behind it.

    Otherwise it would be a leaf: fx sees no hooks of a leaf, and folding it into another layer would lose the block.
    """
    if any(isinstance(x, Proxy) for x in args):
        spot = module.get_submodule(child)
        if _is_marked(spot):
            spot.forward = functools.partial(_traced_as_one, spot)  # type: ignore[method-assign]


def refuse_tracing(module: nn.Module, args: Any) -> None:
    """Refuse where the network itself calls the layer: no module around it could announce it."""
    if any(isinstance(x, Proxy) for x in args) and "forward" not in module.__dict__ and _depends_on_mode(module):
        raise ValueError(
            f"torch.fx cannot trace a {type(module).__name__} with a block behind it that the network itself calls: "
            "trace torch.nn.Sequential(network)"
        )


def with_blocks(x: Tensor, layer: nn.Module, *blocks: nn.Module) -> Tensor:
    """A node of torch.fx: the layer, whose hooks run the blocks."""
    return layer(x)


def accept_old_keys(state: dict[str, Any], prefix: str, *rest: Any, old: str, new: str) -> None:
    """Files that were written when the block had another name."""
    if any(key.startswith(f"{prefix}{new}.") for key in state):
        return
    for key in [key for key in state if key.startswith(f"{prefix}{old}.")]:
        state[f"{prefix}{new}{key[len(prefix) + len(old) :]}"] = state.pop(key)


def _run(block: nn.Module, output: Any, layout: Layout) -> Any:
    record = getattr(block, "inserted", None)
    if record is not None and record.off:
        return output
    # classes in tuples: torch 2.8 cannot compile a union of them
    if isinstance(output, (tuple, list)):  # of one tensor, see dry_run.only_tensor
        return type(output)(_run(block, y, layout) if isinstance(y, (Tensor, Proxy)) else y for y in output)
    return layout.around(functools.partial(_leaf, block) if isinstance(output, Proxy) else block, output)


def _leaf(block: nn.Module, x: Proxy) -> Any:
    """The block as one node of torch.fx, whatever the tracer takes for a leaf."""
    path = x.tracer.path_of_module(block)  # type: ignore[attr-defined]

    def node(*args: Any, **kwargs: Any) -> Any:
        return x.tracer.create_proxy("call_module", path, args, kwargs)

    return x.tracer.call_module(block, node, (x,), {})  # type: ignore[attr-defined]


def _traced_as_one(module: nn.Module, x: Proxy) -> Any:
    del module.forward
    tracer = x.tracer
    hooks: dict[int, Any] = module._forward_hooks
    blocks = [hook.keywords["block"] for hook in hooks.values() if _is(hook, call_kept)]
    parts = [tracer.create_proxy("get_attr", tracer.path_of_module(m), (), {}) for m in (module, *blocks)]  # type: ignore[attr-defined]
    return tracer.create_proxy("call_function", with_blocks, (x, *parts), {})


def _is_marked(module: nn.Module) -> bool:
    return module.__dict__.get("__module__") == __name__


def _depends_on_mode(module: nn.Module) -> bool:
    return is_norm(module) or isinstance(module, nn.modules.dropout._DropoutNd)


def _hang_on(module: nn.Module, block: nn.Module, name: str, layout: Layout) -> None:
    _register(module, functools.partial(call_kept, block=block, name=name, layout=layout))
    if type(module).__module__.startswith("torch.nn") and not isinstance(module, CONTAINERS):
        module.__module__ = __name__  # by this torch.fx recognises its leaves; see announce
        if not any(_is(hook, refuse_tracing) for hook in module._forward_pre_hooks.values()):
            _register(module, functools.partial(refuse_tracing), pre=True)


def _hang_again(module: nn.Module, spot: nn.Module, block: nn.Module, target: str, name: str) -> None:
    record = getattr(block, "inserted", None)
    if record is not None and record.off:
        return
    hooks: dict[int, Any] = spot._forward_hooks
    stale = {key: hook for key, hook in hooks.items() if _is(hook, call_kept, name=name)}
    if stale:
        kept = OrderedDict((key, hook) for key, hook in hooks.items() if key not in stale)
        spot._forward_hooks = kept  # not in place: a replica shares it
        if record is None or getattr(module, "_is_replica", False):  # somebody's own block; DataParallel's copy of ours
            _hang_on(spot, block, name, next(iter(stale.values())).keywords["layout"])
            return
    if record is None:
        return
    was = (
        f"{name} stood behind the {record.was} {target!r} of a {type(module).__name__}, in whose place there is a "
        f"{type(spot).__name__} now"
    )
    if not (is_norm(spot) and "Norm" in record.was):
        raise RuntimeError(f"{was}: the block would be left out. Convert first, insert then (lookfar.remove undoes it)")
    if torch.compiler.is_compiling():
        raise RuntimeError(f"{was}: run the network once before compiling it")
    _hang_on(spot, block, name, record.layout)


def _register(module: nn.Module, hook: Any, *, pre: bool = False) -> None:
    hooks = module._forward_pre_hooks if pre else module._forward_hooks
    while RemovableHandle.next_id in hooks:
        RemovableHandle({})  # ids start anew in the process that unpickles a network: a hook in use would be replaced
    if pre:
        module.register_forward_pre_hook(hook)
    else:
        module.register_forward_hook(hook)


def _is(hook: Any, function: Any, **keywords: Any) -> bool:
    return (
        isinstance(hook, functools.partial)
        and hook.func is function
        and all(hook.keywords[k] is v or (isinstance(v, str) and hook.keywords[k] == v) for k, v in keywords.items())
    )


def _drop(hooks: dict[int, Any], function: Any, **keywords: Any) -> None:
    for key in [key for key, hook in hooks.items() if _is(hook, function, **keywords)]:
        del hooks[key]


# names


def _numbered(base: str) -> Iterator[str]:
    yield base
    number = 1
    while True:
        number += 1
        yield f"{base}_{number}"


def _old_name(spot: nn.Module, own: str, base: str, name: str, record: Record) -> str:
    """The block's name in an earlier version's files, from the holder: keywords were names, a norm kept its block."""
    before = sum(_is(hook, call_kept) for hook in spot._forward_hooks.values())
    inside = bool(record.spot[0]) or not record.spot[1]
    number = name[len(base) :] if inside else f"_{before + 1}" if before else ""
    old = own + number
    if inside:
        return old
    path = record.spot[1]
    while isinstance(spot, CONTAINERS) and len(spot):
        own, spot = list(spot.named_children())[-1]
        path = f"{path}.{own}"
    return f"{path}.{old}"

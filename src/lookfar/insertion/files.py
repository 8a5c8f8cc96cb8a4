"""What was inserted, written down: as a dictionary for any framework's file, and with the weights in one file.

Traps: another ``mode`` of a block has the same keys, and two insertions in the other order exchange their weights
behind identical keys: a file of weights alone loads strictly into a network with the wrong blocks.
"""

import contextlib
import functools
import importlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lookfar.blocks import create_block
from lookfar.insertion.gated import Gated
from lookfar.insertion.hanging import Record, attach, detach, insertions, stand_in
from lookfar.insertion.layouts import Layout, grid_hooks, grid_of
from lookfar.insertion.places import refuse_host

FORMAT = "lookfar 1"
_WRAPPERS = ("DistributedDataParallel", "DataParallel", "OptimizedModule")

Blocks = Mapping[str, Callable[..., nn.Module]]


def save(network: nn.Module, path: str | Path) -> Path:
    """Write a network with its inserted blocks into one safetensors file, which :func:`load` reads.

    Args:
        network: Any module; wrapped by DDP, DataParallel or ``torch.compile``, what is inside. With sharded parameters
            (FSDP2) every process calls it, and the first one writes.
        path: The file, ``*.safetensors`` by custom.

    Returns:
        The path.

    Raises:
        ValueError: An option that cannot be written (a function of yours), something in the state that is no tensor.

    >>> from lookfar.insertion import insert
    >>> net, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()), torch.randn(1, 3, 8, 8)
    >>> insert(net, "nonlocal", at="1", example=x)
    ['1.non_local']
    >>> save(net, "network.safetensors")
    PosixPath('network.safetensors')
    """
    from safetensors.torch import save_file

    while type(network).__name__ in _WRAPPERS:
        network = getattr(network, "module", None) or network._orig_mod  # type: ignore[assignment]
    record = recipe(network)
    tensors: dict[str, Tensor] = {}
    same: dict[str, str] = {}  # names of one and the same tensor -> the name under which it is written
    first: dict[tuple[Any, ...], str] = {}
    for key, value in network.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{key} in the network's state is a {type(value).__name__}: a file holds tensors alone")
        if value.is_meta:
            raise ValueError(f"{key} is on the meta device and has no numbers to write")
        which = _identity(value, key)
        if which in first:
            same[key] = first[which]
            continue
        first[which] = key
        value = value.detach()
        value = value.full_tensor() if hasattr(value, "full_tensor") else value  # type: ignore[operator]
        # a copy: safetensors refuses tensors that share memory
        tensors[key] = value.cpu().clone(memory_format=torch.contiguous_format)
    path = Path(path)
    if (
        not (torch.distributed.is_available() and torch.distributed.is_initialized())
        or torch.distributed.get_rank() == 0
    ):
        metadata = {"format": "pt", "lookfar": json.dumps({"format": FORMAT, "blocks": record, "same": same})}
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            save_file(tensors, temporary, metadata=metadata)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def _identity(value: Tensor, key: str) -> tuple[Any, ...]:
    """Equal for names of one and the same tensor (tied weights)."""
    if hasattr(value, "full_tensor"):  # sharded: its memory is a part
        return (id(value),)
    return (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device) if value.numel() else (key,)


def load(host: nn.Module, path: str | Path, *, blocks: Blocks | None = None) -> nn.Module:
    """Insert into ``host`` what a file of :func:`save` says, and load all weights, strictly.

    Args:
        host: The network as it was before the insertions, or with exactly those of the file.
        path: The file.
        blocks: For classes that are not lookfar's: name of the class -> the class, or a function that takes channels.

    Returns:
        The host.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No file of :func:`save`; keys that do not fit the host. It is then as it was.

    >>> from lookfar.insertion import insert
    >>> net, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()), torch.randn(1, 3, 8, 8)
    >>> insert(net, "nonlocal", at="1", example=x)
    ['1.non_local']
    >>> host = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU())
    >>> host = load(host, save(net, "network.safetensors"))
    >>> torch.equal(host(x), net(x))
    True
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("lookfar", "null"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} was not written by lookfar.save: {error}") from error
    if not metadata or metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} does not say what was inserted, as lookfar.save writes it: insert by hand, then load_state_dict; "
            "for published weights, lookfar.weights.load"
        )
    state |= {key: state[first] for key, first in metadata["same"].items()}
    new = [] if recipe(host) == metadata["blocks"] else replay(host, metadata["blocks"], blocks=blocks)
    try:
        _check_fits(host, state, path)
        host.load_state_dict(state)
    except BaseException:
        _undo(host, new)
        raise
    return host


def recipe(network: nn.Module) -> list[dict[str, Any]]:
    """What was inserted, in the order of insertion, as plain lists, dictionaries, words and numbers.

    It goes beside the weights into a file of any kind, as in
    ``torch.save({"recipe": recipe(network), "weights": network.state_dict()}, path)``; :func:`replay` reads it.

    Raises:
        ValueError: An option that cannot be written.

    >>> from lookfar.insertion import insert
    >>> net, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()), torch.randn(1, 3, 8, 8)
    >>> insert(net, "nonlocal", at="1", example=x)
    ['1.non_local']
    >>> [(step["block"], step["channels"], step["place"]) for step in recipe(net)]
    [('nonlocal', 16, '1')]
    """
    conv_of = {id(grid): name for name, module in network.named_modules() for grid in grid_hooks(module).values()}
    steps = []
    for one in sorted(insertions(network), key=lambda one: one.record.order):
        record = one.record
        step: dict[str, Any] = {
            "block": record.block,
            "options": {key: _written(value, key, one.name) for key, value in record.options.items()},
            "channels": record.channels,
            "name": one.name,
            "place": one.place,
            "spot": one.spot,
            "position": record.position,
            "gated": isinstance(one.module, Gated),
            "shared": record.shared,
        }
        if record.replaced is not None:
            step["was"] = record.was
        if record.layout.kind != "map":
            step["layout"] = record.layout.kind
        if record.layout.grid is not None:
            step |= {"prefix": record.layout.prefix, "patches": conv_of[id(record.layout.grid)]}
            step["grid"] = [int(n) for n in record.layout.grid.size]
        steps.append(step)
    return steps


def replay(host: nn.Module, steps: list[dict[str, Any]], *, blocks: Blocks | None = None) -> list[str]:
    """Insert what a :func:`recipe` says, with fresh weights and without running the host.

    Args:
        host: The network as it was before the insertions.
        steps: The recipe.
        blocks: As in :func:`load`.

    Returns:
        Names of the inserted modules, in the order of the recipe.

    Raises:
        ValueError: A place that the host does not have, blocks that it has already, a class that is not known here.

    >>> from lookfar.insertion import insert
    >>> net, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()), torch.randn(1, 3, 8, 8)
    >>> insert(net, "nonlocal", at="1", example=x)
    ['1.non_local']
    >>> replay(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()), recipe(net))
    ['1.non_local']
    """
    refuse_host(host)
    have = insertions(host)
    if have and steps:
        raise ValueError(
            f"the host has inserted blocks already ({', '.join(one.name for one in have[:3])}): give it as it was "
            "before, or remove them (lookfar.remove)"
        )
    new: list[str] = []
    try:
        with torch.random.fork_rng(devices=[]):
            for order, step in enumerate(steps, 1):
                _replay(host, step, order, blocks or {})
                new.append(step["name"])
    except BaseException:
        _undo(host, new)
        raise
    return new


def _replay(host: nn.Module, step: dict[str, Any], order: int, blocks: Blocks) -> None:
    modules = dict(host.named_modules())
    holder, _, child = step["name"].rpartition(".")
    replaces = step["position"] == "replace"
    for name in (holder, step["place"], step["spot"], step.get("patches", "")):
        if name not in modules:
            raise ValueError(f"{type(host).__name__} has no module {name!r}, where {step['name']} hangs: another host?")
    if hasattr(modules[holder], child) and not replaces:
        raise ValueError(f"{holder or type(host).__name__} has something called {child} already")
    like = next((p for module in (modules[step["spot"]], host) for p in module.parameters()), torch.empty(0))
    dd: dict[str, Any] = {"device": like.device, "dtype": like.dtype if like.is_floating_point() else None}
    options = {key: _read(value) for key, value in step["options"].items()}
    short = step["block"].rpartition(":")[2]
    if short in blocks or step["block"] in blocks:
        block = blocks[short if short in blocks else step["block"]]
        module = block if isinstance(block, nn.Module) else block(step["channels"], **options)
        module = module.to(**dd)
    elif step["channels"] is not None and (cls := _known_class(step["block"])) is not None:
        module = cls(step["channels"], **options).to(**dd)
    elif step["channels"] is None or ":" in step["block"]:
        what = "module" if step["channels"] is None else "class"
        raise ValueError(
            f"{step['name']} is a {short} that was inserted as a {what} of yours: give blocks={{{short!r}: ...}}, its "
            "class or a function that makes it"
        )
    else:
        module = create_block(step["block"], step["channels"], **dd, **options)
    module = Gated(module, **dd) if step["gated"] else module
    layout = Layout(step.get("layout", "map"), step.get("prefix", 0))
    if "grid" in step:
        layout.grid = grid_of(modules[step["patches"]], tuple(step["grid"]))
    record = Record(step["block"], options, step["channels"], step["position"], layout, order, step["shared"])
    module.inserted = record  # type: ignore[assignment]
    if replaces:
        _refuse_another(modules[step["place"]], step)
        stand_in(host, module, step["place"])
        return
    module.train(modules[step["spot"]].training)
    attach(host, module, place=step["place"], spot=step["spot"], holder=holder, name=child)


def _refuse_another(old: nn.Module, step: dict[str, Any]) -> None:
    """Raise a ValueError where what a layer replaces is not what it replaced when the file was written."""
    width = getattr(old, "in_channels", step["channels"])
    if type(old).__name__ != step["was"] or width != step["channels"]:
        raise ValueError(
            f"{step['place']} is a {type(old).__name__} here, for {width} channels; in the file {step['block']} stands "
            f"for a {step['was']} for {step['channels']}: another host?"
        )


def _undo(host: nn.Module, names: list[str]) -> None:
    for name in reversed(names):
        detach(host, name)


def _check_fits(host: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    have = host.state_dict()
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(value.shape)}"
        for key, value in have.items()
        if isinstance(value, Tensor) and key in state and state[key].shape != value.shape
    ]
    wrong = {
        "missing in the file": [key for key in have if key not in state],
        "not in the host": [key for key in state if key not in have],
        "of another shape": shapes,
    }
    if any(wrong.values()):
        details = "; ".join(f"{what}: {_some(keys)}" for what, keys in wrong.items() if keys)
        raise ValueError(f"{path.name} does not fit this {type(host).__name__}. {details}")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


# options: JSON, and classes by their import path


def _written(value: Any, option: str, name: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_written(one, option, name) for one in value]
    if isinstance(value, tuple):
        return {"tuple": [_written(one, option, name) for one in value]}
    if isinstance(value, functools.partial) and not value.args:
        keywords = {key: _written(one, option, name) for key, one in value.keywords.items()}
        return {"partial": _written(value.func, option, name), "keywords": keywords}
    path = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    if isinstance(value, type) and getattr(nn, value.__name__, None) is value:
        path = f"torch.nn.{value.__name__}"
    try:
        known = _class(path) is value
    except ValueError:
        known = False
    if not known:
        raise ValueError(
            f"{option}={value!r} of {name} cannot be written into a file: numbers, words, tuples and the classes of "
            "torch.nn and lookfar can"
        )
    return {"class": path}


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return [_read(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(_read(one) for one in value["tuple"])
    if "partial" in value:
        return functools.partial(_read(value["partial"]), **{key: _read(one) for key, one in value["keywords"].items()})
    return _class(value["class"])


def _known_class(block: str) -> Any:
    """The class of torch.nn or lookfar that ``package.module:Class`` names, None for another."""
    home, _, name = block.rpartition(":")
    with contextlib.suppress(ValueError):
        return _class(f"torch.nn.{name}" if home.startswith("torch.nn.") else f"{home}.{name}")
    return None


def _class(path: str) -> Any:
    """A module's class of torch.nn or lookfar by its import path; a file can name nothing else."""
    home, _, name = path.rpartition(".")
    found = None
    if home == "torch.nn":
        found = getattr(nn, name, None)
    elif home.split(".")[0] == "lookfar" and all(part.isidentifier() for part in home.split(".")):
        with contextlib.suppress(ImportError):
            found = getattr(importlib.import_module(home), name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"a file may name classes of torch.nn and lookfar, got {path!r}")
    return found

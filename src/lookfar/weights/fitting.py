"""A strict load, and what to do where weights do not fit: found by trying, so that it is true."""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import nn

from lookfar.blocks import BlockInfo, block_info, list_blocks
from lookfar.weights.files import content, some_prefixes, state_in, unwrapped
from lookfar.weights.names import State, convert

_LARGEST = 100  # keys that a block may have, to be looked for in a network
_MOST = 100  # kinds of parts of a network that are compared with the blocks


def load(block: nn.Module, source: Mapping[str, Any] | str | Path, *, prefix: str = "") -> nn.Module:
    """Load published weights into a block, strictly, and return it.

    Args:
        block: A block of the library, or any module whose own names the weights have.
        source: A state dict, or a file of one, under our names or the authors'; see :func:`lookfar.weights.read` for
            what is taken off around it.
        prefix: Where the block's weights stand in those of a network, as in ``"decode_head.nl_block."``.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It holds no weights; or they do not fit: what has no place, what is missing, and the prefix, the
            option or the block that would fit, if there is one.

    >>> from lookfar import create_block
    >>> network = nn.Sequential(nn.Conv2d(3, 32, 1), create_block("nonlocal", 32))
    >>> block = load(create_block("nonlocal", 32), network.state_dict(), prefix="1.")
    >>> bool((block.query.weight == network[1].query.weight).all())
    True
    """
    of = f"the weights of {source}" if isinstance(source, str | Path) else "these weights"
    held = content(source) if isinstance(source, str | Path) else source
    found = unwrapped(held, prefix=prefix, of=of)
    tried = [found] if prefix else [found, state_in(held), _without_first(found)]
    for state in (convert(block, some) if n == 0 or _fits(block, some) else {} for n, some in enumerate(tried)):
        if state and not _problems(block, state):
            block.load_state_dict(state, strict=False)
            return block
    problems = _problems(block, convert(block, found))
    listed = "; ".join(f"{what}: {_some(keys)}" for what, keys in problems.items())
    raise ValueError(
        "\n".join(filter(None, [f"{of} do not fit {type(block).__name__}: {listed}", _hint(block, found)]))
    )


def _problems(block: nn.Module, state: State) -> dict[str, list[str]]:
    own = block.state_dict()
    kept = getattr(block, "unpublished", ())  # what the originals do not have keeps its value
    problems = {
        "no place for": [key for key in state if key not in own],
        "missing": [key for key in own if key not in {*state, *kept} and not key.endswith("num_batches_tracked")],
        "wrong shape": [
            f"{key} {tuple(state[key].shape)}, want {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    return {what: keys for what, keys in problems.items() if keys}


def _some(keys: list[str], most: int = 2) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _hint(block: nn.Module, found: State) -> str:
    """What would fit, in a line."""
    light = {key: value.to("meta") for key, value in found.items()}
    parts = {"": light, **_parts(light)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inside = [start for start, part in parts.items() if start and _fits(block, part)]
        if inside:
            return f"With prefix={_some([repr(start) for start in inside], 2)} they do."
        try:
            info = block_info(block)
        except ValueError:
            return f"They hold {some_prefixes(light)}."
        near = sorted(parts, key=lambda start: -_overlap(block, parts[start]))[:2]
        for start in near:
            if _overlap(block, parts[start]) >= 0.5 and (options := _options_that_fit(info, block, parts[start])):
                return f"With {options}{f', prefix={start!r}' if start else ''} they do."
        alike = _blocks_like(parts)
    if "" in alike:
        return f"They look like {' or '.join(alike[''][:3])}."
    listed = [f"{' or '.join(names[:2])} at {start!r}" for start, names in list(alike.items())[:2]]
    return f"They hold {some_prefixes(light, most=3)}" + (f"; {', '.join(listed)} may be blocks." if listed else ".")


def _without_first(state: State) -> State:
    """Without the part that all keys start with, if there is one: whatever a network calls the block."""
    first = {key.split(".")[0] for key in state}
    return {key.partition(".")[2]: value for key, value in state.items()} if len(first) == 1 else state


def _parts(state: State) -> dict[str, State]:
    """What stands under each prefix of a network, where that is little enough for a block."""
    starts = dict.fromkeys(
        ".".join(parts[:depth]) + "." for key in state for parts in [key.split(".")] for depth in range(1, len(parts))
    )
    parts: dict[str, State] = {}
    for start in starts:
        part = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
        if 1 < len(part) <= _LARGEST:
            parts[start] = part
    return parts


def _fits(block: nn.Module, state: State) -> bool:
    try:
        return not _problems(block, convert(block, state))
    except Exception:  # a conversion that needs keys which are missing
        return False


def _options_that_fit(info: BlockInfo, block: nn.Module, state: State) -> str:
    """The options with which the block would take the weights, found by building it with them; empty if none do."""
    shapes = {key: value.shape for key, value in block.state_dict().items()}

    def unlike(tried: nn.Module) -> int:
        found = {key: value.shape for key, value in tried.state_dict().items()}
        return sum(found.get(key) != shapes.get(key) for key in found.keys() | shapes.keys())

    def misfit(tried: nn.Module) -> int:
        try:
            return sum(map(len, _problems(tried, convert(tried, state)).values()))
        except Exception:  # a conversion that needs keys which are missing
            return len(state) + 1

    start, left = _nearest(info, {}, _widths(shapes.values()), unlike)
    if left:
        return ""  # options that are not tried: what the block is now is not known
    chosen, left = _nearest(info, start, _widths(value.shape for value in state.values()), misfit)
    if left:
        return ""
    defaults = {name: parameter.default for name, parameter in info.options.items()}
    changed = {name: v for name, v in chosen.items() if v != start.get(name, defaults.get(name))}
    return ", ".join(f"{name}={_word(value)}" for name, value in changed.items())


def _nearest(
    info: BlockInfo, start: Mapping[str, Any], widths: set[int], misfit: Callable[[nn.Module], int]
) -> tuple[dict[str, Any], int]:
    """Options from ``start``, changed one at a time while that helps; and how far from a fit the best of them are."""

    def tried(options: dict[str, Any]) -> int:
        try:
            return misfit(info.cls(**options, device="meta"))
        except Exception:  # options that exclude each other, widths that do not divide
            return sys.maxsize

    values = {"channels": sorted(widths, reverse=True), **_values(info, widths)}
    best = dict(start) or {"channels": max(widths, default=1)}
    left = tried(best)
    for _ in range(4):
        changes = [best | {name: value} for name, some in values.items() for value in some]
        if "channels" not in start:  # a wrong width can hide that another option is right
            changes += [{"channels": width} for width in values["channels"]]
        found = {n: tried(options) for n, options in enumerate(changes)} if left else {}
        n = min(found, key=lambda n: found[n], default=None)
        if n is None or found[n] >= left:
            break
        best, left = changes[n], found[n]
    return best, left


def _widths(shapes: Iterable[Sequence[int]]) -> set[int]:
    return {n for shape in shapes for n in shape} | {1}


def _overlap(block: nn.Module, state: State) -> float:
    """The share of names that are the block's: where it is small no option will help."""
    try:
        found = convert(block, state)
    except Exception:
        return 0.0
    own = block.state_dict()
    return sum(key in own for key in found) / max(len(found), 1)


def _word(value: Any) -> str:
    if isinstance(value, type):
        return f"nn.{value.__name__}" if value.__module__.startswith("torch.nn") else value.__name__
    return repr(value)


def _values(info: BlockInfo, widths: set[int]) -> dict[str, list[Any]]:
    """Other values of each option that can change what a block holds."""
    hints = get_type_hints(info.cls.__init__)
    found: dict[str, list[Any]] = {}
    for name, parameter in info.options.items():
        default = parameter.default
        kinds = _kinds(hints.get(name))
        words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
        if name.endswith("norm_layer"):
            found[name] = [None, nn.BatchNorm2d]
        elif isinstance(default, bool) or bool in kinds:
            found[name] = [True, False]
        elif words:
            found[name] = words
        elif name == "reduction":
            found[name] = [1, 2, 4, 8, 16, 32]
        elif name == "dims":
            found[name] = [1, 2, 3]
        elif name in ("kernel_size", "encoder_kernel", "fuse_kernel"):
            found[name] = [1, 3, 5, 7]
        elif name.endswith(("_channels", "bases", "nodes", "groups", "out_channels")):
            found[name] = sorted(widths)
        elif name in ("subsample", "heads", "scales"):
            found[name] = [1, 2, 3, 4, 8]
    return found


def _kinds(hint: Any) -> tuple[Any, ...]:
    if hint is None or get_origin(hint) is Literal:
        return (hint,)
    return tuple(kind for one in get_args(hint) for kind in _kinds(one)) or (hint,)


def _blocks_like(parts: Mapping[str, State]) -> dict[str, list[str]]:
    """Canonical names of the blocks that have the parameters of each part, by name and number of axes."""
    blocks = [(name, tried) for name in list_blocks() for tried in _forms(block_info(name))]
    seen: dict[tuple[str, ...], list[str]] = {}
    for part in parts.values():
        keys = tuple(part)
        if keys not in seen and 1 < len(keys) <= _LARGEST and len(seen) < _MOST:
            seen[keys] = list(dict.fromkeys(name for name, tried in blocks if _is_like(tried, part)))
    return {start: names for start, part in parts.items() if (names := seen.get(tuple(part)))}


def _forms(info: BlockInfo) -> list[nn.Module]:
    """The block as it is by default, as published, and with and without a bias at its end."""
    found = []
    options: list[dict[str, Any]] = [{}, {"form": "published"}, {"project_bias": False}, {"norm_layer": None}]
    for chosen in options:
        if chosen.keys() <= info.options.keys():
            with contextlib.suppress(Exception):
                found.append(info.cls(64, **chosen, device="meta"))
    return found


def _is_like(block: nn.Module, state: State) -> bool:
    own = block.state_dict()
    if abs(len(own) - len(state)) > 8:
        return False
    try:
        found = convert(block, state)
    except Exception:
        return False
    same = all(own[key].dim() == value.dim() or not value.dim() for key, value in found.items() if key in own)
    return same and len(found) > 1 and not _problems(block, found).keys() - {"wrong shape"}

"""From what a user types to something that builds modules: FILE.py:Class, package.module:Class, a block's name."""

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from lookfar.blocks import block_info, parse_block
from lookfar.blocks._base import parse_options
from lookfar.check.outcome import listed, said

# what constructors call the channels of their input
CHANNEL_NAMES = (
    *("channels", "channel", "in_channels", "in_channel", "num_channels", "n_channels", "nc", "ch", "c", "c1", "in_c"),
    *("in_planes", "inplanes", "planes", "dim", "in_dim", "input_dim", "d_model", "embed_dim", "in_chans", "chan"),
    *("input_channels", "inp", "features", "in_features", "num_features", "n_feat", "nin", "width"),
)
_WANTED = "FILE.py:CLASS, package.module:CLASS or a block of `lookfar blocks`, with (option=value, ...) behind it"


@dataclass(frozen=True)
class Target:
    """A module that can be built again and again.

    Attributes:
        name: Of the class, or of the block in the registry.
        make: The class, or a function that gives a module.
        options: What the user set beside the channels.
        channels_argument: What the constructor calls the channels; None where it takes none.
    """

    name: str
    make: Callable[..., object]
    options: Mapping[str, Any] = field(default_factory=dict)
    channels_argument: str | None = None

    def build(self, channels: int, **changed: Any) -> nn.Module:
        """A new module; ``changed`` replaces options.

        Raises:
            ValueError: The constructor raised, or gave no module.
        """
        options = {**self.options, **changed}
        try:
            with _silent_exit():
                if self.channels_argument is None:
                    module = self.make(**options)
                elif next(iter(self.parameters), None) in (self.channels_argument, None):
                    module = self.make(channels, **options)
                else:
                    module = self.make(**{self.channels_argument: channels}, **options)
        except Exception as error:
            raise ValueError(f"cannot build {self.written(channels)}: {said(error)}{self._hint(error)}") from error
        if not isinstance(module, nn.Module):
            raise ValueError(f"{self.name} gives {type(module).__name__}, want a torch.nn.Module")
        return module

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Arguments of the constructor, in order."""
        return _parameters(self.make)

    def written(self, channels: int) -> str:
        """As a call in Python."""
        first = [] if self.channels_argument is None else [str(channels)]
        return f"{self.name}({', '.join([*first, *(f'{k}={v!r}' for k, v in self.options.items())])})"

    def _hint(self, error: Exception) -> str:
        if not isinstance(error, TypeError):
            return ""
        try:
            return f" (it takes {inspect.signature(self.make)}; give --option NAME=VALUE)"
        except (TypeError, ValueError):
            return ""


def load(text: str, options: Sequence[str] = ()) -> Target:
    """Find what the user means.

    Args:
        text: ``my_module.py:MyBlock``, ``package.module:MyBlock``, ``nonlocal``, each with ``(option=value, ...)``
            behind it if wanted.
        options: Further options, ``"heads=4"``.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It cannot be imported, holds no such class, an option cannot be read.
        TypeError: A block of the registry does not take an option.

    >>> load("nonlocal(mode=gaussian)", ["heads=2"]).written(64)
    "nonlocal(64, mode='gaussian', heads=2)"
    """
    more: dict[str, Any] = {}
    for option in options:
        if not option.strip():
            raise ValueError(f"cannot read {option!r}: want --option NAME=VALUE")
        more |= parse_options(f"{option})", option, "--option NAME=VALUE")
    found = re.fullmatch(r"(?P<where>.+\.py|[\w.]+):(?P<name>\w+)\s*(?P<options>\(.*)?", text.strip(), re.DOTALL)
    if found is None:
        return _registered(text, more)
    where, name, inside = found["where"], found["name"], found["options"]
    given = parse_options(inside[1:], text, f"{where}:{name}(option=value, ...)") if inside else {}
    module = _import_file(Path(where)) if where.endswith(".py") else _import_name(where)
    make = getattr(module, name, None)
    if not callable(make) or isinstance(make, nn.Module):
        raise ValueError(f"{where} has no class {name!r}.{_classes_of(module, name)}")
    given |= more
    return Target(name, make, given, _channels_argument(make, given))


def _registered(text: str, more: Mapping[str, Any]) -> Target:
    if text.strip().endswith(".py"):
        classes = _classes_of(_import_file(Path(text.strip())), "")
        raise ValueError(f"which class of {text.strip()}? Write {text.strip()}:CLASS.{classes}")
    if not re.fullmatch(r"\w+\s*(\(.*)?", text.strip(), re.DOTALL):
        raise ValueError(f"cannot read {text!r}: want {_WANTED}")
    name, options = parse_block(text)
    for option, value in more.items():
        options |= parse_block(f"{name}({option}={value!r})")[1]  # unknown options get the registry's answer
    return Target(name, block_info(name).cls, options, "channels")


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=3)
        hint = f" Did you mean {', '.join(str(path.parent / name) for name in near)}?" if near else ""
        raise FileNotFoundError(f"there is no file {path}.{hint}")
    root, parts = path.resolve().parent, [path.stem]
    while (root / "__init__.py").is_file():  # a file of a package is imported as such, for its relative imports
        root, parts = root.parent, [root.name, *parts]
    if len(parts) > 1:
        return _import_name(".".join(parts), root)
    name = f"_lookfar_checked_{path.stem}"  # never hides a module of this name
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle and compilers look it up there
    with _importing(str(path), root):
        spec.loader.exec_module(module)
    return module


def _import_name(name: str, root: Path | None = None) -> ModuleType:
    with _importing(name, Path.cwd() if root is None else root):
        return importlib.import_module(name)


@contextlib.contextmanager
def _importing(what: str, root: Path) -> Iterator[None]:
    """``root`` can be imported from; what goes wrong is reported in one line."""
    sys.path.insert(0, str(root))
    try:
        with _silent_exit():
            yield
    except Exception as error:
        raise ValueError(f"cannot import {what}: {said(error)}") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(root))


@contextlib.contextmanager
def _silent_exit() -> Iterator[None]:
    """A script that exits when it is imported has failed to load; it does not end us."""
    try:
        yield
    except SystemExit as stop:
        raise RuntimeError(f"it called sys.exit({stop.code!r})") from stop


def _classes_of(module: ModuleType, name: str) -> str:
    classes = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__.startswith(module.__name__)
    ]
    near = difflib.get_close_matches(name, classes, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{hint} It has: {listed(classes, 10) or 'no torch.nn.Module'}."


def _parameters(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(make).parameters)
    except (TypeError, ValueError):  # some builtins have no signature
        return {}


def _channels_argument(make: Callable[..., Any], options: Mapping[str, Any]) -> str | None:
    parameters = _parameters(make)
    for name, parameter in parameters.items():
        if name in CHANNEL_NAMES and parameter.kind is not parameter.VAR_KEYWORD:
            return None if name in options else name
    first = next(iter(parameters.values()), None)
    if first is None or first.name in options or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
        return None
    required = first.default is first.empty
    return first.name if required else None

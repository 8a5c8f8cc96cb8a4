"""Modules that are no blocks of ours, by where they stand: ``FILE.py:NAME`` or ``package.module:NAME``.

Options may stand behind in brackets, as behind the name of a block. :mod:`lookfar.blocks._importing` imports them,
:mod:`lookfar.blocks._sources` knows the files behind them.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from lookfar._options import nearest
from lookfar._tables import listed, said, shorten
from lookfar.blocks._base import made_by, parse_options
from lookfar.blocks._importing import import_own, no_file, silent_exit
from lookfar.blocks._sources import Source, is_installed

# what constructors call the channels of their input
CHANNEL_NAMES = (
    *("channels", "channel", "in_channels", "in_channel", "num_channels", "n_channels", "nc", "ch", "c", "c1", "in_c"),
    *("in_planes", "inplanes", "planes", "dim", "in_dim", "input_dim", "d_model", "embed_dim", "in_chans", "chan"),
    *("input_channels", "inp", "features", "in_features", "num_features", "n_feat", "nin", "width"),
)
# what functions that build networks call the number of classes, and that of the bands of an image
CLASSES = (
    *("classes", "num_classes", "n_classes", "nclasses", "num_class", "n_class", "nclass", "nc", "k", "K"),
    *("num_labels", "n_labels", "out_channels", "out_chans"),
)
BANDS = (
    "in_chans",
    "in_channels",
    "n_channels",
    "num_channels",
    "input_channels",
    "in_ch",
    "in_c",
    "channels",
    "bands",
)
# a path may hold anything, a colon and an @ too: what ends it is `.py:NAME`, followed by options, a place or nothing
_PLACE_OF = re.compile(
    r"\s*(?P<where>.+?\.py|[^\W\d]\w*(?:\.\w+)*)\s*:\s*(?P<name>[^\W\d]\w*(?:\.\w+)*)\s*(?P<rest>(?:[(@].*)?)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Address:
    """Where a module of a user's own stands.

    Attributes:
        where: ``my.py`` or ``package.module``.
        name: Of the class or function in it.
        options: What stood in brackets behind it.
    """

    where: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.where}:{self.name}"


def split_address(text: str) -> tuple[str, str, str] | None:
    """File or package, name, and what follows, of ``my.py:MyBlock(reduction=8)@layer3``; None for other texts.

    >>> split_address("my blocks/a.py:MyBlock(path='b.py:c')@layer3")
    ('my blocks/a.py', 'MyBlock', "(path='b.py:c')@layer3")
    >>> split_address("nonlocal(mode=gaussian)@layer3") is None
    True
    """
    found = _PLACE_OF.fullmatch(text)
    return (_tidy(found["where"]), found["name"], found["rest"].strip()) if found else None


def parse_address(text: str) -> Address | None:
    """Read ``my.py:MyBlock(reduction=8)`` without importing anything; None for a text of another form.

    Raises:
        ValueError: Options that cannot be read; a file without a name behind it.
    """
    parts = split_address(text)
    if parts is None:
        if re.search(r"\.(py|ipynb)\b", text.partition("(")[0]):
            raise ValueError(_how_to_write(text.strip()))
        return None
    where, name, rest = parts
    if where.endswith(".ipynb"):
        raise ValueError(_how_to_write(where))
    if rest and not rest.startswith("("):
        raise ValueError(f"cannot read {text!r}: want {where}:{name}(option=value, ...)")
    options = parse_options(rest[1:], text, f"{where}:{name}(option=value, ...)") if rest else {}
    return Address(where, name, options)


def _how_to_write(text: str) -> str:
    path = Path(text.partition(".py")[0] + ".py" if ".py" in text else text)
    if ".ipynb" in text:
        return f"{text} is a notebook, which cannot be imported: write the class into FILE.py and give FILE.py:CLASS"
    if text.endswith(".py"):
        if not path.is_file():
            return no_file(path)
        return f"which class of {path}? Write {path}:CLASS.{_classes_of(import_own(str(path)), '')}"
    return f"cannot read {text!r}: want FILE.py:CLASS, with (option=value, ...) behind it if wanted"


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
        options = {name: self._made_by(name, value) for name, value in {**self.options, **changed}.items()}
        try:
            with silent_exit():
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
    def constructor(self) -> Callable[..., nn.Module]:
        """A function of the channels that passes for the class where it is asked for its name and signature."""

        @functools.wraps(self.make, updated=())
        def build(channels: int, **options: Any) -> nn.Module:
            return self.build(channels, **options)

        return build

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Arguments of the constructor, in order."""
        return parameters_of(self.make)

    def written(self, channels: int) -> str:
        """As a call in Python."""
        first = [] if self.channels_argument is None else [str(channels)]
        return f"{self.name}({', '.join([*first, *(f'{k}={v!r}' for k, v in self.options.items())])})"

    def _made_by(self, option: str, value: Any) -> Any:
        """As :func:`create_block` takes it, unless the constructor itself wants a word there."""
        taken = self.parameters.get(option)
        words = taken is not None and (isinstance(taken.default, str) or taken.annotation in (str, "str"))
        return value if words else made_by(option, value)

    def _hint(self, error: Exception) -> str:
        if not isinstance(error, TypeError):
            return ""
        try:
            return f" (it takes {shorten(str(inspect.signature(self.make)), 100)})"
        except (TypeError, ValueError):
            return ""


def find_own(address: Address, more: Mapping[str, Any] | None = None, *, source: Source | None = None) -> Target:
    """Import what stands at an address.

    Args:
        address: As :func:`parse_address` gives it.
        more: Further options.
        source: A copy of the file to import instead.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It cannot be imported, or holds no such class.
        TypeError: An option that the class does not take.
    """
    where, name = address.where, address.name
    module = import_own(where, source)
    make: Any = module
    for part in name.split("."):
        make = getattr(make, part, None)
    if make is None or not (callable(make) or isinstance(make, nn.Module)):
        raise ValueError(f"{where} has no class {name!r}.{_classes_of(module, name)}")
    if isinstance(make, nn.Module):
        raise ValueError(f"{where}:{name} is a module that is built already: give its class, {type(make).__name__}")
    if isinstance(make, type) and not issubclass(make, nn.Module):
        raise ValueError(f"{where}:{name} is a class, but not a torch.nn.Module.{_classes_of(module, name)}")
    given = {**address.options, **(more or {})}
    _check_options(name, make, given)
    return Target(name, make, given, _channels_argument(make, given))


def with_classes(target: Target, classes: int, bands: int) -> Target:
    """The same for a function that builds a whole network: number of classes and of bands go to the arguments for them.

    An argument counts as the one for bands where it must be given, or where its default is a number of bands.
    """
    taken = parameters_of(target.make)
    of_classes = next((name for name in CLASSES if name in taken), None)
    usual = (inspect.Parameter.empty, 1, 3, 4)
    of_bands = next((name for name in BANDS if name in taken and taken[name].default in usual), None)
    given = {name: value for name, value in ((of_classes, classes), (of_bands, bands)) if name is not None}
    return Target(target.name, target.make, {**given, **target.options})


def _check_options(name: str, make: Callable[..., Any], given: Mapping[str, Any]) -> None:
    taken = parameters_of(make)
    if not taken or any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        return
    for option in given:
        if option not in taken:
            near = nearest(option, taken)
            hint = f" Did you mean {near}?" if near else ""
            raise TypeError(f"{name} has no option {option!r}.{hint} It takes: {listed(list(taken), 12)}.")


def _tidy(where: str) -> str:
    """One way of writing a path: relative to here where it lies below, else as it is."""
    if not where.endswith(".py"):
        return where
    path = Path(os.path.normpath(Path(where).expanduser()))
    if path.is_absolute():
        with contextlib.suppress(ValueError):
            path = path.relative_to(Path.cwd())
    return path.as_posix()


def address_of(thing: Any) -> str:
    """The text for a class or function that is given itself: a trial is another process, which must find it again.

    Raises:
        ValueError: It cannot be imported from a file: defined at a prompt, in a notebook, inside a function.
        TypeError: Neither a class nor a function.
    """
    if isinstance(thing, functools.partial) and not thing.args:
        text = address_of(thing.func)
        options = ", ".join(f"{name}={_written(name, value)}" for name, value in thing.keywords.items())
        return f"{text}({options})" if options else text
    if isinstance(thing, nn.Module):
        raise ValueError(f"a module that is built already cannot be built for every trial: give its class, "
                         f"{type(thing).__name__}")  # fmt: skip
    name = getattr(thing, "__qualname__", None)
    if not callable(thing) or name is None:
        raise TypeError(f"want a name, a class or a function that gives a torch.nn.Module, got {thing!r}")
    module = sys.modules.get(thing.__module__)
    if "<" in name:
        raise ValueError(
            f"{name.replace('<locals>.', '')} is defined inside a function, where no trial finds it: move it out"
        )
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        raise ValueError(
            f"{name} is defined at a prompt or in a notebook, where no trial finds it: write it into FILE.py and give "
            f"'FILE.py:{name}', or import it from there"
        )
    if is_installed(Path(file)) or not file.endswith(".py"):
        return f"{thing.__module__}:{name}"
    return f"{_tidy(file)}:{name}"


def _written(name: str, value: Any) -> str:
    word = getattr(value, "__name__", "")
    if isinstance(value, type) and made_by(name, word) is value:
        return word
    text = repr(value)
    try:
        same = ast.literal_eval(text) == value
    except (ValueError, SyntaxError):
        same = False
    if not same:
        raise ValueError(f"{name}={value!r} cannot be written into a plan: want a number, a word or a tuple of these")
    return text


def _classes_of(module: ModuleType, name: str) -> str:
    """What may be named in a file: its classes, then its functions, which may give a module."""
    of = {key: getattr(value, "__module__", None) or "" for key, value in vars(module).items()}
    own = {key: value for key, value in vars(module).items() if of[key].startswith(module.__name__)}
    classes = [key for key, value in own.items() if isinstance(value, type) and issubclass(value, nn.Module)]
    functions = [key for key, value in own.items() if inspect.isfunction(value) and not key.startswith("_")]
    near = difflib.get_close_matches(name, [*classes, *functions], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{hint} It has: {listed([*classes, *functions], 10) or 'no torch.nn.Module'}."


def parameters_of(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Arguments of a class's constructor or of a function; none where Python cannot tell."""
    try:
        return dict(inspect.signature(make).parameters)
    except (TypeError, ValueError):  # some builtins have no signature
        return {}


def _channels_argument(make: Callable[..., Any], options: Mapping[str, Any]) -> str | None:
    parameters = parameters_of(make)
    for name, parameter in parameters.items():
        if name in CHANNEL_NAMES and parameter.kind is not parameter.VAR_KEYWORD:
            return None if name in options else name
    first = next(iter(parameters.values()), None)
    if first is None or first.name in options or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
        return None
    required = first.default is first.empty
    return first.name if required else None

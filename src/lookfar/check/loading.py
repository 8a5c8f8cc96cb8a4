"""From what a user types to something that builds modules: FILE.py:Class, package.module:Class, a block's name."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lookfar.blocks import block_info, parse_block
from lookfar.blocks._base import parse_options
from lookfar.blocks._own import Target, find_own, parse_address

_WANTED = "FILE.py:CLASS, package.module:CLASS or a block of `lookfar blocks`, with (option=value, ...) behind it"


def load(text: str, options: Sequence[str] = ()) -> Target:
    """Find what the user means.

    Args:
        text: ``my_module.py:MyBlock``, ``package.module:MyBlock``, ``nonlocal``, each with ``(option=value, ...)``
            behind it if wanted.
        options: Further options, ``"heads=4"``.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It cannot be imported, holds no such class, an option cannot be read.
        TypeError: An option that the class or block does not take.

    >>> load("nonlocal(mode=gaussian)", ["heads=2"]).written(64)
    "nonlocal(64, mode='gaussian', heads=2)"
    """
    more: dict[str, Any] = {}
    for option in options:
        if not option.strip():
            raise ValueError(f"cannot read {option!r}: want --option NAME=VALUE")
        more |= parse_options(f"{option})", option, "--option NAME=VALUE")
    address = parse_address(text)
    return _registered(text, more) if address is None else find_own(address, more)


def _registered(text: str, more: Mapping[str, Any]) -> Target:
    if not re.fullmatch(r"\w+\s*(\(.*)?", text.strip(), re.DOTALL):
        raise ValueError(f"cannot read {text!r}: want {_WANTED}")
    name, options = parse_block(text)
    for option, value in more.items():
        options |= parse_block(f"{name}({option}={value!r})")[1]  # unknown options get the registry's answer
    return Target(name, block_info(name).cls, options, "channels")

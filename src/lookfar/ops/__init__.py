"""Mathematics on tensors: each attention's definition (``*_reference``) beside its exact fast path.

The public functions of all files without ``_`` are found here by walking the folder. ``__init__.pyi`` lists them for
type checkers; ``python -m lookfar.ops._stub`` writes it.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any


def _public() -> dict[str, Callable[..., Any]]:
    names = [file.name for file in pkgutil.iter_modules(__path__) if not file.name.startswith("_")]
    files = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {
        name: function
        for file in files
        for name, function in vars(file).items()
        if inspect.isfunction(function) and function.__module__ == file.__name__ and not name.startswith("_")
    }


_FOUND = _public()
__all__ = sorted(_FOUND)  # pyright: ignore[reportUnsupportedDunderAll]
globals().update(_FOUND)  # over the files of the same names

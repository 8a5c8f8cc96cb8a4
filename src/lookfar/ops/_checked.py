"""Checks of options, left out of compiled programs: options are constants there, which the compiler need not trace."""

import functools
from collections.abc import Callable

import torch

from lookfar import _options


def _unless_compiled(f: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(f)
    def checked(*args: object, **kwargs: object) -> None:
        if not torch.compiler.is_compiling():
            f(*args, **kwargs)

    return checked


check = _unless_compiled(_options.check)
choice = _unless_compiled(_options.choice)
divides = _unless_compiled(_options.divides)
odd = _unless_compiled(_options.odd)
positive = _unless_compiled(_options.positive)

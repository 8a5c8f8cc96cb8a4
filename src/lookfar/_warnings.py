"""Warnings as a command prints them."""

import contextlib
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """What is warned of goes to stderr, a line each, without where in the code it was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in said:
        if issubclass(warning.category, UserWarning):
            print(f"lookfar: {warning.message}", file=sys.stderr)

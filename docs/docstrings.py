"""Docstrings as they are written here, for the page of the Python names: examples become code, roles become names."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:func|class|meth|data|attr|mod):`~?(?:lookfar\.)?([^`]+)`")
EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class Docstrings(Extension):
    """Changes docstrings before they are parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called once for every function, class and attribute."""
        if obj.docstring is not None:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", text)

"""Writes ``__init__.pyi``, from which type checkers know the names that ``__init__.py`` finds in the folder."""

from pathlib import Path

from lookfar import ops


def stub() -> str:
    """The text of the file."""
    places = sorted((getattr(ops, name).__module__, name) for name in ops.__all__)
    lines = ["# ruff: noqa: E501, I001", "# fmt: off", '"""Made by ``python -m lookfar.ops._stub``."""', ""]
    lines += [f"from {file} import {name} as {name}" for file, name in places]
    return "\n".join([*lines, "", "__all__: list[str]", ""])


if __name__ == "__main__":
    (Path(ops.__file__).parent / "__init__.pyi").write_text(stub())

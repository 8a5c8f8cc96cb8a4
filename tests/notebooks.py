"""Runs the notebooks of ``examples/`` without Jupyter.

python tests/notebooks.py     # runs them as they are, for minutes, and keeps in each what it printed and drew
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def run(path: Path, quick: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The notebook with its new outputs. It is run in the folder in which one is.

    Args:
        path: Of the notebook.
        quick: Values that replace those of the cell that is tagged ``parameters``.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    sys.path.insert(0, "")  # as in Jupyter, modules beside the notebook are found
    try:
        return _run(notebook, path.name, quick or {})
    finally:
        sys.path.remove("")


def _run(notebook: dict[str, Any], name: str, quick: Mapping[str, Any]) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "notebook"}
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        count += 1
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            value = run_cell("".join(cell["source"]), names, f"{name}, cell {count}")
        if "parameters" in cell["metadata"].get("tags", ()):
            names.update(quick)
        outputs = (
            [{"name": "stdout", "output_type": "stream", "text": lines(text.getvalue())}] if text.getvalue() else []
        )
        if value is not None:
            outputs.append(
                {"data": shown(value), "execution_count": count, "metadata": {}, "output_type": "execute_result"}
            )
        cell.update(execution_count=count, outputs=outputs)
    return notebook


def run_cell(source: str, names: dict[str, Any], where: str) -> Any:
    """The value of the last expression of a cell, as a notebook would show it; None where there is none."""
    body = ast.parse(source, where).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) and not source.rstrip().endswith(";") else None
    exec(compile(ast.Module(body, []), where, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), where, "eval"), names)


def shown(value: Any) -> dict[str, Any]:
    """What a notebook keeps of a value: its picture or table, and its text."""
    data: dict[str, Any] = {}
    if hasattr(value, "_repr_png_"):
        png = value._repr_png_()
        data["image/png"] = base64.b64encode(png).decode() if isinstance(png, bytes) else png
    elif hasattr(value, "_repr_html_"):
        data["text/html"] = lines(value._repr_html_())
    kind = type(value).__name__
    return {**data, "text/plain": lines(f"<{kind}>" if "image/png" in data else repr(value))}


def lines(text: str) -> list[str]:
    """As notebooks keep text."""
    return text.splitlines(keepends=True)


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("ignore")
    for path in NOTEBOOKS if len(sys.argv) < 2 else map(Path, sys.argv[1:]):
        path, here = path.resolve(), Path.cwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            notebook = run(path)
            os.chdir(here)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path.name, flush=True)


if __name__ == "__main__":
    main()

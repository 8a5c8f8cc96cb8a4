"""Examples in docstrings run as they stand, and the public functions of these rooms have one."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest
import torch
from study.fake_study import make_fake_study

import lookfar

SRC = Path(lookfar.__file__).parent
# every public function here has an example
ROOMS = (
    *("blocks", "check", "cost", "data", "diagnostics", "insertion", "networks", "ops", "study", "tasks", "training"),
    "weights",
)
WITHOUT = {
    "keep_pages": "cannot be undone in the process that calls it",
    "collect_samples": "wants a trained network and its data",
    "load_trial": "wants a trained network and its data: tests/study/test_trained.py loads some",
    "run": "trains for minutes: tests/study/test_running.py runs a study",
}


def module_name(path: Path) -> str:
    return ".".join(["lookfar", *path.relative_to(SRC).with_suffix("").parts]).removesuffix(".__init__")


MODULES = sorted(module_name(p) for p in SRC.rglob("*.py") if ">>> " in p.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)  # examples write files
    if name.startswith("lookfar.study"):
        make_fake_study(tmp_path / "runs/lookup")  # and read a study's folder
    done = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert done.attempted > 0
    assert done.failed == 0


@pytest.mark.parametrize("room", ROOMS)
def test_public_functions_have_an_example(room: str) -> None:
    module = importlib.import_module(f"lookfar.{room}")
    functions = {name for name in module.__all__ if inspect.isroutine(getattr(module, name))}
    without = {name for name in functions if ">>> " not in (getattr(module, name).__doc__ or "")}
    assert without == functions & WITHOUT.keys()


@pytest.mark.parametrize("name", lookfar.list_blocks())
def test_blocks_have_an_example(name: str) -> None:
    assert ">>> " in (lookfar.block_info(name).cls.__doc__ or "")

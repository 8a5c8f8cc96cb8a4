"""Options and fixtures of the whole suite."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)  # workers run side by side; OpenMP spins when threads outnumber cores


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every", action="store_true", help="export every network in every form: twenty minutes")
    parser.addoption("--goldens", metavar="DIR", help="hold the library to the vectors of another folder")


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What was found in data is remembered here, not in the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOKFAR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    """Run a command in this process, which is quicker: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[Any, str, str]:
        from lookfar import cli

        monkeypatch.setattr(sys, "argv", ["lookfar", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Functions by their name: with an address in it, the processes that share the tests would not collect the same."""
    return getattr(val, "__qualname__", None) if callable(val) else None

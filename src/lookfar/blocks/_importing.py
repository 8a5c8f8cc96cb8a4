"""A user's file imported as what it is: once for one content, under a name that hides nothing, with nothing left.

Traps: two files may import two different ``helper.py`` that stand beside each; a file may be edited while it is in
use; a file may set torch's defaults, draw random numbers or exit when it is imported.
"""

import contextlib
import difflib
import importlib
import importlib.util
import os
import random
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import torch

from lookfar._tables import said
from lookfar.blocks._sources import Source, is_installed, source_of

_IMPORTED: dict[tuple[str, str], ModuleType] = {}  # by path and what the file and its neighbours hold
_running: list[str] = []


def being_imported() -> str:
    """The file that is being imported for what it holds, or an empty string."""
    return _running[-1] if _running else ""


def import_own(where: str, source: Source | None = None) -> ModuleType:
    """The module of ``my.py`` or ``package.module``; once for one content.

    Args:
        where: As the user wrote it.
        source: A copy to import instead.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It cannot be imported; the message names file and line.
    """
    if source is None and where.endswith(".py") and not Path(where).is_file():
        raise FileNotFoundError(no_file(Path(where)))
    source = source_of(where) if source is None else source
    if source is None:
        name, root = (where, Path.cwd()) if not where.endswith(".py") else (Path(where).stem, Path(where).parent)
        with _importing(where, root.resolve(), {}):
            return importlib.import_module(name)
    key = (str(source.path), source.digest)
    if key not in _IMPORTED:
        edited = any(path == key[0] for path, _ in _IMPORTED)
        _IMPORTED[key] = _import(where, source, edited)
    return _IMPORTED[key]


def _import(where: str, source: Source, edited: bool) -> ModuleType:
    modules = source.modules
    with _importing(where, source.root, modules, again=edited):
        if "." in source.module or not where.endswith(".py"):  # a file of a package, for its relative imports
            return importlib.import_module(source.module)
        # a name that hides no other module, and tells two files of one name apart
        name = f"_own_{re.sub(r'[^0-9A-Za-z_]', '_', source.module)}_{source.digest[:8]}"
        spec = importlib.util.spec_from_file_location(name, source.path)
        if spec is None or spec.loader is None:
            raise ImportError("Python does not read such files")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # pickle and compilers look it up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module


@contextlib.contextmanager
def _importing(where: str, root: Path, modules: Mapping[str, Path], *, again: bool = False) -> Iterator[None]:
    """``root`` can be imported from; what goes wrong is said in one line with file and line.

    Modules of these names from other files stand aside meanwhile: ``import helper`` means the neighbour.
    """
    aside = {}
    for name, path in modules.items():
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None or is_installed(Path(file)):
            continue
        if os.path.realpath(file) != os.path.realpath(path):
            aside[name] = sys.modules.pop(name)
        elif again:
            del sys.modules[name]
    importlib.invalidate_caches()
    sys.path.insert(0, str(root))
    _running.append(where)
    try:
        with _undisturbed(), silent_exit(), contextlib.redirect_stdout(sys.stderr):
            yield
    except Exception as error:
        what = f"SyntaxError: {error.msg}" if isinstance(error, SyntaxError) else said(error)
        raise ValueError(f"cannot import {where}: {_line_of(error, root, where)}{what}") from error
    finally:
        _running.pop()
        with contextlib.suppress(ValueError):
            sys.path.remove(str(root))
        sys.modules.update(aside)


def _line_of(error: BaseException, root: Path, where: str) -> str:
    """Where in the user's files it happened: ``line 3: ``, ``helper.py, line 3: ``."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        file, line = error.filename, error.lineno
    else:
        file, line, trace = "", 0, (error.__cause__ or error).__traceback__
        while trace is not None:
            name = trace.tb_frame.f_code.co_filename
            if Path(name).is_relative_to(root) and not is_installed(Path(name)) and name != __file__:
                file, line = name, trace.tb_lineno
            trace = trace.tb_next
    if not line:
        return ""
    return f"line {line}: " if Path(file).name == Path(where).name else f"{Path(file).name}, line {line}: "


@contextlib.contextmanager
def silent_exit() -> Iterator[None]:
    """A script that exits when it is imported has failed to load; it does not end us."""
    try:
        yield
    except SystemExit as stop:
        raise RuntimeError(f"it called sys.exit({stop.code!r})") from stop


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """What a file does to the process when it is imported is undone: random states, torch's defaults, threads."""
    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy and numpy.random.get_state()
    dtype, threads, grad = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python_state)
        if numpy is not None and numpy_state is not None:
            numpy.random.set_state(numpy_state)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def no_file(path: Path) -> str:
    """That it is not there, with what is there under a like name."""
    if path.is_dir():
        return f"{path} is a folder: want a file FILE.py"
    siblings = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3)
    hint = f" Did you mean {', '.join(str(path.parent / name) for name in near)}?" if near else ""
    return f"there is no file {path}.{hint}"

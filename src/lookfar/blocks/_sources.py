"""The files that stand behind a module of a user's own: which they are, their hash, a copy of them.

What a file imports from beside it belongs to it: an edited ``helper.py`` changes a block as much as its own file does.
Files are found by reading them, without running anything; what is imported by a name made at run time is not seen.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import json
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FIRST = "first.json"  # in a copy: which of its files was asked for


@dataclass(frozen=True)
class Source:
    """A file with what it imports from beside it.

    Attributes:
        root: The folder that imports start from.
        module: Its dotted name below the root.
        files: All of them, relative to the root, the file itself first.
    """

    root: Path
    module: str
    files: tuple[str, ...]

    @property
    def path(self) -> Path:
        return self.root / self.files[0]

    @functools.cached_property
    def digest(self) -> str:
        """A hash of names and contents."""
        total = hashlib.sha256()
        for name in sorted(self.files):
            total.update(f"{name}\0".encode(errors="surrogatepass"))
            total.update(hashlib.sha256((self.root / name).read_bytes()).digest())
        return total.hexdigest()[:16]

    @property
    def modules(self) -> dict[str, Path]:
        """Dotted name of each file -> the file."""
        return {_dotted(name): self.root / name for name in self.files}

    def keep(self, folder: Path) -> Source:
        """A copy of the files below ``folder``, where it is not there yet."""
        home = folder / self.digest
        if not home.is_dir():
            temporary = folder / f".{self.digest}"
            shutil.rmtree(temporary, ignore_errors=True)
            for name in self.files:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.root / name, temporary / name)
            (temporary / _FIRST).write_text(json.dumps([self.module, self.files[0]]), encoding="utf-8")
            temporary.rename(home)
        return Source(home, self.module, self.files)


def source_of(where: str) -> Source | None:
    """The files behind ``my.py`` or ``package.module``; None for what is installed, whose version says what it is.

    Raises:
        FileNotFoundError: There is no such file, or no such module here.
    """
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {where}")
        root, module = _root_of(path.resolve())
    else:
        root, module = _home_of(where), where
        path = _file_of(root, where)
        if path is None:  # built in, or not there at all, which importing it will say
            return None
    if is_installed(path):
        return None
    files = {path.resolve().relative_to(root.resolve()).as_posix(): None}
    for one in _followed(root.resolve(), module):
        files.setdefault(one.relative_to(root.resolve()).as_posix())
    return Source(root.resolve(), module, tuple(files))


def kept_source(folder: Path, digest: str) -> Source | None:
    """The copy that :meth:`Source.keep` made, where it is there and as it was."""
    home = folder / digest
    try:
        module, first = json.loads((home / _FIRST).read_text(encoding="utf-8"))
        names = sorted(p.relative_to(home).as_posix() for p in home.rglob("*.py"))
        found = Source(home.resolve(), module, (first, *(name for name in names if name != first)))
        return found if found.digest == digest else None
    except (OSError, ValueError):
        return None


def is_installed(path: Path) -> bool:
    """Whether a file belongs to Python or to an installed package."""
    homes = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    path = path.resolve()
    return "site-packages" in path.parts or any(path.is_relative_to(Path(home).resolve()) for home in homes if home)


def _root_of(path: Path) -> tuple[Path, str]:
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file() and root.name.isidentifier():
        root, parts = root.parent, [root.name, *parts]
    return root, ".".join(parts)


def _home_of(module: str) -> Path:
    """The folder from which a package is imported: this one, or where Python finds its beginning."""
    first = module.partition(".")[0]
    if _file_of(Path.cwd(), first) is not None or (Path.cwd() / first).is_dir():
        return Path.cwd()
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(first)
        if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
            path = Path(spec.origin)
            return path.parent.parent if path.name == "__init__.py" else path.parent
    return Path.cwd()


def _followed(root: Path, module: str) -> Iterator[Path]:
    """The files of a module and of everything that it imports from below ``root``."""
    waiting, seen = [*_beginnings(module)], set()
    while waiting:
        name = waiting.pop()
        path = _file_of(root, name)
        if path is None or path in seen or name.partition(".")[0] in sys.stdlib_module_names:
            continue
        seen.add(path)
        yield path
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # importing it will say so
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(tree):
            waiting += _imported(node, package)


def _imported(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [name for alias in node.names for name in _beginnings(alias.name)]
    if isinstance(node, ast.ImportFrom):
        parts = package.split(".") if package else []
        base = parts[: len(parts) - node.level + 1] if node.level else []
        base += node.module.split(".") if node.module else []
        return [name for alias in node.names for name in _beginnings(".".join([*base, alias.name]))]
    return []


def _beginnings(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _file_of(root: Path, name: str) -> Path | None:
    at = root.joinpath(*name.split("."))
    return next((p for p in (at / "__init__.py", at.with_name(f"{at.name}.py")) if p.is_file()), None)


def _dotted(name: str) -> str:
    parts = name.removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)

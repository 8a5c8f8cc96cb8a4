"""Imports go one way, ops <- blocks <- insertion, networks <- tasks <- training <- study <- cli: see docs/design.md."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lookfar

SRC = Path(lookfar.__file__).parent

# part -> parts that it may import, itself included; parts that have no row are helpers, see below
MAY_IMPORT = {
    "ops": {"ops"},
    "blocks": {"blocks", "ops"},
    "insertion": {"insertion", "cost", "blocks", "ops"},
    "weights": {"weights", "blocks", "ops"},
    "networks": {"networks", "insertion", "weights", "blocks", "ops"},
    "cost": {"cost", "blocks", "ops"},
    "check": {"check", "cost", "blocks", "ops"},
    "diagnostics": {"diagnostics", "insertion", "networks", "weights", "blocks", "ops"},
    "claims": {"claims", "study", "training", "diagnostics", "cost", "insertion", "blocks", "ops"},
    "data": {"data"},
    "tasks": {"tasks", "networks", "data", "weights", "blocks", "ops"},
    "training": {"training", "tasks", "data", "insertion", "networks", "weights", "blocks", "ops"},
    "use": {"use", "study", "training", "tasks", "data", "networks", "weights", "blocks", "ops"},
    "study": {
        *("study", "training", "tasks", "data", "diagnostics", "check", "cost", "weights", "networks", "insertion"),
        *("blocks", "ops"),
    },
    "insight": {
        *("insight", "use", "study", "training", "tasks", "data", "diagnostics", "cost", "weights", "networks"),
        *("insertion", "blocks", "ops"),
    },
    "scan": {
        *("scan", "study", "training", "tasks", "data", "diagnostics", "networks", "weights", "insertion", "blocks"),
        "ops",
    },
}
ANYTHING = {"cli", "explorer", "__init__", "__main__"}
FREE = {
    "_tables",
    "_options",
    "_modes",
    "_arrays",
    "_overview",
    "_warnings",
    "_notebooks",
    "_drawing",
}  # import nothing of ours but each other
HEAVY = {"timm", "torchvision", "lightning", "lightning_fabric", "scipy", "typer", "rich", "jinja2"}
NEVER = {
    "ops": HEAVY,
    "blocks": HEAVY,
    "insertion": {"timm", "torchvision"},
}


def parts_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all imports, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_file_is_in_its_room() -> None:
    assert {p.stem for p in SRC.glob("*.py")} <= {"__init__", "__main__", "cli", *FREE}


FILES = sorted(p for p in SRC.rglob("*.py") if parts_of(p) not in ANYTHING)


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(SRC)) for p in FILES])
def test_imports_follow_the_arrows(path: Path) -> None:
    part = parts_of(path)
    if part in FREE:
        allowed = FREE
    else:
        assert part in MAY_IMPORT, (
            f"{part} has no place in the direction of dependency: say in this test where it stands"
        )
        allowed = MAY_IMPORT[part] | FREE
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "lookfar" and rest and rest[0] != "__version__":
            assert rest[0] in allowed, f"{part} may not import {name}"
        assert top not in NEVER.get(part, ()), f"{part} may not import {top}"


def test_training_is_handed_its_task() -> None:
    """It knows what tasks have in common, none of them by name."""
    for path in (SRC / "training").glob("*.py"):
        of_tasks = {name for name in imported(path) if name.startswith("lookfar.tasks")}
        assert all(name.startswith("lookfar.tasks._base.") for name in of_tasks), (path, of_tasks)


def file_of(name: str) -> Path | None:
    """The file that an import of this dotted name reads: the longest beginning that is a module of ours."""
    parts = name.split(".")
    while parts[:1] == ["lookfar"]:
        at = SRC.joinpath(*parts[1:])
        for path in (at.with_suffix(".py"), at / "__init__.py"):
            if path.is_file() and path != SRC.with_suffix(".py"):
                return path
        parts.pop()
    return None


def circles(imports: dict[Path, set[Path]]) -> list[list[str]]:
    """Circles of a graph of files, one each way round: what is left when files without open imports are taken away."""
    left = {path: {to for to in targets if to != path} for path, targets in imports.items()}
    while free := [path for path, targets in left.items() if not targets & left.keys()]:
        for path in free:
            del left[path]
    found = []
    while left:
        way = [min(left)]
        while (to := min(left[way[-1]] & left.keys())) not in way:
            way.append(to)
        circle = way[way.index(to) :]
        found.append([str(path.relative_to(SRC)) for path in circle])
        for path in circle:
            del left[path]
        while free := [path for path, targets in left.items() if not targets & left.keys()]:
            for path in free:
                del left[path]
    return found


def test_no_file_imports_in_a_circle() -> None:
    """Imports inside functions and those for type checkers count too. The root names its parts without loading them."""
    files = [path for path in SRC.rglob("*.py") if path != SRC / "__init__.py"]
    imports = {path: {to for name in imported(path) if (to := file_of(name)) is not None} for path in files}
    assert sum(map(len, imports.values())) > len(files)  # the graph is read at all
    assert circles(imports) == []


def test_circles_are_found() -> None:
    a, b, c, d = (SRC / f"{name}.py" for name in "abcd")
    assert circles({a: {b}, b: {c}, c: {b}, d: set()}) == [["b.py", "c.py"]]
    assert circles({a: {b, c}, b: {d}, c: {d}, d: set()}) == []

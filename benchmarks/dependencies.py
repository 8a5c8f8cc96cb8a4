"""How much room each requirement takes, with all that it brings along and those above it have not.

python benchmarks/dependencies.py        # of the environment in which it runs, as a table of Markdown
"""

import re
from importlib.metadata import PackageNotFoundError, distribution

from lookfar._tables import markdown_table


def requirements(name: str) -> list[str]:
    """The names of what a package requires without an extra, if it is installed."""
    try:
        found = distribution(name).requires or []
    except PackageNotFoundError:
        return []
    return [re.split(r"[^\w.-]", one, maxsplit=1)[0] for one in found if "extra ==" not in one]


def megabytes(name: str) -> float:
    """Of the installed files of one package."""
    try:
        files = distribution(name).files or []
    except PackageNotFoundError:  # required on other systems alone
        return 0.0
    return sum(path.stat().st_size for file in files if (path := file.locate()).is_file()) / 1e6


def main() -> None:
    counted: set[str] = set()
    rows: list[tuple[str, float]] = []
    first = ("torch", "torchvision", "numpy")  # most others want one of them
    for name in sorted(requirements("lookfar"), key=lambda one: (one not in first, one)):
        waiting, total = [name], 0.0
        while waiting:
            one = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
            if one not in counted:
                counted.add(one)
                total += megabytes(one)
                waiting += requirements(one)
        rows.append((name, total))
    print(markdown_table(["requirement", "adds, MB"], [*rows, ("together", sum(size for _, size in rows))]))


if __name__ == "__main__":
    main()

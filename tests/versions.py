"""The versions of torch that tests are run on.

python tests/versions.py              # those of this environment: `make test` and `make test-oldest` keep them
python tests/versions.py OLD NEW      # writes what they kept into the README: `make versions`
"""

import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
LINE = re.compile(
    r"Ops, blocks, insertion and golden vectors are tested on (torch .+?),\s+everything\s+on (torch .+?)\.\n", re.DOTALL
)


def here() -> str:
    python = ".".join(platform.python_version_tuple()[:2])
    torch, torchvision = (version(name).partition("+")[0] for name in ("torch", "torchvision"))
    return f"torch {torch} (torchvision {torchvision}, Python {python})"


def main(kept: list[str]) -> None:
    if not kept:
        print(here())
        return
    for path in kept:
        if not Path(path).is_file():
            sys.exit(f"no {path}: run `make test` and `make test-oldest` first, it is written when they pass")
    oldest, newest = (Path(path).read_text(encoding="utf-8").strip() for path in kept)
    text = README.read_text(encoding="utf-8")
    if not LINE.search(text):
        sys.exit("the README has no line of the versions")
    line = f"Ops, blocks, insertion and golden vectors are tested on {oldest},\neverything on {newest}.\n"
    README.write_text(LINE.sub(line, text), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

"""What a study was made with: the machine, the commit of lookfar's source, and its paths as others may read them."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import lookfar


def machine() -> str:
    """Processor, memory and GPUs, as far as they can be known."""
    parts = [_processor() or platform.processor() or platform.machine()]
    with contextlib.suppress(AttributeError, OSError, ValueError):
        parts.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB memory")
    import torch

    if torch.cuda.is_available():
        parts += sorted({torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())})
    return ", ".join(part for part in parts if part)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return ""


def commit() -> str | None:
    """The commit of a checkout that lookfar runs from, marked where files were changed; None for an installed one."""
    package = Path(lookfar.__file__).resolve().parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        top = _git(package, "rev-parse", "--show-toplevel")
        if (Path(top) / "src" / "lookfar").resolve() != package:
            return None  # a checkout of something else, such as the user's own with an environment in it
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", ".")
        return _git(package, "rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def readable_paths(given: Iterable[str | None], base: Path | None = None) -> dict[str, str]:
    """Absolute paths among what was given, and the shorter ones that a report shows to others.

    Args:
        given: Entries of a plan: paths, perhaps after a word and a colon, or something else.
        base: The folder that they become relative to; by default the working directory.

    >>> readable_paths(["camvid:/home/ann/CamVid", "crops", "/home/ann/eyes/crops/val", None], Path("/home/ann/eyes"))
    {'/home/ann/CamVid': '../CamVid', '/home/ann/eyes/crops/val': 'crops/val'}
    """
    base = base or Path.cwd()
    found = {}
    for entry in given:
        path = Path((entry or "").partition(":")[2] or entry or "")
        if not path.is_absolute() or path == Path(path.anchor):
            continue
        try:
            near = Path(os.path.relpath(path, base))
        except ValueError:  # on another drive
            near = path
        far = near.parts[:3] == ("..",) * 3 or near.is_absolute()
        found[str(path)] = Path("…", *path.parts[1:][-2:]).as_posix() if far else near.as_posix()
    return found


def readable(text: str, paths: Mapping[str, str]) -> str:
    """The text with these paths, and those of files within, as :func:`readable_paths` shortens them."""
    for path in sorted(paths, key=len, reverse=True):
        text = text.replace(path, paths[path])
    return text

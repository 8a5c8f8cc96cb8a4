"""The user's own files that a study was made with: their hashes in its plan, copies of them in its folder.

The copies are read where a file was edited since: trials that are still to come are those of the plan, and trained
weights go into the code that they were trained in.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lookfar.blocks._sources import Source

FOLDER = "sources"


def hashes(texts: Sequence[str]) -> tuple[str, ...]:
    """``my.py 0f3a...`` of each file behind blocks and hosts that are the user's own.

    Raises:
        FileNotFoundError: One is not there.
    """
    from lookfar.blocks._importing import no_file
    from lookfar.blocks._sources import source_of

    found = {}
    for where in places(texts):
        if where.endswith(".py") and not Path(where).is_file():
            raise FileNotFoundError(no_file(Path(where)))
        source = source_of(where)
        if source is not None:
            found[where] = source.digest
    return tuple(f"{where} {digest}" for where, digest in found.items())


def places(texts: Sequence[str]) -> list[str]:
    """The files and packages of those texts that name something of the user's own."""
    from lookfar.blocks._own import split_address

    parts = [split_address(text) for text in texts]
    return list(dict.fromkeys(part[0] for part in parts if part))


def keep(sources: Sequence[str], study: Path) -> None:
    """Copy the files into a study's folder."""
    from lookfar.blocks._sources import source_of

    for where, digest in _pairs(sources).items():
        source = source_of(where)
        if source is not None and source.digest == digest:
            source.keep(study / FOLDER)


def source_for(sources: Sequence[str], where: str, study: Path | None) -> "Source | None":
    """The file as it was when the study began, or its copy; None for what is imported as it is installed.

    Args:
        sources: Of the plan.
        where: ``my.py`` or ``package.module``.
        study: The folder with the copies; None takes the file as it is.

    Raises:
        ValueError: The file was edited, and there is no copy.
    """
    from lookfar.blocks._sources import kept_source, source_of

    digest = _pairs(sources).get(where)
    if digest is None or study is None:
        return None
    with contextlib.suppress(FileNotFoundError):
        now = source_of(where)
        if now is not None and now.digest == digest:
            return now
    kept = kept_source(study / FOLDER, digest)
    if kept is None:
        raise ValueError(f"{where} was edited since the study began, and its copy in {study / FOLDER} is gone")
    return kept


def edited(trained: Mapping[str, Any], used: Sequence[str | None], sources: Sequence[str]) -> list[str]:
    """What was edited since a trial was trained: ``my.py: edited since``.

    Args:
        trained: The plan that the trial was trained with.
        used: What the trial was made of, as plans write it: candidate, host, task.
        sources: Of the plan that is asked for.
    """
    then, now = _pairs(trained.get("sources", ())), _pairs(sources)
    files = places([text or "" for text in used])
    return [
        f"{where}: edited since"
        for where in files
        if None not in (a := then.get(where), b := now.get(where)) and a != b
    ]


def _pairs(sources: Sequence[str]) -> dict[str, str]:
    return {where: digest for where, _, digest in (text.rpartition(" ") for text in sources)}

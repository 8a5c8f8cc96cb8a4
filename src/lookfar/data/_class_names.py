"""What classes are called: as their folders, or as ``classes.txt`` says."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lookfar.data._matching import same_name
from lookfar.data._words import cut, listed, shown
from lookfar.data.folder import text_lines


def rename_classes(folders: Sequence[str], root: Path) -> tuple[list[str], str]:
    """Names of the classes, and where they come from.

    ``classes.txt`` has a line a class: the folder and its name (``n01440764 tench``), or names alone, in the order of
    the folders.

    Args:
        folders: Of the classes, in the order of the labels.
        root: Of the data set.

    Raises:
        ValueError: The lines do not fit the folders, or it is not clear how.
    """
    path = root / "classes.txt"
    lines = text_lines(path)
    if lines is None:
        return [shown(name) for name in folders], "a folder each"
    where = f"{cut(shown(str(root)), 60)}/classes.txt"
    if len(lines) != len(folders):
        raise ValueError(f"{where} names {len(lines)} classes; there are {len(folders)} class folders")
    wanted = [same_name(name) for name in folders]
    by_folder = {
        name: line for line in map(same_name, lines) for name in [_folder_of(line, wanted)] if name is not None
    }
    if len(by_folder) == len(folders):
        renamed = [by_folder[name][len(name) :].strip(" \t,;:") or name for name in wanted]
        if all(by_folder[name] == name for name in wanted) and list(by_folder) != wanted:
            raise ValueError(
                f"{where} has the folders in another order than ImageFolder, which numbers them: "
                f"{listed([*map(shown, folders)], 50)}. Want lines `folder name`, or no such file"
            )
    else:
        renamed = list(lines)
        if all(name.isdecimal() for name in wanted) and sorted(wanted, key=int) != wanted:
            raise ValueError(
                f"{where} names classes whose folders are numbers, of which ImageFolder's order is "
                f"{listed(wanted, 40)}. Want lines `folder name`, as `{folders[1]} {cut(shown(lines[1]), 20)}`"
            )
    names = [shown(name) for name in renamed]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise ValueError(f"{where} names {listed(twice, 60)} twice; want a name of its own for each class")
    return names, "names from classes.txt"


def _folder_of(line: str, folders: Sequence[str]) -> str | None:
    """The folder that a line begins with; the longest, since names may hold blanks."""
    found = [name for name in folders if line == name or (line.startswith(name) and line[len(name)] in " \t,;:")]
    return max(found, key=len, default=None)

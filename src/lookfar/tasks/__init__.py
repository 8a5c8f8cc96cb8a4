"""Tasks that blocks are compared on: what is learned, how it is judged, what a report calls it.

A task is one file here and a row in ``TASKS``, or a class of the user's own.
"""

from typing import TYPE_CHECKING, Any

from lookfar.tasks._base import Host, Judged, Task, Words
from lookfar.tasks.segmentation import Segmentation

if TYPE_CHECKING:
    from lookfar.blocks._sources import Source

__all__ = ["TASKS", "Host", "Judged", "Segmentation", "Task", "Words", "find_task"]

TASKS: dict[str, type[Task]] = {task.name: task for task in (Segmentation,)}


def find_task(text: str, source: "Source | None" = None) -> Task:
    """A task by its name, or of the user's own: ``my.py:Regression``.

    Args:
        text: A name, or where a subclass of :class:`Task` stands, with options in brackets where it takes any.
        source: A copy of the user's file to import instead.

    Raises:
        ValueError: No such task; no task stands there.
        FileNotFoundError: No such file.

    >>> find_task("segmentation").metric
    'miou'
    """
    if text in TASKS:
        return TASKS[text]()
    from lookfar.blocks._importing import import_own  # load torch
    from lookfar.blocks._own import parse_address

    address = parse_address(text)
    if address is None:
        raise ValueError(f"no task is called {text!r}: want {' or '.join(TASKS)}, or FILE.py:CLASS of your own")
    found: Any = import_own(address.where, source)
    for part in address.name.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ValueError(f"{address} is no task: want a class that inherits from lookfar.tasks.Task")
    if missing := [what for what in ("metric", "words") if not hasattr(found, what)]:
        raise ValueError(f"{address} does not say {' and '.join(missing)}: lookfar.tasks.Task says what these are")
    return found(**address.options)

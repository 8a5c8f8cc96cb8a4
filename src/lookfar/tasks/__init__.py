"""Tasks that blocks are compared on: what is learned, how it is judged, what a report calls it.

A task is one file here and a row in ``TASKS``, or a class of the user's own.
"""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lookfar.tasks._base import Host, Judged, Task, Words
from lookfar.tasks.classification import Classification
from lookfar.tasks.segmentation import Segmentation

if TYPE_CHECKING:
    from lookfar.blocks._sources import Source

__all__ = ["TASKS", "Classification", "Host", "Judged", "Segmentation", "Task", "Words", "find_task", "task_for"]

TASKS: dict[str, type[Task]] = {task.name: task for task in (Segmentation, Classification)}


def task_for(target: str) -> str:
    """The name of the task for data in which so much is labelled, ``mask`` or ``class``.

    >>> task_for("class")
    'classification'
    """
    return next(name for name, task in TASKS.items() if task.target == target)


def find_task(text: str, source: "Source | None" = None, **options: Any) -> Task:
    """A task by its name, or of the user's own: ``my.py:Regression``.

    Args:
        text: A name, or where a subclass of :class:`Task` stands, with options in brackets where it takes any.
        source: A copy of the user's file to import instead.
        **options: Further ones, such as ``metric`` and ``label_smoothing`` of a classification.

    Raises:
        ValueError: No such task; no task stands there; it has no such option.
        FileNotFoundError: No such file.

    >>> find_task("segmentation").metric
    'miou'
    """
    if text in TASKS:
        return _made(TASKS[text], options)
    from lookfar.blocks._importing import import_own  # load torch
    from lookfar.blocks._own import parse_address

    address = parse_address(text)
    if address is None:
        raise ValueError(f"no task is called {text!r}: want {' or '.join(TASKS)}, or FILE.py:CLASS of your own")
    found: Any = import_own(address.where, source)
    for part in address.name.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ValueError(f"{address} is not a task: want a class that inherits from lookfar.tasks.Task")
    if missing := [what for what in ("metric", "words") if not hasattr(found, what)]:
        raise ValueError(f"{address} does not say {' and '.join(missing)}: lookfar.tasks.Task says what these are")
    return _made(found, {**address.options, **options})


def _made(task: type[Task], options: Mapping[str, Any]) -> Task:
    taken = inspect.signature(task).parameters
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    for name in options:
        if name not in taken and not free:
            have = [other for other, of in TASKS.items() if name in inspect.signature(of).parameters]
            hint = f": it is for {' and '.join(have)}" if have else ""
            raise ValueError(f"{task.name} has no option {name!r}{hint}")
    return task(**options)

"""Tasks that blocks are compared on: what is learned, how it is judged, what a report calls it.

A task is one file here and a row in ``TASKS``, or a class of the user's own.
"""

from lookfar.tasks._base import Judged, Task, Words
from lookfar.tasks.segmentation import Segmentation

__all__ = ["TASKS", "Judged", "Segmentation", "Task", "Words", "find_task"]

TASKS: dict[str, type[Task]] = {task.name: task for task in (Segmentation,)}


def find_task(text: str) -> Task:
    """A task by its name.

    Raises:
        ValueError: No such task.

    >>> find_task("segmentation").metric
    'miou'
    """
    if text not in TASKS:
        raise ValueError(f"no task is called {text!r}: want {' or '.join(TASKS)}")
    return TASKS[text]()

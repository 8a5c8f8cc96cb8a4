"""A study knows no score by name: whatever task it is of, its words come from the task."""

import re
from pathlib import Path

import pytest

import lookfar
from lookfar.tasks import TASKS

FOLDER = Path(lookfar.__file__).parent / "study"
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".py", ".j2", ".js", ".css"))
NAMES = sorted({name for task in TASKS.values() for name in (task.metric, task.words.score, task.words.of_class)})


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_no_file_of_studies_names_a_score(path: Path) -> None:
    said = path.read_text(encoding="utf-8")
    found = re.findall(rf"\b(?:{'|'.join(map(re.escape, NAMES))})\b", said, flags=re.IGNORECASE)
    assert not found, f"{path.name} says {', '.join(sorted(set(found)))}: that is for the words of a task"

"""Names that are no UTF-8 cost neither a report nor a line on the terminal."""

import os
import subprocess
import sys

from lookfar.study import Plan
from lookfar.study._files import write_text
from lookfar.study.plan import default_folder


def test_text_with_stray_bytes_is_written(tmp_path):
    write_text(tmp_path / "report.html", "<p>" + os.fsdecode(b"caf\xe9") + "</p>")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "<p>caf\\udce9</p>"


def test_a_path_with_stray_bytes_ends_in_a_message(tmp_path):
    path = os.fsencode(tmp_path / "nothing") + b"\xe9"
    command = [sys.executable, "-m", "lookfar.cli", "report", path]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    ended = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert ended.returncode in (1, 2)
    assert b"\\udce9" in ended.stderr
    assert b"Traceback" not in ended.stderr


def test_a_study_of_a_folder_with_stray_bytes_has_a_folder_and_a_plan(tmp_path):
    plan = Plan(os.fsdecode(b"pictures/donn\xe9es"), ("nonlocal",))
    folder = default_folder(plan.data)
    assert folder.name.encode("ascii")
    assert folder != default_folder(os.fsdecode(b"pictures/donn\xe8es"))
    plan.save(tmp_path / "study.yaml")
    assert Plan.load(tmp_path / "study.yaml") == plan

"""Names that are no UTF-8 cost neither a report nor a line on the terminal."""

import os
import subprocess
import sys

from lookfar.study._files import write_text


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

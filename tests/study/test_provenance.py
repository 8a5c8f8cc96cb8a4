"""Machine, commit and paths: what a report says about where it was made."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from study.fake_study import make_fake_study

from lookfar.study import provenance
from lookfar.study.report import render
from lookfar.study.results import load


def test_far_paths_keep_two_names():
    found = provenance.readable_paths(["/a/b/c/data/crops", "/x", "C", ""], Path("/home/me/work"))
    assert found == {"/a/b/c/data/crops": "…/data/crops", "/x": "…/x"}


def test_absolute_paths_do_not_reach_the_report(tmp_path):
    where = "/home/someone/secret/data/crops"
    folder = make_fake_study(tmp_path / "s", data=where, blocks=("nonlocal",), images=2, size=(32, 32), grid=(4, 4))
    path = folder / "environment.json"
    environment = json.loads(path.read_text())
    environment |= {"paths": {where: "crops"}, "machine": "A Processor", "commit": "0123456789ab"}
    path.write_text(json.dumps(environment))
    text = render(load(folder))
    assert "someone" not in text
    assert "--data crops" in text
    assert "A Processor" in text
    assert "0123456789ab" in text


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not there")
def test_the_commit_is_that_of_lookfar_alone(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    package = tmp_path / "src" / "lookfar"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(provenance.lookfar, "__file__", str(package / "__init__.py"))
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = provenance.commit()
    assert commit is not None
    assert len(commit) == 12
    (package / "__init__.py").write_text("changed")
    assert provenance.commit() == f"{commit} with changes"
    # installed into an environment that lies in another project
    other = tmp_path / ".venv" / "lookfar"
    other.mkdir(parents=True)
    monkeypatch.setattr(provenance.lookfar, "__file__", str(other / "__init__.py"))
    assert provenance.commit() is None

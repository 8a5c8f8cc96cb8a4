"""A stranger's module in a process of its own: what ends, hangs or crashes it is broken, and the rest is asked."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lookfar.check import apart, check_apart
from lookfar.check import run as check_run

FILE = Path(__file__).with_name("faulty.py")

PRETENDS = textwrap.dedent(
    """
    import json, os, sys, time
    request = json.loads(sys.stdin.readline())
    scene = json.loads(open(sys.argv[1]).read())
    def say(word=request["word"], **values):
        print(json.dumps({"word": word, **values}), flush=True)
    def do(what):
        if what == "hang":
            time.sleep(60)
        if what == "crash":
            os.abort()
        if what == "refuse":
            say(error=["TypeError", "Mine has no option"])
            sys.exit()
        if what == "exit":
            print("last words", file=sys.stderr)
            sys.exit(int(3))
    do(scene.get("loading"))
    say(target="Mine(4)", size=[16, 16])
    say(word="another", row={"promise": "images", "title": "", "outcome": {"status": "holds"}})
    print("no json", flush=True)
    for name in ["runs", *request["only"]]:
        say(asking=name, title=name)
        do(scene.get(name))
        say(row={"promise": name, "title": name, "outcome": {"status": "holds", "detail": str(request["hangs"])}})
        do(scene.get("after " + name))
    say(end=True)
    """
)


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """Children that do at a promise what they are told to: (status, detail) of each row of three promises."""
    script, file = tmp_path / "child.py", tmp_path / "scene.json"
    script.write_text(PRETENDS)
    monkeypatch.setattr(apart, "CHILD", (sys.executable, str(script), str(file)))
    monkeypatch.setattr(apart, "GRACE", 0.2)
    for name in ("CALLS", "FIRST", "SECONDS"):
        monkeypatch.setattr(check_run, name, 0.5)

    def play(**does):
        file.write_text(json.dumps({key.replace("_", " "): what for key, what in does.items()}))
        report = check_apart("my.py:Mine", 4, only=["images", "input", "growth"])
        assert report.target == "Mine(4)"
        return {row.promise: (row.outcome.status, row.outcome.detail) for row in report.rows}

    return play


def test_a_promise_at_which_the_process_ends_is_broken_and_the_others_are_asked(scene):
    assert scene() == dict.fromkeys(["images", "input", "growth"], ("holds", "False"))
    found = scene(input="exit")
    assert found["input"] == ("broken", "its process ended with status 3, as os._exit(3) does (last words)")
    assert found["images"] == found["growth"] == ("holds", "False")
    found = scene(images="crash", input="crash")
    assert found["images"] == found["input"] == ("broken", "its process was killed by SIGABRT")
    assert found["growth"] == ("holds", "False")


def test_time_that_is_up_is_a_fault_where_it_is_not_the_question(scene):
    found = scene(images="hang", growth="hang")
    assert found["images"] == ("broken", "had not ended after 0.5 s")
    assert found["input"] == ("holds", "True")  # the next child knows, and gives less time
    assert found["growth"] == ("not asked", "had not ended after 0.5 s")


def test_what_ends_between_two_promises_comes_to_an_end(scene):
    assert [status for status, _ in scene(after_runs="exit").values()] == ["broken"] * 3


def test_what_ends_the_first_call_does_not_run(scene):
    found = scene(runs="exit")
    assert found["runs"][0] == "broken"
    assert {found[name] for name in ("images", "input", "growth")} == {("not asked", "it does not run")}


def test_what_ends_the_import_cannot_be_loaded(scene, monkeypatch):
    with pytest.raises(ValueError, match=r"cannot load my.py:Mine: its process ended with status 3"):
        scene(loading="exit")
    monkeypatch.setattr(apart, "LOADING", 0.5)
    with pytest.raises(ValueError, match=r"cannot load my.py:Mine: had not ended after 0.5 s"):
        scene(loading="hang")


def test_mistakes_come_back_as_what_they_are(scene):
    with pytest.raises(TypeError, match="Mine has no option"):
        scene(loading="refuse")


def test_the_command_survives_what_it_asks():
    only = ["--only", "input", "--only", "identity"]
    command = [sys.executable, "-m", "lookfar.cli", "check", f"{FILE}:ExitsInTraining", "--channels", "4", "--json"]
    ended = subprocess.run([*command, *only], capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")
    found = {row["promise"]: (row["status"], row["detail"]) for row in json.loads(ended.stdout)["promises"]}
    assert found["input"] == ("broken", "its process ended with status 0, as os._exit(0) does")
    assert found["identity"][0] == "fact"

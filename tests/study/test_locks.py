"""Locks that ask of a file system O_EXCL alone: several processes at once, holders that died, machines that are far."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from lookfar.study import _locks
from lookfar.study._locks import Owner, Taken, locked, machine, owner_of

FAR = Owner("0" * 32, "another machine", "node7", 12, "99")

# adds up to a number that is read, waited with and written: two at once would lose some of it
ADDS = """
import sys, time
from pathlib import Path
from lookfar.study._locks import locked
folder = Path(sys.argv[1])
for _ in range(15):
    with locked(folder / ".lock", wait=lambda owner, seconds: True):
        number = int((folder / "number").read_text())
        time.sleep(0.002)
        (folder / "number").write_text(str(number + 1))
"""
HOLDS = """
import sys, time
from pathlib import Path
from lookfar.study._locks import locked
with locked(Path(sys.argv[1]) / ".lock", doing="waits"):
    print(1, flush=True)
    time.sleep(300)
"""
NO_FLOCK = """
import fcntl
def flock(*_):
    raise OSError(95, "Operation not supported")
fcntl.flock = fcntl.lockf = flock
"""


def leave(path, owner):
    """A lock as somebody else holds it."""
    path.write_text(json.dumps(asdict(owner)))


def dead():
    """This machine's process that is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return Owner("1" * 32, machine(), "here", process.pid, "1")


def start(code, folder):
    return subprocess.Popen([sys.executable, "-c", NO_FLOCK + code, str(folder)], stdout=subprocess.PIPE)


def test_several_processes_take_turns_where_nothing_can_be_flocked(tmp_path):
    (tmp_path / "number").write_text("0")
    leave(tmp_path / ".lock", dead())  # which all of them find at once
    processes = [start(ADDS, tmp_path) for _ in range(5)]
    assert [process.wait(120) for process in processes] == [0] * 5
    assert (tmp_path / "number").read_text() == "75"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["number"]
    for process in processes:
        process.stdout.close()


def test_who_holds_it_is_said_until_he_is_killed(tmp_path):
    path = tmp_path / "study" / ".lock"
    process = start(HOLDS, path.parent)
    process.stdout.readline()
    with pytest.raises(Taken, match=f"held by process {process.pid}$") as taken, locked(path):
        pass
    assert taken.value.owner.doing == "waits"
    process.send_signal(signal.SIGSTOP)  # asleep is not dead
    os.utime(path, (0, 0))
    with pytest.raises(Taken), locked(path):
        pass
    process.kill()
    with locked(path, wait=lambda owner, seconds: seconds < 60):  # before anybody has asked for its exit status
        assert owner_of(path).process == os.getpid()
    assert owner_of(path) is None
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("far", [True, False])
def test_another_machine_that_gives_signs_of_life_keeps_its_lock(tmp_path, monkeypatch, far):
    path = tmp_path / ".lock"
    monkeypatch.setattr(_locks, "WATCH", 0.3)
    monkeypatch.setattr(_locks.time, "time", lambda: 1e10)  # no clock of ours counts
    # a process of this machine, where the system does not say when it began, is judged likewise
    owner = FAR if far else Owner("2" * 32, machine(), "here", os.getpid(), "")
    leave(path, owner)
    with pytest.raises(Taken, match=r"held by process 12 on node7$" if far else "held by process"), locked(path):
        pass
    os.utime(path, (1, 1))
    beat = threading.Timer(0.1, os.utime, [path])  # a server was away; now it is back
    beat.start()
    with pytest.raises(Taken), locked(path):
        pass
    beat.join()
    os.utime(path, (1, 1))
    with locked(path):
        assert owner_of(path).process == os.getpid()


def test_a_number_that_came_again_is_another_process(tmp_path):
    path = tmp_path / ".lock"
    with locked(path):
        mine = owner_of(path)
    if not mine.born:
        pytest.skip("this system does not say when a process began")
    leave(path, replace(mine, token="3", born="1"))
    with locked(path):
        assert owner_of(path).born == mine.born


def test_a_lock_of_an_earlier_version_is_let_go_with_its_process(tmp_path):
    path = tmp_path / ".lock"
    path.write_text(str(dead().process))
    with locked(path):
        pass


def test_whoever_has_lost_his_lock_hears_of_it_and_leaves_the_new_one(tmp_path, monkeypatch):
    monkeypatch.setattr(_locks, "BEAT", 0.02)
    path, heard = tmp_path / ".lock", threading.Event()
    with locked(path, lost=heard.set):
        os.utime(path, (1, 1))
        end = time.monotonic() + 20
        while path.stat().st_mtime == 1:
            assert time.monotonic() < end, "no sign of life"
            time.sleep(0.01)
        assert not heard.is_set()
        leave(path, FAR)
        assert heard.wait(20)
    assert owner_of(path) == FAR


def test_one_of_two_that_find_a_lock_abandoned_removes_it(tmp_path):
    path = tmp_path / ".lock"
    leave(path, FAR)
    assert _locks._remove(path, replace(FAR, token="4"))  # it is another one by now
    assert path.exists()
    (tmp_path / ".lock.broken").touch()  # somebody is about to
    assert not _locks._remove(path, FAR)
    assert path.exists()
    os.utime(tmp_path / ".lock.broken", (1, 1))  # and died over it
    assert not _locks._remove(path, FAR)
    assert _locks._remove(path, FAR)
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_a_study_uses_flock():
    code = "import sys; sys.modules['fcntl'] = None; import lookfar.study, lookfar.study.worker"
    subprocess.run([sys.executable, "-c", code], check=True)

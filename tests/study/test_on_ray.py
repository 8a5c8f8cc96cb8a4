"""Trials on a Ray cluster of three nodes on this machine: the study is killed, then a node, and no bit is another."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from image_trees import SIZE, make_tree, noise

from lookfar.study import Plan, load
from lookfar.study._locks import owner_of
from lookfar.study.plan import trial_folder

# Ray itself is imported where its environment is set
if find_spec("ray") is None:
    pytest.skip("Ray is not installed: pip install 'lookfar[distributed]'", allow_module_level=True)

STEPS, EVERY = 200, 20


@pytest.fixture(scope="module")
def environment():
    """Of Ray, so that nothing of it is seen from outside, and of all that is started on it."""
    from lookfar.study.on_ray import QUIET

    here = {**QUIET, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in here.items():
            patch.setenv(name, value)
        yield os.environ.copy()


@pytest.fixture
def cluster(environment):
    """A head without room for trials, and two nodes with room for one each."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [started.add_node(num_cpus=1, wait=False) for _ in range(2)]
    started.wait_for_nodes()
    yield started, nodes
    started.shutdown()


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, "it has ended too early"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    return found


def steps_of(folder):
    """Every step that a trial has recorded."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(found[1]) for line in lines if (found := re.search(r'"step": (\d+), "loss"', line))]


def further(trials, before):
    """A trial that has got further than before by more than what lies between two checkpoints."""
    return next((t for t in trials if max(steps_of(t), default=0) > before.get(t, 0) + EVERY), None)


def raylet(node):
    return node.all_processes["raylet"][0].process.pid


def ancestors(process):
    """Numbers of the processes that a process descends from."""
    found = []
    while process > 1:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(process)
    return found


@pytest.mark.slow
def test_killed_study_and_killed_node(cluster, environment, tmp_path):
    started, nodes = cluster
    masks = [noise(n, *SIZE, top=3) for n in range(6)]
    data = make_tree(tmp_path / "photos", masks[:4], val=masks[4:], classes=["wall", "floor", "door"])
    plan = tmp_path / "plan.yaml"
    Plan(
        str(data), ("squeeze_excitation",), host="small", steps=STEPS, seeds=1, batch_size=2, accelerator="cpu",
        log_every=1, checkpoint_every=EVERY, eval_every=STEPS,
    ).save(plan)  # fmt: skip
    study = [sys.executable, "-m", "lookfar.cli", "study", str(plan), "--out"]
    pool, out = tmp_path / "pool", tmp_path / "ray"
    on_ray = [*study, str(out), "--on", f"ray:{started.address}"]
    trials = [trial_folder(out, name, 0) for name in ("baseline", "control", "squeeze_excitation")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}

    with subprocess.Popen(on_ray, **pipes) as first:
        wait_for(lambda: further(trials, {}), first)
        first.kill()
    before = {t: max(steps_of(t), default=0) for t in trials}
    kept = {t: max((int(path.name[5:]) for path in t.glob("step-*")), default=0) for t in trials}
    assert all(0 <= before[t] - kept[t] <= EVERY for t in trials)  # so much is lost, and no more
    print("study killed: steps lost of each trial:", *(before[t] - kept[t] for t in trials))

    with subprocess.Popen(on_ray, **pipes) as second:
        trial = wait_for(lambda: further(trials, before), second)
        process = owner_of(trial / ".lock").process
        above = ancestors(process)
        (node,) = (node for node in nodes if raylet(node) in above)
        for one in (above[0], process):  # with a machine all its processes end at once, Ray's one above the trial too
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        started.remove_node(node, allow_graceful=False)
        said, _ = second.communicate(timeout=300)
    assert second.returncode == 0, said
    lost = re.search(rf"{trial.parent.name} seed 0: its machine is gone at step (\d+), .* from step (\d+)", said)
    assert lost, said
    assert 0 <= int(lost[1]) - int(lost[2]) <= EVERY
    print("node killed: steps lost:", int(lost[1]) - int(lost[2]))
    assert said.count(f"{STEPS} steps   mIoU") == 3
    subprocess.run([*study, str(pool), "--workers", "2"], check=True, capture_output=True, timeout=300)
    assert load(out).complete
    for folder in trials:
        other = pool / folder.relative_to(out)
        assert steps_of(folder) == list(range(1, STEPS + 1))  # none is there twice
        assert (folder / "final.safetensors").read_bytes() == (other / "final.safetensors").read_bytes()
        with np.load(folder / "confusion.npz") as a, np.load(other / "confusion.npz") as b:
            assert np.array_equal(a["confusion"], b["confusion"])
        assert json.loads((folder / "config.json").read_text()) == json.loads((other / "config.json").read_text())
    written = {t: (t / "result.json").stat().st_mtime_ns for t in trials}
    again = subprocess.run(on_ray, check=True, **{k: v for k, v in pipes.items() if k != "stderr"}, timeout=300)
    assert "all 3 trials are there" in again.stdout
    assert written == {t: (t / "result.json").stat().st_mtime_ns for t in trials}

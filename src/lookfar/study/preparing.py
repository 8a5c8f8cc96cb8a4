"""A study's folder before its first step: the plan tried and written down, what a trial needs put into its folder."""

import contextlib
import errno
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookfar.study._files import leftovers, read_if_whole, sweep, write_json
from lookfar.study._locks import PREPARES, Owner, Taken, locked
from lookfar.study.continuing import asked_of_data, check_same, grow, kept_plan, moved
from lookfar.study.mending import WEIGHTS, read_state, restore_configs
from lookfar.study.plan import Plan, trial_folder
from lookfar.study.processes import RunningTrial, cores
from lookfar.study.progress import Board
from lookfar.study.provenance import commit, machine, readable_paths
from lookfar.study.sources import keep as keep_sources
from lookfar.study.words import join

if TYPE_CHECKING:
    from lookfar.study.preflight import ReadyPlan
    from lookfar.tasks import Task


@contextlib.contextmanager
def in_use(
    folder: Path,
    *,
    doing: str = "",
    wait: Callable[[Owner, float], bool] = lambda owner, seconds: False,
    lost: Callable[[], object] | None = None,
) -> Iterator[None]:
    """Hold a study's folder. Folders that are made for it go again where nothing comes to lie in them.

    Raises:
        ValueError: Somebody else holds it.
        NotADirectoryError: A file lies there.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(errno.ENOTDIR, "a file, and a study needs a folder", str(folder)) from None
    try:
        with locked(folder / ".lock", doing=doing, wait=wait, lost=lost):
            yield
    except Taken as taken:
        raise ValueError(f"{folder} is being run ({taken.owner}): wait for it, or give another --out") from None
    finally:
        with contextlib.suppress(OSError):
            for path in new:
                path.rmdir()


def prepare(plan: Plan, folder: Path, board: Board) -> "ReadyPlan":
    """Try a plan, compare it with what the folder holds, and write it down there; for whoever holds the folder.

    Raises:
        ValueError: The plan cannot work, or differs from the folder's.
        FileNotFoundError: Data, or weights, that are not there.
    """
    from lookfar.study.preflight import preflight

    _check_there(plan, folder)
    restored = restore_configs(folder)
    plan, controls, notes = grow(plan.resolved(), folder)
    for line in (*restored, *notes):
        board.note(line)
    check_same(plan, folder)  # said before the long wait
    with board.waiting("reading the data, building every candidate once"):
        ready = preflight(plan, board.note, controls)
    check_same(ready.plan, folder, ready.made_of, data=ready.data)
    sweep(folder)
    write_json(folder / "data.json", {**ready.data, "asked": asked_of_data(ready.plan)})
    ready.plan.save(folder / "study.yaml")
    keep_sources(ready.plan.sources, folder)
    return ready


def _check_there(plan: Plan, folder: Path) -> None:
    """Raise a FileNotFoundError for data that are not there; where the study had them, it says how to go on."""
    from lookfar.data import target_of

    try:
        target_of(plan.data)
    except FileNotFoundError:
        kept = kept_plan(folder)
        if kept is None or kept.data != plan.data:
            raise
        raise moved(plan.data, folder) from None


def trials_of(plan: Plan, folder: Path) -> list[RunningTrial]:
    """All trials of a plan, in its order."""
    total = len(plan.trials)
    return [
        RunningTrial(candidate, seed, trial_folder(folder, candidate, seed), number, f"{number}/{total}")
        for number, (candidate, seed) in enumerate(plan.trials, 1)
    ]


def missing_of(trials: Sequence[RunningTrial], task: "Task", board: Board) -> list[RunningTrial]:
    """Those that are not done, or whose files are damaged; says so of the latter."""
    missing = []
    for trial in trials:
        if leftovers(trial.folder):
            with contextlib.suppress(Taken), locked(trial.folder / ".lock", doing=PREPARES):
                sweep(trial.folder)
        state = read_state(trial.folder, task)
        if state.done and not state.damaged:
            continue
        missing.append(trial)
        if state.damaged:
            again = (
                "trained again from its last checkpoint" if WEIGHTS in state.damaged else "made again from its weights"
            )
            board.note(f"{trial.candidate} seed {trial.seed}: {join(state.damaged)} damaged, {again}.")
    return missing


def open_trial(trial: RunningTrial, task: "Task", config: Mapping[str, Any]) -> None:
    """A folder to start in, or to go on in; one in which somebody else is at work stays as it is.

    Args:
        trial: One that is missing.
        task: Of its plan.
        config: For ``config.json``.
    """
    with contextlib.suppress(Taken), locked(trial.folder / ".lock", doing=PREPARES):
        state = read_state(trial.folder, task)
        if state.done and not state.damaged:
            return  # somebody else has just finished it
        for name in state.damaged:
            _remove(trial.folder / name)
        if state.result and not state.done and not state.result.get("killed"):
            # the same steps would fail in the same way from a checkpoint, and its weights may be what is wrong
            for path in trial.folder.iterdir():
                if path.name != ".lock":
                    _remove(path)
        _remove(trial.folder / "result.json")
        write_json(trial.folder / "config.json", dict(config))


def config_of(trial: RunningTrial, ready: "ReadyPlan") -> dict[str, Any]:
    """What a trial's ``config.json`` holds."""
    return {"candidate": trial.candidate, "seed": trial.seed, **ready.made_of, "plan": ready.plan.to_dict()}


def _remove(path: Path) -> None:
    """A file, or a folder in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_environment(folder: Path, plan: Plan, facts: dict[str, Any], workers: int) -> dict[str, Any]:
    """What ``environment.json`` says; the first run's command and start stay."""
    before = read_if_whole(folder / "environment.json")
    runs = before.pop("sittings", 0)  # its name in folders that an earlier version began
    packages = {}
    for name in ("lookfar", "torch", "torchvision", "timm", "lightning-fabric", "numpy", "scipy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    environment = {
        **before,
        **facts,
        "command": before.get("command") or _command(),
        "versions": {"python": platform.python_version(), **packages},
        "platform": platform.platform(),
        "machine": machine(),
        "commit": commit(),
        "paths": readable_paths([plan.data, plan.val, plan.also_val, plan.host_weights, str(folder)]),
        "cores": cores(),
        "workers": workers,
        "started": before.get("started") or now(),
        "runs": before.get("runs", runs) + 1,
    }
    write_json(folder / "environment.json", environment)
    return environment


def _command() -> str:
    """How this study was started, as it would be typed."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.stem == "__main__" else program.stem
    if name in ("lookfar", "cli") and sys.argv[1:2] == ["study"]:
        return shlex.join(["lookfar", *sys.argv[1:]])
    return "lookfar.study.run(plan, out)"


def now() -> str:
    return datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")

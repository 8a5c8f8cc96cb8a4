"""One trial of a plan, as an array job runs it: several at once in one folder, which is all that they share.

Whoever comes first tries the plan and writes it down, with ``config.json`` of every trial; the others wait for that,
and need nothing of one another from then on.
"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookfar.study._files import read_if_whole
from lookfar.study._locks import PREPARES, Owner
from lookfar.study.continuing import asked_of_data, kept_plan, plan_differences
from lookfar.study.mending import read_state
from lookfar.study.plan import FREE, Plan, default_folder
from lookfar.study.preparing import config_of, in_use, missing_of, open_trial, prepare, trials_of, write_environment
from lookfar.study.processes import TAKEN, Here, RunningTrial
from lookfar.study.progress import Board, make_console
from lookfar.study.running import Scheduler, interruptible
from lookfar.study.words import counted

if TYPE_CHECKING:
    from lookfar.tasks import Task

DONE, FAILED = 0, 1
PATIENCE = 5  # seconds for a trial to end whose study was killed


def run_trial(plan: Plan, out: str | Path | None, number: int) -> int:
    """Run one trial, from its checkpoint where it has one.

    Args:
        plan: As for :func:`lookfar.study.run`.
        out: The study's folder.
        number: Of the trial in the plan's order, from 0.

    Returns:
        0 where it is done, also where it was before; 1 where it failed, 75 where another process runs it.

    Raises:
        ValueError: There is no such trial, the plan cannot work, or differs from the folder's.
        FileNotFoundError: Data, or weights, that are not there.
        Stopped: Interrupted or terminated; a checkpoint was written first.
    """
    folder = Path(out) if out is not None else default_folder(plan.data)
    board = Board(make_console())
    with interruptible():
        plan = prepare_once(plan, folder, board, number)
        trials = trials_of(plan, folder)
        if number >= len(trials):
            raise ValueError(f"trial must be from 0 to {len(trials) - 1}, the last of the plan, got {number}")
        trial = trials[number]
        trial.label = f"--trial {number}"
        task = plan.find_task(folder)
        if _is_done(trial, task):
            board.note(f"trial {number}, {trial.candidate} seed {trial.seed}, is done")
            return DONE
        open_trial(trial, task, read_if_whole(trial.folder / "config.json"))
        return _run(trial, plan, task, board)


def _run(trial: RunningTrial, plan: Plan, task: "Task", board: Board) -> int:
    board.expect(plan)
    places = Here(plan, 1)
    places.environments[0]["LOOKFAR_PATIENCE"] = str(PATIENCE)
    scheduler = Scheduler([trial], places, board)
    scheduler.run()
    if scheduler.elsewhere:
        return TAKEN
    return DONE if _is_done(trial, task) else FAILED


def prepare_study(plan: Plan, out: str | Path | None) -> int:
    """Write a plan down with all that its trials need, and say how many there are."""
    folder = Path(out) if out is not None else default_folder(plan.data)
    board = Board(make_console())
    with interruptible():
        total = len(prepare_once(plan, folder, board).trials)
    board.note(f"{counted(total, 'trial')}: lookfar study {shlex.quote(str(folder))} --trial 0 to {total - 1}")
    return DONE


def prepare_once(plan: Plan, folder: Path, board: Board, number: int | None = None) -> Plan:
    """The plan as it stands in the folder, where this or another process has put it.

    Args:
        plan: As it was asked for.
        folder: Of the study.
        board: Takes what is found on the way.
        number: Of a trial that must be ready to start; None for all.

    Raises:
        ValueError: The plan cannot work, or the whole study is being run.
    """
    asked = plan.resolved()
    if (kept := _prepared(asked, folder, number)) is not None:
        return kept
    with in_use(folder, doing=PREPARES, wait=_while_it_prepares):
        if (kept := _prepared(asked, folder, number)) is not None:  # by whom this one has waited for
            return kept
        board.head(plan, folder)
        ready = prepare(plan, folder, board)
        task = ready.plan.find_task(folder)
        for trial in missing_of(trials_of(ready.plan, folder), task, board):
            open_trial(trial, task, config_of(trial, ready))
        write_environment(folder, ready.plan, ready.facts, 1)
        return ready.plan


def _while_it_prepares(owner: Owner, seconds: float) -> bool:
    return owner.doing == PREPARES


def _prepared(asked: Plan, folder: Path, number: int | None) -> Plan | None:
    """The folder's plan, where it says all that is asked for and the trial can start; else None."""
    kept = kept_plan(folder)
    if kept is None or not (folder / "environment.json").is_file():
        return None
    now, then = asked.to_dict(), kept.to_dict()
    free = [name for name in FREE if name not in ("blocks", "controls", "seeds")]
    same = not plan_differences(then, asked) and all(now[name] == then[name] for name in free)
    grown = set(asked.blocks) <= set(kept.blocks) and asked.seeds <= kept.seeds
    of_data = read_if_whole(folder / "data.json").get("asked") == asked_of_data(asked)
    if not (same and grown and of_data):
        return None
    trials = trials_of(kept, folder)
    ready = trials if number is None else trials[number : number + 1]
    return kept if all(_is_ready(trial, kept) for trial in ready) else None


def _is_ready(trial: RunningTrial, plan: Plan) -> bool:
    config: dict[str, Any] = read_if_whole(trial.folder / "config.json")
    if (config.get("candidate"), config.get("seed")) != (trial.candidate, trial.seed):
        return False
    return isinstance(config.get("plan"), dict) and not plan_differences(config["plan"], plan)


def _is_done(trial: RunningTrial, task: "Task") -> bool:
    state = read_state(trial.folder, task)
    return state.done and not state.damaged

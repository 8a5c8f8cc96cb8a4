"""What a running study shows: bars and the time left on a terminal, two lines a trial elsewhere."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lookfar.study.candidates import is_reference
from lookfar.study.plan import Plan
from lookfar.study.processes import RunningTrial
from lookfar.study.words import about, counted, duration, points, thousands

SETTLED = 5.0  # seconds after which a trial's own pace says how long it takes


def make_console(*, quiet: bool = False) -> Console:
    """A console that leaves numbers uncoloured and gives pipes long lines."""
    console = Console(highlight=False, markup=False, quiet=quiet)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, quiet=quiet, width=120)
    return console


class Board:
    """Progress of a study; a context while trials run."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or make_console()
        self._live: Live | None = None
        self._costs: dict[str, list[float]] = {}  # seconds of finished trials
        self._expected: dict[str, float] = {}  # seconds of a trial, by a step measured before the start
        self._told: set[int] = set()  # numbers of trials whose time was estimated in a line of its own
        self._steps = 0
        self._slots = 1
        self._noted: set[str] = set()  # remarks of trials that were shown already

    def head(self, plan: Plan, folder: Path) -> None:
        """The first line, before anything slow is loaded."""
        blocks = [b for b in plan.blocks if not is_reference(b)]
        parts = [
            f"lookfar study · {plan.data}",
            f"{counted(len(blocks), 'block')} × {counted(plan.seeds, 'seed')}",
            *([counted(plan.steps, "step")] if plan.steps else []),
            str(folder),
        ]
        self.console.print(" · ".join(parts), style="bold", soft_wrap=True)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Say what a wait is for, and for how long it has lasted."""
        if not self.console.is_terminal:
            yield
            return
        started = time.monotonic()

        class Line:
            def __rich__(self) -> Text:
                return Text(f"  {what} … {duration(time.monotonic() - started)}", style="dim")

        with Live(Line(), console=self.console, refresh_per_second=4, transient=True):
            yield

    def note(self, line: str) -> None:
        """One line of what was found."""
        self.console.print(f"  {line}", soft_wrap=True)

    def begin(
        self,
        plan: Plan,
        question: str,
        total: int,
        trials: Sequence[RunningTrial],
        slots: int,
        expected: Mapping[str, float] | None = None,
    ) -> None:
        """What is about to happen, and how long it will take.

        Args:
            plan: Of the study.
            question: What is to be learned.
            total: Trials of the plan.
            trials: Those that are missing.
            slots: How many run side by side.
            expected: Seconds of a trial of each candidate, where they are known.
        """
        self.expect(plan, slots, expected)
        missing = len(trials)
        for sentence in question.replace(". ", ".\n").splitlines():
            self.console.print(f"  {sentence}", soft_wrap=True)
        side = f"{min(slots, missing)} at a time" if min(slots, missing) > 1 else "one at a time"
        where = "" if plan.accelerator == "cpu" else f" on {plan.accelerator}"
        if not missing:
            self.console.print(f"  all {total} trials are there")
        else:
            there = f", {total - missing} of {total} are there" if missing < total else ""
            run = f"{counted(missing, 'trial')} of {counted(self._steps, 'step')} to run"
            left = self._left([], trials)
            takes = f" · {about(left)}" if left is not None else ""
            self.console.print(f"  {run}, {side}{where}{there}{takes}", soft_wrap=True)
        self.console.print()

    def expect(self, plan: Plan, slots: int = 1, expected: Mapping[str, float] | None = None) -> None:
        """Know of what trials come, and say nothing of it; arguments as for :meth:`begin`."""
        self._task = plan.find_task()
        self._steps, self._slots, self._expected = plan.steps or 0, slots, dict(expected or {})

    def __enter__(self) -> "Board":
        if self.console.is_terminal and not self.console.quiet:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, running: Sequence[RunningTrial], waiting: Sequence[RunningTrial]) -> None:
        """Draw the running trials and the time left."""
        if self._live is None:
            self._tell(running, waiting)
            return
        grid = Table.grid(padding=(0, 2))
        grid.add_column()
        grid.add_column(max_width=30, no_wrap=True, overflow="ellipsis")
        grid.add_column(width=min(24, max(self.console.width - 64, 6)))
        grid.add_column(justify="right", no_wrap=True)
        grid.add_column(no_wrap=True)
        grid.add_column(justify="right", no_wrap=True)
        for trial in sorted(running, key=lambda t: t.number):
            grid.add_row(*self._row(trial))
        lines: list[RenderableType] = [grid]
        left = self._left(running, waiting)
        more = f"{counted(len(waiting), 'trial')} to come" if waiting else "the last trials"
        lines.append(Text(f"  {more}" + (f" · about {duration(left)} left" if left is not None else ""), style="dim"))
        self._live.update(Group(*lines), refresh=True)

    def _tell(self, running: Sequence[RunningTrial], waiting: Sequence[RunningTrial]) -> None:
        """Where no bars are drawn: one line a trial, as soon as its own pace says how long it takes."""
        for trial in running:
            left = self._trial_left(trial)
            if left is None or trial.number in self._told or trial.paced is None:
                continue
            if trial.step < self._steps / 20 or time.monotonic() - trial.paced[1] < SETTLED:
                continue
            self._told.add(trial.number)
            everything = self._left(running, waiting)
            rest = f", {about(everything)} for all" if everything is not None else ""
            at = f"step {thousands(trial.step)}/{thousands(self._steps)}"
            line = f"  seed {trial.seed}  {trial.candidate:<22}  {at}   {duration(left)} left{rest}"
            self.console.print(line, soft_wrap=True)

    def _row(self, trial: RunningTrial) -> list[RenderableType]:
        steps = f"{thousands(trial.step)}/{thousands(self._steps)}"
        bar = ProgressBar(total=max(self._steps, 1), completed=trial.step)
        left = self._trial_left(trial)
        if "doing" in trial.seen:
            doing, left = trial.seen["doing"], None
        elif "step" not in trial.seen:
            doing = "starting"
        else:
            doing = f"loss {trial.seen['loss']:.3f}" if "loss" in trial.seen else ""
        end = f"{duration(left)} left" if left is not None else ""
        return [f"  seed {trial.seed}", trial.candidate, bar, steps, doing, end]

    def ended(self, trial: RunningTrial, result: dict[str, Any], seconds: float) -> None:
        """The line that stays of a trial."""
        if result["status"] == "done":
            self._costs.setdefault(trial.candidate, []).append(seconds)
            task = self._task
            score = f"{task.words.score} {points(task.scale * result[task.metric])}"
            said = f"{counted(result['step'], 'step')}   {score}"
            style = ""
        else:
            said, style = f"failed: {result['reason']}", "red"
        line = f"  seed {trial.seed}  {trial.candidate:<22}  {said}   {duration(seconds)}   ({trial.label})"
        self.console.print(line, style=style, soft_wrap=True)
        for note in result.get("notes", ()):
            if note not in self._noted:
                self._noted.add(note)
                self.note(note)

    def stopping(self) -> None:
        """Ctrl-C was heard."""
        if self._live is not None:
            self._live.update(Text("  stopping: running trials write a checkpoint …", style="dim"), refresh=True)

    def _trial_left(self, trial: RunningTrial) -> float | None:
        """Seconds that a running trial still needs; at its own pace since it was started."""
        if trial.paced is None or trial.step <= trial.paced[0]:
            return None
        first, since = trial.paced
        pace = (time.monotonic() - since) / (trial.step - first)
        return max(self._steps - trial.step, 0) * pace

    def _left(self, running: Sequence[RunningTrial], waiting: Sequence[RunningTrial]) -> float | None:
        lefts = {t.number: self._trial_left(t) for t in running}
        known = {
            t.candidate: (time.monotonic() - t.started) + left for t in running if (left := lefts[t.number]) is not None
        }
        finished = {name: sum(costs) / len(costs) for name, costs in self._costs.items()}
        costs = known | finished
        # what was measured before the start holds for a machine at rest: trials side by side may be slower
        both = [name for name in costs if name in self._expected]
        slower = sum(costs[name] for name in both) / sum(self._expected[name] for name in both) if both else 1.0
        costs = {name: slower * seconds for name, seconds in self._expected.items()} | costs
        if not costs:
            return None
        usual = sum(costs.values()) / len(costs)
        now = [left if (left := lefts[t.number]) is not None else costs.get(t.candidate, usual) for t in running]
        later = [costs.get(t.candidate, usual) for t in waiting]
        return max(max(now, default=0.0), (sum(now) + sum(later)) / self._slots)

"""What `lookfar study` and `lookfar report` do once their options are parsed: exit statuses and last lines."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from lookfar._options import Range, check
from lookfar.study.plan import Plan, read_yaml
from lookfar.study.progress import make_console
from lookfar.study.results import Results, load, write_csv
from lookfar.study.show import show

DONE, FAILED, STOPPED = 0, 1, 130


def run_command(
    file: Path | None,
    options: dict[str, Any],
    *,
    out: Path | None = None,
    workers: int | None = None,
    on: str | None = None,
    trial: int | None = None,
    prepare: bool = False,
) -> int:
    """Run a study, print its table, write its report; or run one trial of it, or only write it down.

    Args:
        file: A ``study.yaml``, the folder of a study that is to grow, or None.
        options: Entries of the plan that were given on the command line; None where they were not.
        out: The study's folder; for a plan that lies in a study's folder that folder.
        workers: Trials side by side.
        on: ``ray`` or ``ray:ADDRESS``, for trials on a cluster.
        trial: Run this one alone, counted from 0.
        prepare: Try the plan, write it down and say how many trials there are.

    Returns:
        0 where every trial is done, 1 where one failed, 75 where the one is being run elsewhere, 130 after Ctrl-C.

    Raises:
        ValueError: The plan cannot work, or options exclude each other.
    """
    check("trial", trial, Annotated[int | None, Range(0)])
    for option, given in {"--prepare": prepare, "--workers": workers, "--on": on}.items():
        if trial is not None and given:
            raise ValueError(f"--trial runs one trial here: it goes without {option}")
    from lookfar.study.report import write_report
    from lookfar.study.running import Stopped, run
    from lookfar.study.single import prepare_study, run_trial

    if file is not None and file.is_dir():
        file = file / "study.yaml"
    elif file is None and options.get("data") is None and out is not None and (out / "study.yaml").is_file():
        file = out / "study.yaml"
    values = {} if file is None else read_yaml(file)
    values |= {name: value for name, value in options.items() if value not in (None, [])}
    if file is not None and out is None:
        out = file.parent if (file.parent / "trials").is_dir() else Path("runs") / file.stem
    source = str(file) if file is not None else "the command line"
    try:
        plan = Plan.from_dict(values, source)
        if trial is not None:
            return run_trial(plan, out, trial)
        if prepare:
            return prepare_study(plan, out)
        results = run(plan, out, workers=workers, on=on)
        return _finish(results, lambda: write_report(results.folder))
    except Stopped as stopped:
        print(f"\nlookfar: {stopped}", file=sys.stderr)
        return STOPPED


def report_command(folder: Path, *, margin: float | None = None, groups: str | None = None) -> int:
    """Write a study's report and tables again; 1 where a trial failed or is missing.

    Args:
        folder: Of the study.
        margin: Judge with another margin; the plan keeps it.
        groups: Draw validation images by other groups; the plan keeps them.
    """
    from lookfar.study.report import write_report

    results = load(folder, margin=margin, groups=groups)

    def write() -> Path:
        if margin is not None or groups is not None:
            results.plan.save(folder / "study.yaml")
        write_csv(results)
        return write_report(folder)

    return _finish(results, write)


def _finish(results: Results, write: Callable[[], Path]) -> int:
    """Write what is to be written, and show the table even where that fails: a full disk, somebody else's folder."""
    console = make_console()
    console.print()
    try:
        report = write()
    except OSError:
        show(results, None, console)
        raise
    show(results, report, console)
    return DONE if results.complete else FAILED

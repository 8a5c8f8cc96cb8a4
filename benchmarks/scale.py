"""What a study costs beside its trials, and whether that grows no faster than their number.

    python benchmarks/scale.py                 50, 150 and 500 trials, about two minutes on two cores
    python benchmarks/scale.py --trials 20,40

The trials only pretend (`tests/study/fake_trial.py`), and so do the results that the report is made of
(`tests/study/fake_study.py`), three seeds of each candidate. Seconds are those of a processor, of the process that runs
the study alone: other programs on the machine change them little. `run` is the study from its plan to its tables,
`again` the same command once all is done, `one` a trial of an array job that finds itself done, `report` what `lookfar
report` does.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "study")]

from fake_study import make_fake_study  # noqa: E402

from lookfar.study import Plan, load, run  # noqa: E402
from lookfar.study.preflight import ReadyPlan  # noqa: E402
from lookfar.study.report import write_report  # noqa: E402
from lookfar.study.results import write_csv  # noqa: E402
from lookfar.study.single import run_trial  # noqa: E402

SEEDS = 3


def seconds(work: Callable[[], object]) -> float:
    """Of this process, without those that it starts."""
    started = time.process_time()
    work()
    return time.process_time() - started


def pretended(plan: Plan, note: object, controls: object = None) -> ReadyPlan:
    """A plan that was tried: there is no network behind it."""
    return ReadyPlan(plan.resolved(), "A task.", 7, {"place": "place"}, {})


def measure(folder: Path, blocks: Sequence[str]) -> dict[str, float]:
    """Seconds of a study with these blocks."""
    plan, out = Plan("scenes:lookup", tuple(blocks), seeds=SEEDS, steps=3, accelerator="cpu"), folder / "run"
    out.mkdir(parents=True)
    (out / "wishes.json").write_text("{}")
    with (
        mock.patch("lookfar.study.processes.WORKER", (sys.executable, str(TESTS / "study/fake_trial.py"))),
        mock.patch("lookfar.study.preflight.preflight", pretended),
    ):
        found = {"run": seconds(lambda: run(plan, out, workers=2, quiet=True))}
        found["again"] = seconds(lambda: run(plan, out, workers=2, quiet=True))
        with contextlib.redirect_stdout(io.StringIO()):
            found["one"] = seconds(lambda: run_trial(plan, out, len(plan.trials) - 1))
    report = make_fake_study(folder / "report", blocks=blocks, seeds=SEEDS)

    def collect() -> None:
        write_csv(load(report))
        write_report(report)

    found["report"] = seconds(collect)
    return found | {"MB": (report / "report.html").stat().st_size / 1e6}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="50,150,500")
    numbers = [int(number) for number in parser.parse_args().trials.split(",")]
    warm_up()
    print(f"{'trials':>6} {'run':>8} {'a trial':>9} {'again':>8} {'one':>8} {'report':>8} {'a trial':>9} {'page':>8}")
    for number in numbers:
        blocks = [f"nonlocal(reduction={k})" for k in range(1, max(number // SEEDS - 2, 1) + 1)]
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), blocks)
        trials = SEEDS * (len(blocks) + 2)
        each = {name: f"{1e3 * found[name] / trials:6.1f} ms" for name in ("run", "report")}
        print(
            f"{trials:6} {found['run']:6.2f} s {each['run']} {found['again']:6.2f} s {found['one']:6.2f} s "
            f"{found['report']:6.2f} s {each['report']} {found['MB']:5.2f} MB",
            flush=True,
        )
    return 0


def warm_up() -> None:
    """Load what is loaded once, so that the first row does not pay for it."""
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), ["nonlocal"])


if __name__ == "__main__":
    sys.exit(main())

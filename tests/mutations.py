"""Plants the faults of :mod:`mutants`, one at a time, and says which of them the tests notice.

    python tests/mutations.py                   # all of them, some ten minutes on two cores
    python tests/mutations.py study             # those whose file or reason holds this word
    python tests/mutations.py --list

The working tree is never touched: a fault goes into a copy of ``src`` in a temporary folder, and the tests that should
notice it run on the copy. First they run without any fault, since a test that fails anyway proves nothing.
"""

import argparse
import contextlib
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]
PATIENCE = 600  # seconds: a fault may make a loop endless
PASSED, FAILED, ENDLESS = 0, 1, -1  # exit statuses of pytest, which has others where it could not run the tests; ours
# loaded once, before processes are forked: a few seconds saved for each fault
HEAVY = ("torch", "torchvision", "timm", "lightning_fabric", "scipy.stats", "PIL", "safetensors.torch", "pytest")


def mutated(mutant: Mutant) -> str:
    """The file's text with its fault.

    Raises:
        ValueError: The text that is to be replaced is not there exactly once: the table has to follow the code.
    """
    path = ROOT / "src/lookfar" / mutant.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if (times := text.count(mutant.before)) != 1:
        raise ValueError(f"{mutant.file} holds {times} times, not once: {mutant.before!r}")
    return text.replace(mutant.before, mutant.after)


def tried(mutant: Mutant | None, tests: list[str], patience: float | None = PATIENCE) -> tuple[int, str]:
    """Exit status and output of pytest on a copy of ``src`` with this fault."""
    with tempfile.TemporaryDirectory(prefix="lookfar-") as folder:
        shutil.copytree(ROOT / "src", f"{folder}/src")
        if mutant is not None:
            (Path(folder) / "src/lookfar" / mutant.file).write_text(mutated(mutant), encoding="utf-8")
        process = multiprocessing.get_context("fork").Process(target=run_pytest, args=(folder, tests))
        process.start()
        process.join(patience)
        if process.is_alive():
            process.kill()
            process.join()
            return ENDLESS, ""
        return process.exitcode or 0, Path(folder, "said").read_text(encoding="utf-8")


def run_pytest(folder: str, tests: list[str]) -> None:
    """In a process of its own: what it imports is the copy in ``folder``."""
    import pytest

    said = os.open(f"{folder}/said", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = f"{folder}/src"  # for the processes that tests start
    sys.path.insert(0, f"{folder}/src")
    quick = ["-x", "-q", "--no-header", "--tb=line", "--assert=plain", "-p", "no:cacheprovider"]
    status = pytest.main([*quick, f"--basetemp={folder}/tests", *tests])
    sys.stdout.flush()
    os._exit(status)


def outcome(mutant: Mutant) -> tuple[str, str]:
    """``killed``, ``survived``, or what kept the tests from judging; and by which test, how fast."""
    started = time.monotonic()
    status, said = tried(mutant, mutant.tests.split())
    word = {PASSED: "survived", FAILED: "killed", ENDLESS: "endless"}.get(status, "broken")
    last = next((line for line in reversed(said.splitlines()) if line.startswith(("FAILED", "ERROR"))), "")
    return word, f"{time.monotonic() - started:3.0f} s  {last[:120]}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant faults and see whether the tests notice.")
    parser.add_argument("word", nargs="?", default="", help="only faults whose file or reason holds this")
    parser.add_argument("--list", action="store_true", help="show them and stop")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    args = parser.parse_args()
    chosen = [m for m in MUTANTS if args.word in f"{m.file} {m.why}"]
    if args.list:
        for m in chosen:
            print(f"{m.file}: {m.why}" + (f" (survives: {m.survives})" if m.survives else ""))
        return 0
    for m in chosen:
        mutated(m)  # all of them must apply before any is tried
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for tests in sorted({m.tests for m in chosen}):
        status, said = tried(None, tests.split(), patience=None)
        if status != PASSED:
            print(said[-3000:], f"{tests}: fails without any fault.", sep="\n")
            return 2
    print(f"{len(chosen)} faults; without them the tests pass.", flush=True)
    wrong, killed = [], 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for m, (word, said) in zip(chosen, pool.map(outcome, chosen)):
            print(f"{word:8}  {m.file}: {m.why}  {said}", flush=True)
            killed += word == "killed"
            if word != ("survived" if m.survives else "killed"):
                wrong.append(m)
    known = sum(bool(m.survives) for m in chosen)
    print(f"{killed} of {len(chosen)} killed, {known} known to survive.")
    for m in wrong:
        print(f"not as the table says: {m.file}: {m.why}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

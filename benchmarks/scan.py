"""How scans order what full trainings order: pairs of block and place in both, Spearman's rho, ``docs/scan.md``.

python benchmarks/scan.py [--data scenes:lookup ...] [--seeds 1] [--folder runs/scan] [--only-write]

A full training costs about 100 s of one core, a scan of all pairs about as much again. Trainings go on where they were
stopped, and after each the page and what `lookfar scan` says of itself are written anew, from the files in the folder.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from lookfar._tables import markdown_table
from lookfar.data import usual
from lookfar.scan import scan
from lookfar.scan.guide import FILE, STRONG
from lookfar.study import Plan
from lookfar.study._files import read_json, write_json, write_text
from lookfar.study.candidates import Candidate
from lookfar.study.plan import trial_folder
from lookfar.study.words import signed
from lookfar.study.worker import run_trial

ROOT = Path(__file__).parents[1]
PAGE, MARK = ROOT / "docs/scan.md", "<!-- from here on by benchmarks/scan.py -->\n"
BLOCKS = ("nonlocal", "global_context", "criss_cross", "squeeze_excitation")
PLACES = {"small": ("backbone.layer4", "backbone.layer3")}
ENOUGH = 8  # pairs, below which no rho is told
DRAWS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["scenes:lookup", "scenes:cue"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/scan"))
    parser.add_argument("--only-write", action="store_true", help="the page from what is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    write(args)
    for data in () if args.only_write else args.data:
        folder, plan = folder_of(args.folder, data), plan_of(data, args.seeds)
        folder.mkdir(parents=True, exist_ok=True)
        plan.save(folder / "study.yaml")
        for seed in range(args.seeds):
            trained(folder, plan, "baseline", seed)
            for block in plan.blocks:
                if not (folder / "scan.json").is_file():
                    found = scan(trial_folder(folder, "baseline", 0), plan.blocks, say=print)
                    write_json(folder / "scan.json", found.as_json())
                trained(folder, plan, block, seed)
                write(args)


def folder_of(folder: Path, data: str) -> Path:
    return folder / data.rpartition(":")[2]


def plan_of(data: str, seeds: int) -> Plan:
    """All pairs; blocks before places, so that the first that are trained differ most."""
    pairs = [f"{block}@{place}" for place in PLACES[usual(data).host] for block in BLOCKS]
    return Plan(data, tuple(pairs), seeds=seeds, accelerator="cpu").resolved()


def trained(folder: Path, plan: Plan, candidate: str, seed: int) -> None:
    """A trial of a study, by the study's own worker; nothing where it is done."""
    trial = trial_folder(folder, candidate, seed)
    if read_json(trial / "result.json").get("status") == "done":
        return
    trial.mkdir(parents=True, exist_ok=True)
    config = {"candidate": candidate, "seed": seed, "control_parameters": 0, "plan": plan.to_dict()}
    write_json(trial / "config.json", config)
    write_json(trial / "result.json", {"status": "done", "reason": "", **(run_trial(trial) or {})})
    print(f"{candidate} seed {seed}: trained", flush=True)


def scores(folder: Path, plan: Plan, candidate: str) -> list[float]:
    """Of the trials that are done, in the unit of tables."""
    task = plan.find_task(folder)
    found = (read_json(trial_folder(folder, candidate, seed) / "result.json") for seed in range(plan.seeds))
    return [task.scale * one[task.metric] for one in found if one.get("status") == "done"]


def write(args: argparse.Namespace) -> None:
    """The page below its mark, and what the command says of itself."""
    lines, rhos, pairs = [], {}, 0
    for data in args.data:
        folder = folder_of(args.folder, data)
        plan = plan_of(data, args.seeds)
        held, base = read_json(folder / "scan.json"), scores(folder, plan, "baseline")
        rows = {row["candidate"]: row for row in held.get("rows", ())}
        both = []
        for name in map(str, map(Candidate.parse, plan.blocks)):
            full = scores(folder, plan, name)
            if full and base and name in rows and rows[name]["scores"]:
                both.append((name, rows[name]["gain"], float(np.mean(full) - np.mean(base)), rows[name]["group"]))
        lines += ["", f"### `{data}`", ""]
        if not both:
            lines.append("Not measured.")
            continue
        seeds, steps = len(rows[both[0][0]]["scores"]), held["steps"]
        lines += [
            f"{len(both)} of {len(plan.blocks)} pairs. Gains over the network without a block in points: {seeds} seeds "
            f"of {steps} steps in the scan, {plan.seeds} of {plan.steps} in full trainings; without one full trainings "
            f"have {np.mean(base):.1f}. Seeds of the scan tell means apart that differ by more than "
            f"{held['least']:.2f} points.",
            "",
            markdown_table(
                ["block and place", "in the scan", "group", "in full"],
                [[name, signed(a), group, signed(b)] for name, a, b, group in sorted(both, key=lambda r: -r[1])],
            ),
        ]
        if len(both) < ENOUGH:
            lines += ["", f"Too few pairs for a rank correlation: {ENOUGH} are wanted."]
            continue
        pairs += len(both)
        rhos[data] = rho, draws = correlated([(a, b) for _, a, b, _ in both])
        low, high = np.nanpercentile(draws, [2.5, 97.5])
        word = "a weak guide" if rho < STRONG else "which may be a weak guide" if low < STRONG else "a guide"
        ends = f"{low:.2f} to {high:.2f}".replace("-", "\N{MINUS SIGN}")
        lines += ["", f"Spearman's rho {rho:.2f}, 95 % {ends} over pairs drawn again: {word}."]
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    write_text(PAGE, head + MARK + "\n".join(lines) + "\n")
    if rhos:
        together = np.nanmean([draws for _, draws in rhos.values()], 0)
        low, high = np.nanpercentile(together, [2.5, 97.5])
        rho = float(np.mean([rho for rho, _ in rhos.values()]))
        known = {"rho": rho, "low": low, "high": high, "pairs": pairs, "data": list(rhos)}
        FILE.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def correlated(pairs: list[tuple[float, float]]) -> tuple[float, np.ndarray]:
    """Spearman's rho, and that of pairs drawn again; nan for draws in which one side is all the same."""
    values, rng = np.array(pairs), np.random.default_rng(0)
    drawn = (values[rng.integers(0, len(values), len(values))] for _ in range(DRAWS))
    return spearman(values), np.array([spearman(one) for one in drawn])


def spearman(values: np.ndarray) -> float:
    """Correlation of ranks, ties shared; ``(n, 2)``."""
    from scipy.stats import rankdata

    a, b = (rankdata(column) for column in values.T)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else float("nan")


if __name__ == "__main__":
    main()

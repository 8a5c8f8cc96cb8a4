"""The tables of ``docs/mixers.md`` from the folders of finished or unfinished studies of mixers.

lookfar study studies/mixers.yaml --out runs/mixers --workers 1
python benchmarks/mixers.py runs/mixers [runs/mixer_weights ...]
"""

import argparse
from pathlib import Path

from lookfar._tables import markdown_table
from lookfar.study._files import write_text
from lookfar.study.candidates import Candidate
from lookfar.study.results import Results, load
from lookfar.study.rows import Summary

PAGE, MARK = Path(__file__).parents[1] / "docs/mixers.md", "<!-- from here on by benchmarks/mixers.py -->\n"
CALLED = {"baseline": "no mixer (floor)", "control": "control: convolutions without their skip"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    args = parser.parse_args()
    before = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    write_text(PAGE, f"{before}{MARK}\n" + "\n".join(section(folder) for folder in args.folders))


def section(folder: Path) -> str:
    """One study: what it ran, and a row a mixer."""
    results = load(folder)
    floor = results.summary("baseline").parameters or 0
    usual = next(
        (one.parameters for one in results.summaries if Candidate.parse(one.candidate).name == "nonlocal"), None
    )
    heads = "mixer|heads|parameters|of self-attention's|accuracy ± 95 %|each seed|against no mixer|against convolutions"
    rows = [row(one, seeds_of(results, one), floor, (usual or floor) - floor) for one in results.summaries]
    return f"""## {folder.name}

{ran(results)} Parameters are those of the two mixers together; without them the network has {floor:,}.

{markdown_table([*heads.split("|"), "seeds", "data"], rows)}
"""


def ran(results: Results) -> str:
    """Data, budget, and what is missing of it."""
    plan = results.plan
    body = f"{plan.data}, {plan.steps} steps of {plan.batch_size}, learning rate {plan.lr:g}"
    norm = ", batch norms in place of the body's LayerNorms" if plan.norm == "batch" else ""
    left = len(plan.trials) - sum(one.done for one in results.summaries)
    return f"{body}{norm}." + (f" {left} of {len(plan.trials)} trainings are missing." if left else "")


def seeds_of(results: Results, one: Summary) -> str:
    """The score of every seed."""
    found = sorted((t.seed, t.score) for t in results.trials if t.candidate == one.candidate and t.status == "done")
    return ", ".join(f"{score:.1f}" for _, score in found)


def row(one: Summary, seeds: str, floor: int, usual: int) -> list[str]:
    candidate = Candidate.parse(one.candidate)
    options = dict(candidate.options)
    told = CALLED.get(candidate.name) or f"`{one.candidate}`"
    own = None if one.parameters is None else one.parameters - floor
    return [
        told,
        str(options.get("heads", "")),
        "–" if own is None else f"{own:,}",
        "–" if own is None or not usual else f"{own / usual:.2f}",
        str(one.score) if one.score else "–",
        seeds,
        str(one.difference) if one.difference else "–",
        str(one.over_control) if one.over_control else "–",
        str(one.done),
        "on scenes",
    ]


if __name__ == "__main__":
    main()

"""Claims that small trainings say something of: what is asked, the plans of their studies, and what those said.

A claim's plans are ``plans/NAME.yaml`` or ``plans/NAME-DATA.yaml``; the results of each stand in ``runs/claims``, in a
folder of its name. Nothing is concluded here: a study's own sentences are repeated, beside what would refute the claim.
Small scenes decide questions of small scenes.
"""

import shlex
from pathlib import Path

from lookfar.claims._claim import Claim

PLANS, RUNS = Path(__file__).with_name("plans"), Path("runs/claims")
SMALL = {
    "c1": Claim(
        "A trained non-local block's maps degenerate to one map for all queries.",
        "GCNet (1904.11492), analysis of trained non-local blocks",
        "the study's verdict 'depends on its query'",
    ),
    "c2": Claim(
        "The unary term alone does better than both coupled, the pairwise alone worse, and each better than none.",
        "Disentangled Non-Local Neural Networks (2006.06668): 79.3, 78.5, 77.5 and 75.8 mIoU on Cityscapes",
        "another order of joint, pairwise, unary and baseline, with intervals apart",
    ),
    "c5": Claim(
        "The pairwise map lies on the query's own class, the unary map on borders of classes.",
        "Disentangled Non-Local Neural Networks (2006.06668), overlap of maps with categories and boundaries",
        "label_lift of the pairwise or boundary_lift of the unary block at 1, by `lookfar inspect` of the study",
    ),
    "c6": Claim(
        "The four pairwise functions do alike.",
        "Non-local Neural Networks (1711.07971), instantiations",
        "two of them further apart than the margin, with intervals apart",
    ),
    "c11": Claim(
        "More EM iterations help up to about three.",
        "Expectation-Maximization Attention (1907.13426), iterations in training",
        "one iteration no worse than three, or six better",
    ),
    "c12": Claim(
        "One projection serves queries and keys as well as two.",
        "OCNet (1809.00916), whose queries and keys share one",
        "the shared one worse by more than the margin",
    ),
    "c13": Claim(
        "The graph step between projection and re-projection is what helps.",
        "Graph-Based Global Reasoning (1811.12814); LatentGNN (1905.11634)",
        "the same block without its step practically as good",
    ),
    "c16": Claim(
        "Double normalisation does better than a softmax.",
        "External Attention (2105.02358)",
        "a softmax no worse",
    ),
    "c21": Claim(
        "A block wants projections of its queries, keys and values inside.",
        "asked of all blocks with projections='around', one convolution before and one behind",
        "the block without them practically as good",
    ),
    "c23": Claim(
        "It matters how similarities are normalised.",
        "asked of non-local: softmax, double, sigmoid; 1/M and l1 for the dot product",
        "all of them practically the same",
    ),
}


def plans_of(name: str) -> list[Path]:
    """The plans of a claim's studies."""
    return sorted(path for path in PLANS.glob("*.yaml") if path.stem.partition("-")[0] == name)


def lines_of(name: str) -> list[str]:
    """What is asked, and of each study the command, where its results stand, and what they say."""
    claim = SMALL[name]
    lines = [f"{name}  {claim.says}", f"    {claim.source}", f"    refuted by {claim.refuted_by}"]
    for plan in plans_of(name):
        out = RUNS / plan.stem
        lines += [f"    {shlex.join(['lookfar', 'study', _near(plan), '--out', str(out)])}", f"    {said(out)}"]
    return lines


def outcome_of(name: str) -> str:
    """What the studies of a claim said, in one cell of a table."""
    found = {plan.stem: said(RUNS / plan.stem) for plan in plans_of(name)}
    alike = set(found.values())
    if len(alike) == 1:
        return alike.pop()
    return " ".join(f"{stem}: {text}." for stem, text in found.items())


def said(folder: Path) -> str:
    """What a study's own files say: its sentences, once every trial is done."""
    if not (folder / "study.yaml").is_file():
        return "not run"
    from lookfar.study import load

    results = load(folder)
    if not results.complete:
        done = sum(trial.status == "done" for trial in results.trials)
        return f"not finished: {done} of {len(results.trials)} trials are done"
    needs = [f"{row.candidate}: {row.told}" for row in results.summaries if row.told is not None]
    return " ".join([*results.conclusions.sentences, *needs])


def _near(path: Path) -> str:
    """A path from here, where it lies below; else as it is."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)

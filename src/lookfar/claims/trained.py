"""Claims that small trainings decide: what is asked, the plans of their studies, and what those came to.

A claim's plans are ``plans/NAME.yaml`` or ``plans/NAME-DATA.yaml``. All plans on the same data share one study, in
``runs/claims`` in a folder named after the data: what several claims ask about is trained once, and each claim reads
its own candidates, with intervals of its own. Small scenes decide questions of small scenes.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lookfar._tables import EMPTY, table
from lookfar.claims._claim import Answer, Claim, Outcome, word_of
from lookfar.claims.maps import COLUMNS, lifts, one_map, table_of
from lookfar.claims.relations import Pair, Relation, answers, pairs

if TYPE_CHECKING:
    from lookfar.study import Results
    from lookfar.study.plan import Plan

PLANS, RUNS = Path(__file__).with_name("plans"), Path("runs/claims")
SEEDS = 3
TABLE = ("trained block", *COLUMNS)
ANY_MACHINE = ("accelerator", "devices", "threads")  # entries of a plan that a claim does not ask about


@dataclass(frozen=True)
class Trained(Claim):
    """A claim that studies decide.

    Attributes:
        asks: Candidates that stand to each other in some way, or what else is asked of the study of each plan.
        some: Whether one part that holds is enough; else all are to hold.
    """

    asks: "tuple[Pair, ...] | Callable[[Results, Sequence[str]], list[Answer]]" = ()
    some: bool = False


def _than(relation: Relation, *named: tuple[str, str]) -> tuple[Pair, ...]:
    return tuple(Pair(first, relation, second) for first, second in named)


def _em(iterations: int) -> str:
    """With a norm that follows in a short training: the authors' does not."""
    return f"expectation_maximization(iterations={iterations}, norm_layer=BatchNorm2d)"


SMALL: dict[str, Trained] = {
    "c1": Trained(
        "In a trained non-local block one map for all queries of an image does as well as the queries' own.",
        "GCNet (1904.11492), analysis of trained non-local blocks",
        "a loss with the mean map, on the data of any plan, whose interval lies above zero and not below the margin",
        one_map,
    ),
    "c2": Trained(
        "The unary term alone does better than both coupled, these better than the pairwise alone, and that better "
        "than no block.",
        "Disentangled Non-Local Neural Networks (2006.06668): 79.3, 78.5, 77.5 and 75.8 mIoU on Cityscapes",
        "one of them better than the next by no more than the margin",
        _than(
            "better than",
            ("disentangled_nonlocal(terms=unary)", "disentangled_nonlocal(terms=joint)"),
            ("disentangled_nonlocal(terms=joint)", "disentangled_nonlocal(terms=pairwise)"),
            ("disentangled_nonlocal(terms=pairwise)", "baseline"),
        ),
    ),
    "c5": Trained(
        "The map of a pairwise term lies on the query's own class and that of a unary term on borders of classes, each "
        "term alone and where a block adds both.",
        "Disentangled Non-Local Neural Networks (2006.06668), overlap of maps with categories and boundaries",
        "weight of a pairwise map on the query's class, or of a unary map on borders, no larger than by chance",
        lifts,
    ),
    "c6": Trained(
        "The four pairwise functions do alike.",
        "Non-local Neural Networks (1711.07971), instantiations",
        "two of them further apart than the margin",
        pairs(
            "practically the same as",
            *("nonlocal(mode=gaussian)", "nonlocal", "nonlocal(mode=dot_product)", "nonlocal(mode=concatenation)"),
        ),
    ),
    "c11": Trained(
        "Three EM iterations do better than one and no worse than two, and six no better than three.",
        "Expectation-Maximization Attention (1907.13426), iterations in training",
        "three better than one by no more than the margin, worse than two by more than it, or worse than six",
        (
            Pair(_em(3), "better than", _em(1)),
            Pair(_em(3), "no worse than", _em(2)),
            Pair(_em(6), "no better than", _em(3)),
        ),
    ),
    "c12": Trained(
        "One projection serves queries and keys as well as two.",
        "OCNet (1809.00916), whose queries and keys share one",
        "the shared one worse by more than the margin, in either block",
        _than(
            "no worse than",
            ("nonlocal(share_query_key=True)", "nonlocal"),
            ("position_attention(share_query_key=True)", "position_attention"),
        ),
    ),
    "c13": Trained(
        "The graph step between projection and re-projection is what helps.",
        "Graph-Based Global Reasoning (1811.12814); LatentGNN (1905.11634)",
        "either block better than the same without its step by no more than the margin",
        _than("better than", ("glore", "glore(reasoning=False)"), ("latent_gnn", "latent_gnn(reasoning=False)")),
    ),
    "c16": Trained(
        "Double normalisation does better than a softmax.",
        "External Attention (2105.02358)",
        "double normalisation better by no more than the margin, in either block",
        _than(
            "better than",
            ("external_attention", "external_attention(normalization=softmax)"),
            ("position_attention(normalization=double)", "position_attention"),
        ),
    ),
    "c21": Trained(
        "A block does better with projections of queries, keys and values inside.",
        "asked of blocks with projections='around', one convolution before and one behind",
        "either block better than without them by no more than the margin",
        _than(
            "better than",
            ("nonlocal", "nonlocal(projections=around)"),
            ("position_attention", "position_attention(projections=around)"),
        ),
    ),
    "c23": Trained(
        "It matters how similarities are normalised.",
        "asked of non-local: softmax, double, sigmoid; 1/M and l1 for the dot product",
        "all of them practically the same",
        (
            *pairs("different from", "nonlocal", "nonlocal(normalization=double)", "nonlocal(normalization=sigmoid)"),
            Pair(
                "nonlocal(mode=dot_product)", "different from", "nonlocal(mode=dot_product, normalization=l1)"
            ),
        ),
        some=True,
    ),
}  # fmt: skip


def plans_of(name: str) -> list[Path]:
    """The plans of a claim's studies."""
    return sorted(path for path in PLANS.glob("*.yaml") if path.stem.partition("-")[0] == name)


def folder_of(plan: "Plan") -> Path:
    """Where a study lies that all plans on the same data share."""
    from lookfar.study.plan import default_folder

    return RUNS / default_folder(plan.data).name


def train(names: Sequence[str], workers: int | None = None) -> int:
    """Run the studies of claims one after the other, as far as they are not finished.

    Returns:
        130 where it was stopped; else 1 where a trial failed or data are missing, which keeps none of the other studies
        from being run.
    """
    from lookfar.study.command import STOPPED, run_command
    from lookfar.study.plan import Plan

    worst = 0
    for plan in (plan for name in names for plan in plans_of(name)):
        print(f"\nlookfar {shlex.join(_command(plan))}", flush=True)
        try:
            status = run_command(plan, {}, out=folder_of(Plan.load(plan)), workers=workers)
        except FileNotFoundError as error:
            print(f"lookfar: not run: {error}", file=sys.stderr)
            status = 1
        worst = max(worst, status)
        if status == STOPPED:
            break
    return worst


def lines_of(name: str) -> list[str]:
    """What is asked, the command of each study, and what they came to."""
    claim = SMALL[name]
    lines = [f"{name}  {claim.says}", f"    {claim.source}", f"    refuted by {claim.refuted_by}"]
    lines += [f"    lookfar {shlex.join(_command(plan))}" for plan in plans_of(name)]
    lines.append(f"    {outcome_of(name)}")
    rows = table_rows(name)
    return [*lines, "", table(TABLE, rows)] if rows else lines


def table_rows(name: str, page: str = "") -> list[list[str | float | None]]:
    """A row a trial, under the headers ``TABLE``, of a claim on one map; none of others.

    Of data whose trials are not here, the rows that a page has.
    """
    from lookfar.study.plan import Plan

    if SMALL[name].asks is not one_map:
        return []
    found = []
    for plan in map(Plan.load, plans_of(name)):
        here = table_of(_load(plan), plan.blocks) if (folder_of(plan) / "study.yaml").is_file() else []
        rows = [[f"{plan.data}, {first}", *cells] for first, *cells in here]
        found += rows or _known_rows(page, plan.data)
    return found


def _known_rows(page: str, data: str) -> list[list[str | float | None]]:
    """Rows of a page's table of maps, of these data."""
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(f"| {data}, ")]
    return [[first, *(None if cell == EMPTY else float(cell) for cell in cells)] for first, *cells in lines]


def data_of(name: str) -> str:
    """What the studies of a claim are trained on."""
    from lookfar.study.plan import Plan

    return ", ".join(Plan.load(path).data for path in plans_of(name))


def outcome_of(name: str, mark: str = "", before: str = "") -> str:
    """What the studies of a claim came to, in a line: a word, between marks, and its numbers.

    Where they are not complete, what they came to ``before``; else what is missing.
    """
    found = concluded(name)
    return (before or found) if isinstance(found, str) else f"{mark}{found.word}{mark} {found.found}"


def known(page: str, asked: Sequence[str]) -> str:
    """What a page says that a claim came to, which asks the same; an empty string where it says nothing."""
    start = f"| {' | '.join(asked)} | **"
    row = next((line for line in page.splitlines() if line.startswith(start)), "")
    return row.removesuffix(" |")[len(start) - 2 :]


def concluded(name: str) -> Outcome | str:
    """What the studies of a claim came to; what is missing where not every trial is there."""
    from lookfar.study.plan import Plan

    claim, plans = SMALL[name], [Plan.load(path).resolved() for path in plans_of(name)]
    missing = {plan.data: state for plan in plans if (state := missing_of(claim, plan))}
    parts, said = [], []
    for plan in plans:
        if plan.data in missing:
            continue
        results = _load(plan)
        asks = claim.asks
        of_plan = answers(results, asks) if isinstance(asks, tuple) else asks(results, plan.blocks)
        parts += of_plan
        what = f"{results.plan.seeds} seeds of {results.plan.steps} steps"
        if isinstance(asks, tuple):
            what += f", differences in points of {results.conclusions.terms.score}"
        said.append(f"on {plan.data} ({what}): {'; '.join(part.said for part in of_plan)}")
    lacks = [f"on {data} {text}" for data, text in missing.items()]
    if not missing or claim.some in {part.holds for part in parts}:  # one part decides, whatever is missing
        return Outcome(word_of(parts, claim.some), ". ".join([*said, *lacks]) + ".")
    alike = len({*missing.values()}) == 1 and len(missing) == len(plans)
    return next(iter(missing.values())) if alike else "; ".join(lacks)


def missing_of(claim: Trained, plan: "Plan") -> str:
    """Why the study of a plan, resolved, does not answer yet; empty where it does."""
    if not (folder_of(plan) / "study.yaml").is_file():
        return "not run"
    results = _load(plan)
    wanted = _asked_about(claim, plan)
    seeds = max(results.plan.seeds, SEEDS)
    trials = [trial for trial in results.trials if trial.candidate in wanted]
    if other := _otherwise(results.plan, plan):
        return f"run otherwise than asked ({other})"
    if failed := [trial for trial in trials if trial.status == "failed"]:
        return f"open: {failed[0].candidate} failed under seed {failed[0].seed}"
    done = sum(trial.status == "done" for trial in trials)
    if done == len(wanted) * seeds:
        return ""
    return f"partly run: {done} of {len(wanted) * seeds} trials" if done else "not run"


def _asked_about(claim: Trained, plan: "Plan") -> tuple[str, ...]:
    """The candidates that a claim needs, by their names in a study."""
    if not isinstance(claim.asks, tuple):
        return plan.blocks
    return tuple(dict.fromkeys(name for pair in claim.asks for name in (pair.first, pair.second)))


def _otherwise(made: "Plan", asked: "Plan") -> str:
    """What of a study decides its numbers and is not what its plan asks for."""
    from lookfar.study.continuing import plan_differences

    found = plan_differences(made.to_dict(), asked)
    return "; ".join(text for text in found if text.partition(":")[0] not in ANY_MACHINE)


def _load(plan: "Plan") -> "Results":
    from lookfar.study import load

    return load(folder_of(plan), margin=plan.margin)


def _command(path: Path) -> list[str]:
    from lookfar.study.plan import Plan

    return ["study", _near(path), "--out", str(folder_of(Plan.load(path)))]


def _near(path: Path) -> str:
    """A path from here, where it lies below; else as it is."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)

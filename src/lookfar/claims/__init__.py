"""Claims of papers that a run can refute: one file a claim, with what it says, whence, and what would refute it.

They stand in the package, not beside it, so that whoever installs lookfar can run them: ``lookfar claims c3``. A claim
that does not come out is reported as it came out.
"""

from importlib import import_module

from lookfar._options import choice
from lookfar.claims._claim import Claim, Outcome

# closed forms and counts, seconds each
EXACT = ("c3", "c4", "c9", "c10", "c14", "c20", "c25", "c26", "c27")
# trainings of minutes, which no command makes yet
SMALL = {
    "c1": "non-local maps degenerate to one map for all queries",
    "c2": "joint, pairwise, unary and no attention: 78.5, 77.5, 79.3 and 75.8 mIoU on Cityscapes",
    "c5": "the pairwise map follows classes, the unary map boundaries",
    "c6": "four pairwise functions do alike",
    "c11": "EM with 1, 2, 3 and 6 iterations",
    "c12": "queries and keys of one projection",
    "c13": "the graph step, on and off",
    "c16": "double normalisation against softmax",
    "c21": "no projections inside",
    "c23": "which normalisation",
}
# configurations for whoever has a GPU; no toy data may stand for them
LARGE = {
    "c7": "which stage, and how many blocks",
    "c8": "against 3-D convolutions",
    "c15": "relative positions in stand-alone attention, and its stem",
    "c17": "one head against several",
    "c18": "batch norm against layer norm",
    "c19": "denoising against attacks",
    "c22": "token mixers",
    "c24": "3 x 3 convolutions replaced at like accuracy",
}


def claim_of(name: str) -> Claim:
    """What a claim says.

    Raises:
        ValueError: No such claim, or one that no command decides.

    >>> claim_of("c10").says[:27]
    'Work grows with N positions'
    """
    return import_module(f"lookfar.claims.{_known(name)}").CLAIM


def run_claim(name: str) -> Outcome:
    """What a run finds.

    Raises:
        ValueError: No such claim, or one that no command decides.

    >>> run_claim("c26").word
    'refuted'
    """
    return import_module(f"lookfar.claims.{_known(name)}").run()


def _known(name: str) -> str:
    if name in SMALL or name in LARGE:
        how = "a small training" if name in SMALL else "more than a CPU"
        raise ValueError(f"{name} ({(SMALL | LARGE)[name]}) needs {how}: no command decides it yet")
    choice("claim", name, EXACT)
    return name


def document(outcomes: dict[str, Outcome]) -> str:
    """``docs/claims.md`` from what runs found.

    >>> document({}).splitlines()[0]
    '# Claims of papers, and what runs say'
    """
    from lookfar._tables import markdown_table

    rows = []
    for name, outcome in outcomes.items():
        claim = claim_of(name)
        rows.append([name, claim.says, claim.source, claim.refuted_by, f"**{outcome.word}**: {outcome.found}"])
    left = [[name, what, "not run: a small training"] for name, what in SMALL.items()]
    left += [[name, what, "open: needs more than a CPU"] for name, what in LARGE.items()]
    return "\n".join(
        [
            "# Claims of papers, and what runs say",
            "",
            "Made by `lookfar claims --out docs/claims.md`: closed forms, counts and gradients at random weights, "
            "seconds each, also in the test suite. A hypothesis is the paper's sentence made so sharp that a run can "
            "refute it; a file of `lookfar.claims` each. What a claim says of training is not decided here.",
            "",
            markdown_table(["", "hypothesis", "source", "what would refute it", "outcome"], rows),
            "",
            "## Not decided here",
            "",
            markdown_table(["", "claim", ""], left),
            "",
        ]
    )

"""Claims of papers that a run can refute: one file a claim, with what it says, its source, and what would refute it.

They stand in the package, not beside it, so that whoever installs lookfar can run them: ``lookfar claims c3``. A claim
that does not come out is reported as it came out.
"""

from importlib import import_module

from lookfar._options import choice
from lookfar.claims._claim import Claim, Outcome
from lookfar.claims.trained import SMALL, TABLE, data_of, known, outcome_of, table_rows

# closed forms and counts, seconds each
EXACT = ("c3", "c4", "c9", "c10", "c14", "c20", "c25", "c26", "c27")
MAPS = (
    "The blocks of c1, trial by trial: the score, what is left of it when the map gives way to another one or the "
    "block is switched off, and what the maps are like, means over all validation images "
    "([diagnostics](diagnostics.md))."
)
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
ON_SCENES = {"c17": "mixers.md", "c18": "mixers.md", "c22": "mixers.md", "c24": "layers.md"}  # which decides none


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
    if name in SMALL:
        raise ValueError(f"{name} needs small trainings: `lookfar claims {name}` says which")
    if name in LARGE:
        raise ValueError(f"{name} ({LARGE[name]}) needs more than a CPU: no command decides it")
    choice("claim", name, EXACT)
    return name


def document(outcomes: dict[str, Outcome], before: str = "") -> str:
    """``docs/claims.md`` from what runs found.

    Args:
        outcomes: Of claims that take seconds, by name.
        before: The page as it was: what it says of a claim by trainings stays where these are not all here.

    >>> document({}).splitlines()[0]
    '# Claims of papers, and what runs say'
    """
    from lookfar._tables import markdown_table

    rows = []
    for name, outcome in outcomes.items():
        claim = claim_of(name)
        rows.append([name, claim.says, claim.source, claim.refuted_by, f"**{outcome.word}**: {outcome.found}"])
    trained = []
    for name, claim in SMALL.items():
        asked = [name, claim.says, claim.source, claim.refuted_by, data_of(name)]
        trained.append([*asked, outcome_of(name, "**", known(before, asked))])
    maps = [row for name in SMALL for row in table_rows(name, before)]
    seen = {name: f"; [what was seen on scenes]({page})" for name, page in ON_SCENES.items()}
    left = [[name, what, f"open: needs more than a CPU{seen.get(name, '')}"] for name, what in LARGE.items()]
    return "\n".join(
        [
            "# Claims of papers, and what runs say",
            "",
            "Made by `lookfar claims --out docs/claims.md`: closed forms, counts and gradients at random weights, "
            "seconds each, also in the test suite. A hypothesis is the paper's sentence made so sharp that a run can "
            "refute it; a file of `lookfar.claims` each. Claims on trained blocks stand below.",
            "",
            markdown_table(["", "hypothesis", "source", "what would refute it", "outcome"], rows),
            "",
            "## By small trainings",
            "",
            "Studies of three seeds, whose plans come with the package: `lookfar claims c6 --train` runs them, into a "
            "folder of `runs/claims` for each data set, and the page is made from their files; where runs are not "
            "complete, what it said before stays. Differences are paired by seed and image, with 95 % intervals that "
            "hold together for all differences of a claim (those of ten claims do not); by the margin of half a point "
            "at most is not better and not worse. Where a claim has several parts all must hold, and one that does "
            "not refutes it; of c23 one is enough. Small scenes decide questions of small scenes: nothing here is a "
            "paper's result on its own data.",
            "",
            markdown_table(["", "hypothesis", "source", "what would refute it", "on", "outcome"], trained),
            "",
            *([MAPS, "", markdown_table(TABLE, maps), ""] if maps else []),
            "## Not decided here",
            "",
            markdown_table(["", "claim", ""], left),
            "",
        ]
    )

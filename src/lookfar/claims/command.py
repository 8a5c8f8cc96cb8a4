"""What `lookfar claims` does once its options are parsed."""

from collections.abc import Sequence
from pathlib import Path

from lookfar.claims import EXACT, SMALL, claim_of, document, run_claim
from lookfar.claims.trained import lines_of
from lookfar.claims.trained import train as train_all


def claims_command(names: Sequence[str], out: Path | None, *, train: bool = False, workers: int | None = None) -> int:
    """Print what came of claims, and write the page of all.

    Args:
        names: Claims; without them those that take seconds.
        out: Of the page.
        train: Run the trainings that claims need first.
        workers: Trainings side by side.

    Returns:
        0; 1 where a training failed, 130 where it was stopped.
    """
    from lookfar.study._files import write_text
    from lookfar.study.command import STOPPED

    status = 0
    if names and out is not None:
        raise ValueError("--out writes the page of all claims: leave the names out")
    for name in names or EXACT:
        if name not in SMALL:
            claim_of(name)  # refuse all before one is run
    if workers is not None and not train:
        raise ValueError("--workers is of trainings: want --train too")
    if train:
        wanted = [name for name in names if name in SMALL]
        if not wanted or len(wanted) < len(names):
            raise ValueError(f"--train wants claims that need trainings, some of {', '.join(SMALL)}")
        status = train_all(wanted, workers)
        if status == STOPPED:
            return status
    outcomes = {}
    for name in names or EXACT:
        if name in SMALL:
            print("\n".join(lines_of(name)), flush=True)
            continue
        outcomes[name] = run_claim(name)
        print(f"{name}  {claim_of(name).says}\n    {outcomes[name].word}: {outcomes[name].found}", flush=True)
    if out is not None:
        write_text(out, document(outcomes, out.read_text(encoding="utf-8") if out.is_file() else ""))
    return status

"""A trained network comes out of its trial's folder: built as it was, with its weights, its data and its blocks.

Nothing is downloaded, and files of the user's own are read as they were when the study began. Data that have moved are
looked for where the study last found them; what needs none of their images does with what the study wrote down of them.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lookfar._options import nearest
from lookfar.study._files import read_if_whole, read_json
from lookfar.study.candidates import Candidate, is_reference, short_name
from lookfar.study.continuing import asked_of_data, kept_plan, moved
from lookfar.study.mending import WEIGHTS, read_state
from lookfar.study.plan import Plan
from lookfar.study.rows import Trial

if TYPE_CHECKING:
    from torch import nn

    from lookfar.data import Data


SIMPLIFIED = "simplified.json"  # of a folder that holds what was made of a trial: which trial that is, and its numbers


class TrainedNetwork(NamedTuple):
    """What a trial made.

    Attributes:
        network: In evaluation, on the CPU; images ``(B, in_chans, H, W)`` as ``data.normalise`` gives them to logits.
        data: What it was trained on.
        blocks: Names of the inserted blocks in the network; none for the baseline.
    """

    network: "nn.Module"
    data: "Data"
    blocks: tuple[str, ...]


def load_trial(folder: str | Path, *, data: "str | Path | Data | None" = None, images: bool = True) -> TrainedNetwork:
    """The trained network of a trial.

    Args:
        folder: Of the trial, ``STUDY/trials/CANDIDATE/SEED``, or what ``lookfar simplify`` wrote.
        data: Where the data lie now, as the plan would write it, or opened; by default where the study read them.
        images: Whether images are needed. Without, data that are not there are what the study wrote down of them:
            size, bands, classes, mean and deviation, and no samples.

    Raises:
        FileNotFoundError: No trial there, or no data.
        ValueError: The trial is not finished, its weights are damaged, or the data have other classes.
    """
    folder = Path(folder)
    folder = Path(folder, read_json(folder / SIMPLIFIED).get("trial", ""))
    config = _config_of(folder)
    plan, study = Plan.from_dict(config["plan"]), folder.resolve().parents[2]
    state = read_state(folder, plan.find_task(study))
    if not state.done or WEIGHTS in state.damaged or not (folder / WEIGHTS).is_file():
        raise ValueError(_why_not(folder, state.result.get("status"), str(state.result.get("reason") or "")))

    import torch

    from lookfar.data import Data
    from lookfar.study.build import build_host, open_plan_data, put_in
    from lookfar.tasks import Segmentation
    from lookfar.training.checkpoints import load_tensors

    # what it started from is overwritten, and need not be there any more
    plan = replace(plan, pretrained=False, host_weights=None)
    if data is None:
        data = _data_of(plan, study, images)
    elif not isinstance(data, Data):
        data = open_plan_data(replace(plan, data=str(data)))
    candidate, seed, controls = Candidate.parse(config["candidate"]), config["seed"], config["control_parameters"]
    _check_classes(data.classes, read_json(study / "environment.json"), folder)
    with torch.random.fork_rng(devices=[]):
        network = build_host(plan, data, seed, study=study)
        names = put_in(network, plan, candidate, data, seed, control_parameters=controls, study=study)
    network.load_state_dict(load_tensors(folder / WEIGHTS))
    if isinstance(plan.find_task(study), Segmentation):
        _surround(network, data)
    return TrainedNetwork(network.eval(), data, tuple(names))


class _NoSamples:
    """Stands for images that are not there.

    Args:
        peak: What is white in such images, as :func:`lookfar.use.opening.peak_of` asks of a set.
    """

    names: tuple[str, ...] = ()

    def __init__(self, peak: float | None) -> None:
        self.peak = peak

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int, /) -> Any:
        raise IndexError("the images of the trial are not there")


def _data_of(plan: Plan, study: Path, images: bool) -> "Data":
    """The data of a trial, where its plan says or where the study found them since."""
    from lookfar.study.build import open_plan_data

    kept = kept_plan(study)
    now = plan if kept is None else replace(plan, **{**asked_of_data(kept), "host_weights": None})
    for where in (plan, now):
        with contextlib.suppress(FileNotFoundError):
            return open_plan_data(where)
    described = None if images else _described(read_json(study / "environment.json").get("data", {}))
    if described is None:
        raise moved(now.data, study)
    return described


def _described(facts: Mapping[str, Any]) -> "Data | None":
    """Data without samples from what ``environment.json`` says of them; None where an earlier version wrote it."""
    from lookfar.data import Data

    if "mean" not in facts:
        return None
    nothing = _NoSamples(facts["peak"])
    numbers: dict[str, Any] = {name: tuple(facts[name]) for name in ("size", "mean", "std")}
    same = {name: facts[name] for name in ("name", "classes", "in_chans", "question", "target", "ordered")}
    return Data(train=nothing, val=nothing, **same, **numbers)


def _surround(network: Any, data: "Data") -> None:
    """What :func:`lookfar.networks.predict` asks of a network, as the data have it."""
    from lookfar.networks import Inference, Preprocessing

    height, width = data.size
    network.preprocessing = Preprocessing(data.mean, data.std, peak=1.0, size=(height, width))
    network.inference = Inference()
    if not hasattr(network, "align_corners"):
        network.align_corners = False
    network.class_names, network.palette = tuple(data.classes), ()


def trial_in(folder: str | Path) -> Path | None:
    """The folder of a trial: this one, a study's only one, or what ``lookfar simplify`` made; None where it is neither.

    Raises:
        ValueError: A study with another number of trials than one.
    """
    folder = Path(folder)
    if simple := read_json(folder / SIMPLIFIED).get("trial"):  # of a network there is none
        return folder / simple
    if (folder / "study.yaml").is_file():
        trials = _trials_of(folder)
        if len(trials) == 1:
            return trials[0]
        raise ValueError(f"{folder} is a study with {len(trials)} trials: give one of them{_such(trials)}")
    # a network that was saved by itself has a config.json too
    return folder if (folder / "config.json").is_file() and not (folder / "model.safetensors").is_file() else None


def _trials_of(study: Path) -> list[Path]:
    return sorted(path.parent for path in study.glob("trials/*/*/config.json"))


def _such(trials: Sequence[Path]) -> str:
    """An example of them: a finished one with a block, if there is one, since that is what most commands want."""

    def rank(trial: Path) -> tuple[bool, bool]:
        done = read_if_whole(trial / "result.json").get("status") == "done"
        return not done, is_reference(str(read_if_whole(trial / "config.json").get("candidate", "baseline")))

    return f", such as {min(trials, key=rank)}" if trials else ""


def find_trial(trials: Sequence[Trial], candidate: str, seed: int) -> Path:
    """The folder of a finished trial, from what a user calls its candidate.

    Raises:
        ValueError: No such candidate or seed, or a trial that is not done.
    """
    names = list(dict.fromkeys(trial.candidate for trial in trials))
    name = _called(candidate, names)
    for trial in trials:
        if (trial.candidate, trial.seed) == (name, seed):
            return Path(trial.folder)
    seeds = sorted({trial.seed for trial in trials if trial.candidate == name})
    raise ValueError(f"{name} has seeds {', '.join(map(str, seeds))}, got {seed!r}")


def how_to_load(study: Path, trials: Sequence[Trial], order: Sequence[str], *, classes: bool = True) -> str:
    """Three lines that load the network of the best candidate's first finished trial and use it; empty without one.

    Args:
        study: The folder.
        trials: Of the study.
        order: The candidates, best first.
        classes: Whether outputs are logits of classes.
    """
    done = sorted((t for t in trials if t.status == "done"), key=lambda t: (order.index(t.candidate), t.seed))
    if not done:
        return ""
    candidate, seed = done[0].candidate, done[0].seed
    return (
        "from lookfar import study\n"
        f"network, data, blocks = study.load({str(study)!r}).network({candidate!r}, seed={seed})\n"
        f"predicted = network(next(data.val_batches(4))[0]){'.argmax(1)' if classes else ''}"
    )


def _called(candidate: str, names: Sequence[str]) -> str:
    if candidate in names:
        return candidate
    try:
        canonical = str(Candidate.parse(candidate))
    except (ValueError, TypeError):
        canonical = ""
    if canonical in names:
        return canonical
    short = [name for name in names if short_name(name) == candidate]
    if len(short) == 1:
        return short[0]
    near = nearest(candidate, names)
    hint = f" Did you mean {near}?" if near else ""
    raise ValueError(f"the study has no candidate {candidate!r}; it has {', '.join(names)}.{hint}")


def _config_of(folder: Path) -> dict[str, Any]:
    if (folder / "study.yaml").is_file():
        such = _such(_trials_of(folder))
        raise ValueError(f"{folder} is a study: give one of its trials{such}, or study.load(...).network(...)")
    config = read_json(folder / "config.json")
    if "plan" not in config:
        raise FileNotFoundError(f"no trial in {folder}: want a folder STUDY/trials/CANDIDATE/SEED")
    return config


def _why_not(folder: Path, status: str | None, reason: str) -> str:
    if status == "failed":
        return f"{folder} has no trained network: the trial failed ({reason}); run the study again"
    if status == "done":
        return f"{folder / WEIGHTS} is missing or damaged: run the study again, which trains this trial anew"
    return f"{folder} has no trained network yet: the trial is not finished; run the study again"


def _check_classes(classes: Sequence[str], environment: dict[str, Any], folder: Path) -> None:
    trained = environment.get("data", {}).get("classes")
    if trained and len(trained) != len(classes):
        raise ValueError(f"{folder} was trained on {len(trained)} classes, the data have {len(classes)}")

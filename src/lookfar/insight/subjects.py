"""What is looked at: a trained network, the images that it is shown, and what judges it there.

A network comes out of a trial's folder, of a study's, from whatever else :func:`lookfar.use.open_network` opens, or
from a function of the user's own. It is shown the data of its trial, other data, or images alone, which nothing judges.
"""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lookfar._tables import by_size
from lookfar.data import Data, MemorySamples, open_data
from lookfar.data._base import Samples
from lookfar.study._files import read_json
from lookfar.study.candidates import Candidate, is_reference
from lookfar.study.groups import Groups, groups_of_data
from lookfar.study.plan import Plan, trial_folder
from lookfar.study.trained import load_trial, trial_in
from lookfar.study.words import join
from lookfar.use.opening import Opened, open_network, peak_of
from lookfar.use.reading import find_images, read_image

if TYPE_CHECKING:
    from lookfar.tasks import Task

LARGE = 2**22  # pixels, from which on a user is told that work grows with them
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Shown(Data):
    """Data as a network wants them: ``prepare`` takes the place of the data's own normalisation.

    Attributes:
        prepare: ``(B, C, H, W)`` uint8 to what the network takes; None for the data's own mean and deviation.
        labelled: Whether there is anything to be judged by.
    """

    prepare: Callable[[Tensor], Tensor] | None = None
    labelled: bool = True

    def normalise(self, images: Tensor) -> Tensor:
        """As the network takes them."""
        return super().normalise(images) if self.prepare is None else self.prepare(images)


@dataclass(frozen=True)
class Subject:
    """A network to look at.

    Attributes:
        name: The candidate of a study, or what the network is called.
        network: In evaluation.
        data: Its ``val`` is looked at.
        task: What judges; None without labels.
        groups: Which images belong together.
        untrained: Gives the same network as its training began; None where that is not known.
        margin: Losses within it are practically none.
        score: At which size it is judged, as a plan has it.
        note: What a reader has to know of how it was made.
    """

    name: str
    network: nn.Module
    data: Shown
    task: "Task | None"
    groups: Groups
    untrained: Callable[[], nn.Module] | None = None
    margin: float = 0.5
    score: str = "resized"
    note: str = ""


def find_subjects(
    target: str | None,
    images: Sequence[str] = (),
    *,
    data: str | None = None,
    network: str | None = None,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    margin: float | None = None,
) -> list[Subject]:
    """The networks that a user names.

    Args:
        target: A trial's folder, a study's (all candidates with a block, seed 0), or a network by a name that
            :func:`lookfar.use.open_network` knows.
        images: Files, folders or patterns; instead of data.
        data: As for :func:`lookfar.data.open_data`; by default what a trial was trained on.
        network: ``FILE.py:FUNCTION`` that gives a network, in the place of ``target``.
        weights: The file of its weights, or of those of the network that ``target`` names.
        size: Of the images as the network sees them; by default that of the trial, or of the first image.
        margin: Losses within it are practically none; by default the plan's, or 0.5.

    Raises:
        ValueError: No such network, nothing to look at, no images.
        FileNotFoundError: Nothing there.
    """
    if images and data is not None:
        raise ValueError("give images or --data, not both: images have no labels, data have")
    if network is not None:
        built = _own(network, weights)
        seen = _seen(images, data, size, _bands(built))
        return [_subject(network.rpartition(":")[2], built, seen, data, margin)]
    if target is None:
        raise ValueError("name a trial's folder, a study's or a published file, or give --network FILE.py:FUNCTION")
    path = Path(target)
    if weights is None and (path / "study.yaml").is_file():
        return _of_study(path, images, data, size, margin)
    if weights is None and (trial := trial_in(path)) is not None:
        return [_of_trial(trial, images, data, size, margin)]
    opened = open_network(target) if weights is None else _by_name(target, weights, data)
    network_there = opened.network.cpu()
    seen = _seen(images, data, size, _bands(network_there))
    return [_subject(path.stem, network_there, seen, data, margin, opened=opened)]


def _by_name(name: str, weights: str, data: str | None) -> Opened:
    """A network by its name, with as many classes as it says, or as the data have."""
    try:
        return open_network(name, weights=weights)
    except ValueError as error:
        if "number of classes" not in str(error):
            raise
        if data is None:
            raise ValueError(f"{error}: --data says it, or leave the name out and give {weights} itself") from None
    return open_network(name, weights=weights, num_classes=len(open_data(data).classes))


def _bands(network: nn.Module) -> int:
    """Of the images that a network takes: those of its first convolution, 3 where that says nothing."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.groups == 1 else 3


def _seen(images: Sequence[str], data: str | None, size: tuple[int, int] | None, bands: int) -> Data:
    if data is not None:
        return open_data(data, size=size, in_chans=bands)
    if not images:
        raise ValueError("nothing to look at: give images, a folder of them, or --data")
    return of_images(images, size, bands)


def _subject(
    name: str, network: nn.Module, seen: Data, data: str | None, margin: float | None, *, opened: Opened | None = None
) -> Subject:
    """A network that no plan describes."""
    from lookfar.use.evaluating import check_classes

    prepare = getattr(network, "preprocessing", None)
    shown = _shown(seen, prepare, opened.classes if opened is not None and data is None else None)
    notes = check_classes(opened, shown.classes) if opened is not None and data is not None else []
    if prepare is None and not shown.labelled:
        notes.append(f"images are normalised by {_rounded(shown)}")
    groups = groups_of_data(_names(shown), data or "", classes=getattr(shown, "target", "mask") == "class")
    margin = 0.5 if margin is None else margin
    return Subject(name, network.eval(), shown, _judge(shown), groups, None, margin, note="; ".join(notes))


def _names(shown: Data) -> list[str]:
    return [str(name) for name in shown.val.names]


def _rounded(shown: Shown) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (shown.mean, shown.std))
    return f"mean {mean} and deviation {std} of [0, 1]"


def _judge(shown: Shown) -> "Task | None":
    from lookfar.tasks import find_task

    if not shown.labelled:
        return None
    return find_task("classification" if getattr(shown, "target", "mask") == "class" else "segmentation")


def _own(network: str, weights: str | None) -> nn.Module:
    from lookfar.blocks._own import find_own, parse_address

    address = parse_address(network)
    if address is None:
        raise ValueError(f"want --network FILE.py:FUNCTION, got {network!r}")
    built = replace(find_own(address), channels_argument=None).build(0)  # a network, whose channels are its own
    if weights is not None:
        _load(built, weights, network)
    return built


def _load(network: nn.Module, weights: str, called: str) -> None:
    """Weights of a whole network, in which blocks may be under their authors' names."""
    from lookfar.diagnostics import blocks_of
    from lookfar.weights import load
    from lookfar.weights.files import content, unwrapped

    state, own = unwrapped(content(Path(weights)), of=weights), network.state_dict()
    of_blocks = [f"{name}." for name in blocks_of(network) if name and state.keys() != own.keys()]
    for prefix in of_blocks:
        try:
            load(network.get_submodule(prefix[:-1]), state, prefix=prefix)
        except ValueError as error:
            raise ValueError(f"{weights} does not fit {called}: {str(error).splitlines()[0]}") from None
    inside = tuple(of_blocks)
    rest = {key: value for key, value in state.items() if not key.startswith(inside)}
    missing = [key for key in own.keys() - rest.keys() if not key.startswith(inside)]
    missing = sorted(key for key in missing if not key.endswith("num_batches_tracked"))
    unknown = sorted(rest.keys() - own.keys())
    unlike = [key for key in rest.keys() & own.keys() if rest[key].shape != own[key].shape]
    if missing or unknown or unlike:
        first = [*missing, *unknown, *unlike][0]
        raise ValueError(
            f"{weights} does not fit {called}: {len(missing)} weights are missing, {len(unknown)} unknown, "
            f"{len(unlike)} of another shape, such as {first}"
        )
    network.load_state_dict(rest, strict=False)


def _of_study(
    study: Path, images: Sequence[str], data: str | None, size: tuple[int, int] | None, margin: float | None
) -> list[Subject]:
    plan = Plan.load(study / "study.yaml")
    folders = {name: trial_folder(study, name, 0) for name in plan.candidates if not is_reference(name)}
    done = [folder for folder in folders.values() if _is_done(folder)]
    if not done:
        raise ValueError(f"{study} has no finished trial with a block at seed 0")
    if left := [name for name, folder in folders.items() if not _is_done(folder)]:
        warnings.warn(f"{join(left)}: not finished at seed 0, so not shown", stacklevel=3)
    first = _of_trial(done[0], images, data, size, margin)
    return [first, *(_of_trial(folder, images, data, size, margin, opened=first.data) for folder in done[1:])]


def _is_done(trial: Path) -> bool:
    return read_json(trial / "result.json").get("status") == "done"


def _of_trial(
    folder: Path,
    images: Sequence[str],
    data: str | None,
    size: tuple[int, int] | None,
    margin: float | None,
    opened: Shown | None = None,
) -> Subject:
    """A trial's network, judged by its task on its data."""
    trained = load_trial(folder, data=opened if data is None else data, images=not images)
    own, study, config = trained.data, folder.resolve().parents[2], read_json(folder / "config.json")
    plan, candidate, seed = Plan.from_dict(config["plan"]), Candidate.parse(config["candidate"]), config["seed"]
    if is_reference(config["candidate"]):
        raise ValueError(f"{folder} is the trial of a network without a block of the registry")
    seen = opened or own
    if size is not None and tuple(size) != tuple(own.size) and not images:
        raise ValueError(f"a trial sees its data at {by_size(own.size)}: --size is for images")
    if images and opened is None:
        seen = of_images(images, size or (own.size[0], own.size[1]), own.in_chans, peak=peak_of(own))
        seen = replace(seen, mean=own.mean, std=own.std, classes=own.classes)
    shown = seen if isinstance(seen, Shown) else _shown(seen, None, None, labelled=not images)

    def untrained() -> nn.Module:
        from lookfar.study.build import build_host, put_in

        start = config.get("initial_seed", seed)  # a simplified network is seed 0 of its study, whatever it was before
        bare = replace(plan, pretrained=False, host_weights=None)
        with torch.random.fork_rng(devices=[]):
            network = build_host(bare, own, start, study=study)
            controls = config["control_parameters"]
            put_in(network, bare, candidate, own, start, control_parameters=controls, study=study)
        return network.eval()

    started = plan.pretrained or plan.host_weights is not None
    note = "at initialisation the host is random too, where training began from its weights" if started else ""
    task = plan.find_task(study) if shown.labelled else None
    margin = plan.margin if margin is None else margin
    # the pattern of a plan is for the names of its own images, wherever these lie now
    theirs = read_json(study / "environment.json").get("data", {}).get("val_names")
    same = not images and (data is None or _names(shown) == theirs)
    of_data, pattern = (plan.data, plan.groups) if same else (data or "", None)
    groups = groups_of_data(_names(shown), of_data, pattern, classes=plan.task == "classification")
    name: str = config["candidate"]
    return Subject(name, trained.network, shown, task, groups, untrained, margin, plan.score, note)


def _shown(
    data: Data,
    prepare: Callable[[Tensor], Tensor] | None,
    classes: Sequence[str] | None,
    *,
    labelled: bool | None = None,
) -> Shown:
    if isinstance(data, Shown):
        return replace(data, prepare=prepare or data.prepare, classes=[*(classes or data.classes)])
    values: dict[str, Any] = {field.name: getattr(data, field.name) for field in fields(data) if field.init}
    return Shown(**values, prepare=prepare, labelled=labelled is not False)


# ---- images without labels -------------------------------------------------------------------------------------------


def of_images(
    paths: Sequence[str], size: tuple[int, int] | None = None, in_chans: int = 3, *, peak: float | None = None
) -> Shown:
    """Images by themselves, of one size: the given one, or that of the first.

    Args:
        paths: Files, folders of them, or patterns.
        size: Height and width that all are brought to.
        in_chans: Bands.
        peak: As for :func:`lookfar.use.read_image`.

    Raises:
        ValueError: No image there, or one that cannot be read.
        FileNotFoundError: No such file.
    """
    from torchvision.transforms.v2 import functional as TF

    files = find_images([*paths])
    images = []
    for file in files:
        image = read_image(file, in_chans, peak=peak)
        if size is None:
            size = (image.shape[1], image.shape[2])
            if math.prod(size) > LARGE:
                warnings.warn(f"images of {by_size(size)}: --size {_smaller(size)} takes far less time", stacklevel=2)
        same = tuple(image.shape[1:]) == tuple(size)
        images.append(image if same else TF.resize(image, [*size], antialias=True))
    assert size is not None
    stacked = torch.stack(images)
    void = torch.full((len(images), *size), 255, dtype=torch.uint8)
    mean, std = (IMAGENET[0][:in_chans], IMAGENET[1][:in_chans]) if in_chans == 3 else ((0.5,) * in_chans,) * 2
    samples: Samples = MemorySamples(stacked, void, names_of(files))
    return Shown(
        name="images", train=samples, val=samples, classes=[], in_chans=in_chans, size=tuple(size), mean=mean, std=std,
        question="", labelled=False,
    )  # fmt: skip


def _smaller(size: tuple[int, int]) -> str:
    """A size of about a quarter of a million pixels in the same proportions, in whole strides."""
    scale = (LARGE / 16 / math.prod(size)) ** 0.5
    return "x".join(str(max(32 * round(side * scale / 32), 32)) for side in size)


def names_of(files: Sequence[Path]) -> list[str]:
    """What files are called, each by another name: where two share one, by their folders from where they part.

    >>> names_of([Path("a/1.png"), Path("a/2.png")]), names_of([Path("x/a/1.png"), Path("x/b/1.png")])
    (['1.png', '2.png'], ['a/1.png', 'b/1.png'])
    """
    names = [file.name for file in files]
    if len(set(names)) == len(names):
        return names
    whole = [file.absolute() for file in files]
    shared = os.path.commonpath(whole)
    return [file.relative_to(shared).as_posix() for file in whole]

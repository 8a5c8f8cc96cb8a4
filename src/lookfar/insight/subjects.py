"""What is looked at: a trained network, the images that it is shown, and what judges it there.

A network comes out of a trial's folder, of a study's, out of a published file, or from a function of the user's own. It
is shown the data of its trial, other data, or images alone, which nothing judges.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lookfar.data import Data, MemorySamples, open_data
from lookfar.data._base import Samples
from lookfar.study._files import read_json
from lookfar.study.candidates import Candidate
from lookfar.study.groups import Groups, groups_of, known_pattern
from lookfar.study.plan import Plan, trial_folder
from lookfar.study.trained import load_trial

if TYPE_CHECKING:
    from lookfar.tasks import Task

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
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
        target: A trial's folder, a study's (all candidates with a block, seed 0), or a published file.
        images: Files or folders of images; instead of data.
        data: As for :func:`lookfar.data.open_data`; by default what a trial was trained on.
        network: ``FILE.py:FUNCTION`` that gives a network, in the place of ``target``.
        weights: Its file of weights.
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
        return [_subject(network.rpartition(":")[2], built, _seen(images, data, size, _bands(built)), margin)]
    if target is None:
        raise ValueError("name a trial's folder, a study's or a published file, or give --network FILE.py:FUNCTION")
    path = Path(target)
    if (path / "study.yaml").is_file():
        return _of_study(path, images, data, size, margin)
    if (path / "config.json").is_file():
        return [_of_trial(path, images, data, size, margin)]
    if path.is_dir():
        raise ValueError(f"{path} is no study and no trial: want study.yaml or config.json in it")
    if not path.is_file() and not target.startswith("https://"):
        raise FileNotFoundError(f"no trial, study or file {target!r}")
    from lookfar.networks import from_checkpoint

    found: Any = from_checkpoint(target)
    recognised = getattr(found, "recognised", None)
    names = recognised.arguments.get("class_names") if recognised else None
    return [_subject(path.stem, found, _seen(images, data, size, _bands(found)), margin, classes=names)]


def _bands(network: nn.Module) -> int:
    """Of the images that a network takes: those of its first convolution, 3 where that says nothing."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.groups == 1 else 3


def _seen(images: Sequence[str], data: str | None, size: tuple[int, int] | None, bands: int) -> Data:
    if data is not None:
        return open_data(data) if data.startswith("scenes:") else open_data(data, size=size, in_chans=bands)
    if not images:
        raise ValueError("nothing to look at: give images, a folder of them, or --data")
    return of_images(images, size, bands)


def _subject(
    name: str, network: nn.Module, seen: Data, margin: float | None, *, classes: Sequence[str] | None = None
) -> Subject:
    """A network that no plan describes."""
    prepare = getattr(network, "preprocessing", None)
    shown = _shown(seen, prepare, classes)
    note = "" if prepare is not None or shown.labelled else f"images are normalised by {_rounded(shown)}"
    groups = _groups_of(shown, None, seen.name)
    return Subject(
        name, network.eval(), shown, _judge(shown), groups, None, 0.5 if margin is None else margin, note=note
    )


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
    built = find_own(address).make()
    if not isinstance(built, nn.Module):
        raise ValueError(f"{network} gives {type(built).__name__}, want a torch.nn.Module")
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
    blocks = [name for name in plan.candidates if not name.startswith(("baseline", "control"))]
    folders = [trial_folder(study, name, 0) for name in blocks]
    done = [folder for folder in folders if read_json(folder / "result.json").get("status") == "done"]
    if not done:
        raise ValueError(f"{study} has no finished trial with a block at seed 0")
    first = _of_trial(done[0], images, data, size, margin)
    return [first, *(_of_trial(folder, images, data, size, margin, opened=first.data) for folder in done[1:])]


def _of_trial(
    folder: Path,
    images: Sequence[str],
    data: str | None,
    size: tuple[int, int] | None,
    margin: float | None,
    opened: Shown | None = None,
) -> Subject:
    """A trial's network, judged by its task on its data."""
    config = read_json(folder / "config.json")
    plan, candidate, seed = Plan.from_dict(config["plan"]), Candidate.parse(config["candidate"]), config["seed"]
    if candidate.name in ("baseline", "control"):
        raise ValueError(f"{folder} is the trial of a network without a block of the registry")
    if size is not None and size != plan.size and not images:
        raise ValueError(f"a trial sees its data at {plan.size or 'their own size'}: --size is for images")
    trained = load_trial(folder, data=opened if data is None else data)
    seen = opened or trained.data
    if images and opened is None:
        own = trained.data
        height, width = own.size
        seen = of_images(images, (height, width), own.in_chans)
        seen = replace(seen, mean=own.mean, std=own.std, classes=own.classes)
    shown = seen if isinstance(seen, Shown) else _shown(seen, None, None, labelled=not images)
    study = folder.resolve().parents[2]

    def untrained() -> nn.Module:
        from lookfar.study.build import build_host, put_in

        bare = replace(plan, pretrained=False, host_weights=None)
        with torch.random.fork_rng(devices=[]):
            network = build_host(bare, trained.data, seed, study=study)
            controls = config["control_parameters"]
            put_in(network, bare, candidate, trained.data, seed, control_parameters=controls, study=study)
        return network.eval()

    started = plan.pretrained or plan.host_weights is not None
    note = "at initialisation the host is random too, where training began from its weights" if started else ""
    task = plan.find_task(study) if shown.labelled else None
    margin = plan.margin if margin is None else margin
    groups = _groups_of(shown, plan.groups, plan.data)
    name: str = config["candidate"]
    return Subject(name, trained.network, shown, task, groups, untrained, margin, plan.score, note)


def _groups_of(shown: Shown, pattern: str | None, data: str) -> Groups:
    """Which images belong together, as a study of the same data has it."""
    names = [str(name) for name in shown.val.names]
    if pattern is not None:
        return groups_of(names, pattern)
    known, noun = known_pattern(data)
    return groups_of(names, known, noun=noun)


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


def of_images(paths: Sequence[str], size: tuple[int, int] | None = None, in_chans: int = 3) -> Shown:
    """Images by themselves, of one size: the given one, or that of the first.

    Args:
        paths: Files, or folders of them.
        size: Height and width that all are brought to.
        in_chans: Bands.

    Raises:
        ValueError: No image there, or one that cannot be read.
        FileNotFoundError: No such file.
    """
    from torchvision.transforms.v2 import functional as TF

    files = _files(paths)
    images = []
    for file in files:
        image = _read(file, in_chans)
        size = size or (image.shape[1], image.shape[2])
        same = tuple(image.shape[1:]) == tuple(size)
        images.append(image if same else TF.resize(image, [*size], antialias=True))
    assert size is not None
    stacked = torch.stack(images)
    void = torch.full((len(images), *size), 255, dtype=torch.uint8)
    mean, std = (IMAGENET[0][:in_chans], IMAGENET[1][:in_chans]) if in_chans == 3 else ((0.5,) * in_chans,) * 2
    samples: Samples = MemorySamples(stacked, void, [file.name for file in files])
    return Shown(
        name="images", train=samples, val=samples, classes=[], in_chans=in_chans, size=tuple(size), mean=mean, std=std,
        question="", labelled=False,
    )  # fmt: skip


def _files(paths: Sequence[str]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            there = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS and file.is_file())
            if not there:
                raise ValueError(f"no images in {path}: want files that end in {', '.join(ENDINGS)}")
            found += there
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"no image {str(path)!r}")
    return found


def _read(file: Path, in_chans: int) -> Tensor:
    from lookfar.data._reading import read_picture, to_bands
    from lookfar.data._stored import turned

    try:
        picture = read_picture(file)
        peak = 255.0 if picture.pixels.dtype.kind != "u" or picture.pixels.itemsize == 1 else 65535.0
        picture = replace(picture, pixels=turned(picture.pixels, picture.turn), turn=1)
        return to_bands(picture, in_chans, peak)
    except Exception as error:  # every library has exceptions of its own for what is damaged
        if isinstance(error, MemoryError):
            raise
        raise ValueError(f"{file} cannot be read as an image: {error}") from None

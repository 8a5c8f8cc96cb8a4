"""A network by what a user calls it: a trial of a study, a published file, a folder of ours, a name with weights."""

import difflib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from lookfar.data import Data


BYTE = 255.0  # the peak of data that hold bytes: it says nothing of others


@dataclass(frozen=True)
class Opened:
    """A network in eval with what surrounds it.

    Attributes:
        network: It has ``preprocessing``, ``inference``, ``class_names`` and ``palette``.
        source: As the user called it.
        classes: Names of the classes; ``class 0`` and so on where none are known.
        named: Whether these names are known.
        palette: Their colours, RGB.
        published: The figure that it was published with, in a sentence; empty where none is known.
        trial: The folder of the trial, for the network of a study.
        data: What that was trained on.
    """

    network: "nn.Module"
    source: str
    classes: tuple[str, ...]
    named: bool
    palette: tuple[tuple[int, int, int], ...]
    published: str = ""
    trial: Path | None = None
    data: "Data | None" = None

    @property
    def peak(self) -> float | None:
        """What is white in images that do not hold bytes, as the trial's data had it; None where they held bytes."""
        return None if self.data is None else peak_of(self.data)


def peak_of(data: "Data") -> float | None:
    """What is white in images like those of a data set that do not hold bytes; None where it held bytes."""
    peak = getattr(data.train, "peak", None)
    return None if peak == BYTE else peak


def open_network(
    source: str | Path,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    data: str | None = None,
    images: bool = True,
) -> Opened:
    """A network, ready to predict.

    Args:
        source: The folder of a trial, or of a study with one; a published file or its address; a folder that
            ``save_pretrained`` wrote, or ``owner/name`` of the hub; a name of :func:`lookfar.list_networks`, with
            ``weights``.
        weights: A file of weights for a name.
        num_classes: For a name that does not say it.
        data: Where the data of a trial lie now, as its plan would write it.
        images: Whether images of these are needed, as for :func:`lookfar.study.load_trial`.

    Raises:
        FileNotFoundError: Nothing is called so.
        ValueError: It is not finished, not a network, or a name without weights.

    >>> from lookfar import create_network
    >>> create_network("cgnet_camvid").save_pretrained("roads")
    >>> open_network("roads").classes[:2]
    ('sky', 'building')
    """
    from lookfar.networks import from_checkpoint, from_pretrained
    from lookfar.study.trained import trial_in

    text, path = str(source), Path(source)
    if weights is not None:
        return _described(_of_name(text, num_classes, weights), text, Path(weights).name)
    if (folder := trial_in(path)) is not None:
        return _of_trial(folder, text, data, images)
    if path.is_dir():
        return _described(from_pretrained(path), text)
    if path.is_file() or "://" in text:
        if path.name == "final.safetensors":
            raise ValueError(f"{text} holds the weights of a trial alone: give its folder, {path.parent}")
        return _described(from_checkpoint(text, num_classes=num_classes), text, path.name)
    if _is_name(text):
        raise ValueError(f"{text} is the name of a network without weights: give its weights, or a file, or a trial")
    if text.count("/") == 1 and not text.startswith((".", "/", "~")) and not path.suffix:
        return _described(from_pretrained(text), text)
    raise FileNotFoundError(f"no network {text}: want a file, a trial's folder, or a name with weights{_near(text)}")


def _of_name(name: str, num_classes: int | None, weights: str | Path) -> Any:
    from lookfar.networks import create_network
    from lookfar.networks.preprocessing import Preprocessing
    from lookfar.weights import load

    if not _is_name(name):
        raise ValueError(f"weights go with the name of a network; {name} is not one{_near(name)}")
    network = create_network(name, num_classes)
    load(network, Path(weights))
    if network.preprocessing == Preprocessing():
        warnings.warn(
            f"what surrounds {name} (mean, channel order, size, tiles, corners) is its default; without the name, "
            f"--network {weights} reads it from the file",
            stacklevel=2,
        )
    return network.eval()


def _is_name(text: str) -> bool:
    from lookfar.networks.creating import is_network

    return is_network(text)


def _near(text: str) -> str:
    from lookfar.networks import list_networks

    near = difflib.get_close_matches(text, filter(_is_name, list_networks()), n=2)
    return f". Did you mean {' or '.join(near)}?" if near else ""


def _of_trial(folder: Path, text: str, data: str | None, images: bool) -> Opened:
    from lookfar.study import load_trial

    trained = load_trial(folder, data=data, images=images)
    network: Any = trained.network
    if not getattr(network, "class_names", None):
        raise ValueError(f"{text} does not give every pixel a class: its task is another one")
    opened = _described(network, text)
    return Opened(opened.network, text, opened.classes, opened.named, opened.palette, "", folder, trained.data)


def _described(network: Any, text: str, file: str = "") -> Opened:
    import torch
    from torch import nn

    from lookfar.study.pictures import class_colours

    if not hasattr(network, "class_names"):
        raise ValueError(f"{text} is a network that does not give every pixel a class")
    names = tuple(network.class_names)
    K = len(names) or _classes_of(network)
    classes = names or tuple(f"class {number}" for number in range(K))
    named = any(name != f"class {number}" for number, name in enumerate(classes))
    colours = [tuple(int(text[i : i + 2], 16) for i in (1, 3, 5)) for text in class_colours(classes)]
    palette = tuple(network.palette) if len(network.palette or ()) == K else tuple(colours)
    assert isinstance(network, nn.Module)
    if torch.cuda.is_available():
        network.cuda()
    return Opened(network.eval(), text, classes, named, palette, _published(network, file))  # type: ignore[arg-type]


def _classes_of(network: Any) -> int:
    """By the shape of what its classifier gives."""
    modules = reversed(list(network.named_modules()))
    return next(module.out_channels for name, module in modules if name.rpartition(".")[2] == "classifier")


def _published(network: Any, file: str) -> str:
    from lookfar.networks.zoo import table

    entry = table().get(file)
    if entry is not None and entry.miou is not None:
        return f"{entry.miou:.2f} mIoU on {entry.dataset}, one scale, by mmsegmentation's table"
    authors = getattr(network, "recognised", None) is not None
    if authors and (getattr(network, "config", None) or {}).get("name") == "cgnet_camvid":
        return (
            "65.6 mIoU on CamVid's 233 test images (65.33 with the authors' code); trained on train and val, "
            "so that figures on those check the code alone"
        )
    return ""

"""A published file into the network that it belongs to.

Traps: no shape tells strides, dilations, recurrence, iterations, temperature, scales of pooling or corners; the wrong
ones load without a complaint and give another network. So each is read where it can be (names and shapes, the
configuration in the file, the file's name), and what had to be assumed is said.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookfar.networks.authors import release_of
from lookfar.networks.cgnet import CGNet
from lookfar.networks.config_text import read_config, unread_in
from lookfar.networks.creating import create_network
from lookfar.networks.mmsegmentation import arguments_of
from lookfar.networks.published import SegmentationNetwork
from lookfar.networks.recognising import seen_in
from lookfar.networks.saving import exchange, read_folder
from lookfar.networks.surroundings import ASSUMED, INFERENCE, PREPROCESSING, said_by_config, said_by_name, surround
from lookfar.networks.tokens_to_token import VISION_TRANSFORMERS, scale_of
from lookfar.networks.zoo import network_of, said_by, table
from lookfar.weights import State, from_inplace_abn, load
from lookfar.weights.files import content, unwrapped

# what no shape tells, by head, and what is assumed where nothing else does
_UNSEEN: dict[str, dict[str, Any]] = {
    "": {"output_stride": 8, "align_corners": False, **ASSUMED},
    "fcn": {"dilation": 1},
    "nonlocal": {"scale": True, "mode": "embedded_gaussian"},
    "dnl": {"temperature": 0.05},
    "ccnet": {"recurrence": 2},
    "emanet": {"iterations": 3},
    "pspnet": {"bins": (1, 2, 3, 6)},
    "ann": {"bins": (1, 3, 6, 8)},
    "deeplabv3": {"dilations": (12, 24, 36)},
    "isanet": {"down_factor": (8, 8)},
    "psanet": {"shrink_factor": 2, "normalization": "softmax"},
}
_OF_CLASSES = ("class_names", "palette", "reduce_zero_label")  # of the file's own classes


@dataclass(frozen=True)
class Recognised:
    """What a file holds, and where that was read.

    Attributes:
        arguments: Of :func:`lookfar.networks.create_network`, ``name`` among them.
        sources: Where each was read: ``given``, ``shapes``, ``authors' code``, ``configuration``, ``file name`` or
            ``default``.
        differs: What two sources say differently, a line each; the first in that order counts.
    """

    arguments: dict[str, Any]
    sources: dict[str, str]
    differs: tuple[str, ...] = ()

    @property
    def assumed(self) -> dict[str, Any]:
        """What nothing tells."""
        return {name: self.arguments[name] for name, source in self.sources.items() if source == "default"}

    def __str__(self) -> str:
        lines = []
        for source in ("given", "shapes", "authors' code", "configuration", "file name", "default"):
            said = [f"{n}={self.arguments[n]!r}" for n, where in self.sources.items() if where == source]
            lines += [f"{source}: {', '.join(said)}"] if said else []
        return "\n".join([*lines, *self.differs])


def from_checkpoint(
    path: str | Path, *, num_classes: int | None = None, drop_classifier: bool = False, **given: Any
) -> SegmentationNetwork | CGNet:
    """The network that a published file belongs to, with its weights, in eval.

    Read in this order: names and shapes; the code of the authors whose names they are; the configuration in the file;
    the file's name, by mmsegmentation's customs; defaults, which a warning names. ``network.recognised`` says what was
    read where.

    Args:
        path: The file, or its address (https), which is downloaded once.
        num_classes: Another number of classes than the file's, with ``drop_classifier``.
        drop_classifier: Leave out the file's classifiers; they stay as they are drawn.
        **given: Arguments of :func:`lookfar.networks.create_network` that are known better.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no weights, or those of a network that is not built here; they do not fit; another number
            of classes without ``drop_classifier``.

    >>> import torch
    >>> torch.save({"state_dict": {"decode_head.lateral_convs.0.conv.weight": torch.zeros(1)}}, "upernet.pth")
    >>> from_checkpoint("upernet.pth")
    Traceback (most recent call last):
    ValueError: upernet.pth: its head is UPerNet, which is not built here
    """
    path = _local(str(path))
    held = content(path)
    state = unwrapped(held, of=str(path))
    try:
        found = recognise(held, path.name, given)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    K = found.arguments["num_classes"]
    if num_classes is not None and num_classes != K and not drop_classifier:
        cure = "drop_classifier=True leaves its classifiers out"
        raise ValueError(f"{path.name} has {K} classes, got num_classes={num_classes}: {cure}")
    if found.assumed:
        assumed = ", ".join(f"{name}={value!r}" for name, value in found.assumed.items())
        warnings.warn(f"{path.name} does not say everything; assumed by default: {assumed}", stacklevel=2)
    for line in found.differs:
        warnings.warn(f"{path.name}: {line}", stacklevel=2)
    arguments = {**found.arguments, "num_classes": num_classes or K}
    if arguments["num_classes"] != K:  # names and colours are of others
        arguments |= {"name": "cgnet"} if arguments["name"] == "cgnet_camvid" else {}
        arguments = {what: value for what, value in arguments.items() if what not in _OF_CLASSES}
    if (release := release_of(state)) is not None and release.inplace_abn:
        state = from_inplace_abn(state)
    network = create_network(**surround(arguments))
    try:
        load(network, _without_classifiers(network, state) if drop_classifier else state)
    except ValueError as error:
        raise ValueError(str(error).replace("these weights", f"the weights of {path.name}", 1)) from None
    network.recognised = found  # type: ignore[assignment]
    return network.eval()


def from_pretrained(source: str | Path, *, revision: str | None = None) -> SegmentationNetwork | CGNet:
    """The network that ``save_pretrained`` or ``push_to_hub`` wrote, in eval.

    Args:
        source: A folder, or a repository ``owner/name`` of the Hugging Face hub, which is downloaded once.
        revision: Of the repository.

    Raises:
        FileNotFoundError: There is neither.
        ValueError: What it holds was not written so.

    >>> create_network("cgnet_camvid").save_pretrained("cgnet")
    >>> from_pretrained("cgnet").class_names[0]
    'sky'
    """
    config, weights = read_folder(source, revision=revision)
    exchanged = config.pop("exchanged", {})
    try:
        network = create_network(**config)
        for name, how in exchanged.items():
            exchange(network, name, how)
    except TypeError as error:  # an option that this version does not know
        raise ValueError(f"{source}: {error}") from None
    load(network, weights)
    return network.eval()


def recognise(held: Any, file_name: str = "", given: Mapping[str, Any] | None = None) -> Recognised:
    """What the contents of a file and its name say about the network; see :func:`from_checkpoint`.

    Raises:
        ValueError: It is no network that is built here.
    """
    shapes = seen_in(unwrapped(held))
    sources, doubt = {"given": dict(given or {}), "shapes": shapes}, ""
    wholes = (("preprocessing", PREPROCESSING), ("inference", INFERENCE))
    hidden = {part for whole, parts in wholes if whole in sources["given"] for part in parts}
    if (release := release_of(unwrapped(held))) is not None:
        sources["authors' code"] = dict(release.arguments)
    elif shapes["name"] in VISION_TRANSFORMERS:
        sources["default"] = scale_of(**{**shapes, **(given or {})})
    elif not shapes["name"].startswith("cgnet"):
        meta = _meta(held)
        unseen = _UNSEEN[""] | _UNSEEN.get(shapes["name"], {})
        configured = _configured(meta, shapes["name"])
        # what the network's configuration does not mention has mmsegmentation's default
        if configured:
            configured = {**{what: value for what, value in unseen.items() if what not in ASSUMED}, **configured}
        sources["configuration"] = configured | _named(meta, shapes["num_classes"])
        sources["file name"], doubt = _from_name(file_name, shapes, unseen)
        sources["default"] = unseen
    arguments: dict[str, Any] = {}
    where: dict[str, str] = {}
    differs = [doubt] if doubt else []
    for source, said in sources.items():
        for name, value in said.items():
            if name in hidden:
                continue
            if name not in arguments:
                arguments[name], where[name] = value, source
            elif arguments[name] != value and source in ("configuration", "file name") and where[name] != "given":
                differs.append(f"{where[name]} say {name}={arguments[name]!r}, {source} {value!r}: the first counts")
    return Recognised(arguments, where, tuple(differs))


def _from_name(file_name: str, shapes: Mapping[str, Any], unseen: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """What a file's name says, and why it is not believed."""
    said, network = said_by(file_name), network_of(file_name)
    depth = int("".join(filter(str.isdigit, shapes["backbone"])))
    if network is not None and network != (shapes["name"], depth):
        says = f"{network[0]} on ResNet-{network[1]}"
        return (
            {},
            f"the file's name says {says}, its weights are {shapes['name']} on ResNet-{depth}: it is not believed",
        )
    # all of the table are built with the defaults, where their names say nothing else
    return ({**unseen, **said} if file_name in table() else said) | said_by_name(file_name), ""


def _meta(held: Any) -> Mapping[str, Any]:
    meta = held.get("meta") if isinstance(held, Mapping) else None
    return meta if isinstance(meta, Mapping) else {}


def _configured(meta: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the configuration says: mmsegmentation's up to 0.x is ``config``, mmengine's is ``cfg``."""
    text = next((meta[key] for key in ("config", "cfg") if isinstance(meta.get(key), str)), None)
    if text is None:
        return {}
    config = read_config(text)
    model = config.get("model")
    if not isinstance(model, dict):
        return {}
    for part in ("backbone", "decode_head", "auxiliary_head"):
        if (unread := unread_in(model.get(part), f"model.{part}")) is not None:
            raise ValueError(f"its configuration would have to be executed: {unread[0]}={unread[1]}")
    found = arguments_of(model)
    if found["name"] != name:
        raise ValueError(f"its configuration is of {found['name']}, its weights are of {name}")
    return found | said_by_config(config, model)


def _named(meta: Mapping[str, Any], K: int) -> dict[str, Any]:
    """Names and colours of the classes, where the file has as many."""
    said = meta.get("dataset_meta")
    about = {str(name).lower(): value for name, value in (said if isinstance(said, Mapping) else meta).items()}
    found = {}
    for ours, theirs in (("class_names", "classes"), ("palette", "palette")):
        value = about.get(theirs)
        if isinstance(value, list | tuple) and len(value) == K:
            found[ours] = tuple(str(v) for v in value) if ours == "class_names" else tuple(tuple(v) for v in value)
    return found


def _without_classifiers(network: SegmentationNetwork | CGNet, state: State) -> State:
    """``state`` under our names, its classifiers replaced by the network's own."""
    own = network.state_dict()
    theirs = network.from_authors(state)
    last = f".{getattr(network, 'pretrained_cfg', {}).get('classifier', 'classifier')}"
    return {**theirs, **{key: value for key, value in own.items() if last in f".{key}"}}


def _local(address: str) -> Path:
    """The path itself, or of what was downloaded from the address."""
    if "://" not in address:
        return Path(address)
    import torch.hub

    name = address.rstrip("/").rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(path), progress=False)
        except OSError as error:
            raise FileNotFoundError(f"{address} cannot be downloaded: {error}") from None
    return path

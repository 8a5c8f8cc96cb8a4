"""Networks as a folder, or a repository of the Hugging Face hub: weights, and all that ``create_network`` was given."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from lookfar.blocks import create_block
from lookfar.networks.preprocessing import Inference, Preprocessing

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Saved:
    """What a network needs to be written and found again.

    Attributes:
        config: The arguments of :func:`lookfar.networks.create_network` that it was made of; None where it was not.
        exchanged: What :func:`exchange` has put in the place of blocks since: by their names ``block``, ``channels``
            and ``options``, or None for nothing.
    """

    config: Mapping[str, Any] | None = None
    exchanged: Mapping[str, Mapping[str, Any] | None] = MappingProxyType({})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights and configuration, preprocessing and classes among it; the folder is made.

        Raises:
            ValueError: It was not made by ``create_network``, or with an option that is no text, such as a class.

        >>> from lookfar.networks import create_network, from_pretrained
        >>> create_network("cgnet", 3).save_pretrained("cgnet-3")
        >>> from_pretrained("cgnet-3").classifier.out_channels
        3
        """
        from safetensors.torch import save_model

        if self.config is None:
            raise ValueError(f"this {type(self).__name__} was not made by create_network: save its state_dict()")
        text = _written({**self.config, **({"exchanged": dict(self.exchanged)} if self.exchanged else {})})
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(text, encoding="utf-8")
        assert isinstance(self, nn.Module)
        save_model(self, str(folder / WEIGHTS), metadata={"format": "pt"})

    def push_to_hub(self, name: str, *, private: bool = False, token: str | None = None) -> str:
        """Write it to a repository ``owner/name`` of the hub, which is made; the address of the upload."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api.create_repo(name, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=name, folder_path=folder))


def exchange(network: Any, name: str, how: Mapping[str, Any] | None) -> nn.Module:
    """Put another block, or none, in the place of one of a network's own; the new module, with fresh weights.

    The network says so when it is saved, and is found again as it is now.

    Args:
        network: Of ours, changed in place.
        name: Of the block's module.
        how: ``block``, ``channels`` and ``options`` of the new one; None for nothing.

    Raises:
        ValueError: No such module, or no such block.

    >>> from lookfar.networks import create_network
    >>> network = create_network("nonlocal", 3, backbone="resnet18")
    >>> exchange(network, "head.paths.0.block", None)
    Identity()
    """
    home, _, last = name.rpartition(".")
    if last not in dict(network.get_submodule(home).named_children()):
        raise ValueError(f"{type(network).__name__} has no module {name!r}")
    new = nn.Identity() if how is None else create_block(how["block"], how["channels"], **how["options"])
    like = next(network.parameters())
    network.get_submodule(home).add_module(last, new.to(like.device, like.dtype).train(network.training))
    network.exchanged = {**network.exchanged, name: how}
    return new


def read_folder(source: str | Path, *, revision: str | None = None) -> tuple[dict[str, Any], Path]:
    """Configuration and file of weights of a folder, or of a repository ``owner/name`` of the hub (downloaded once).

    Raises:
        FileNotFoundError: There is neither.
        ValueError: What it holds was not written by ``save_pretrained``.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = _downloaded(str(source), revision)
    path = folder / CONFIG
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise ValueError(f"{source} holds no {CONFIG} with {WEIGHTS}: want a folder that save_pretrained wrote")
    try:
        config = _read(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError):
        config = None
    if not isinstance(config, dict) or "name" not in config:
        raise ValueError(f"{path} is not a configuration of one of our networks")
    return config, folder / WEIGHTS


def _downloaded(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    if name.count("/") != 1 or name.startswith((".", "/")):
        raise FileNotFoundError(f"there is no folder {name}, and a repository of the hub is owner/name")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # of the network, of the hub, of a cache: their classes differ by version
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(f"there is no folder {name}, and the hub gives none: {reason}") from None


def _written(config: Mapping[str, Any]) -> str:
    plain = {
        name: asdict(value) if isinstance(value, Preprocessing | Inference) else value for name, value in config.items()
    }
    for name, value in plain.items():
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(f"{name}={value!r} cannot be written as text: save the network's state_dict()") from None
    return json.dumps(plain, indent=1)


def _read(config: Any) -> Any:
    """Lists as the tuples that they were, ``preprocessing`` and ``inference`` as what they were."""
    found = {name: _tuples(value) for name, value in config.items()}
    for name, kind in (("preprocessing", Preprocessing), ("inference", Inference)):
        if isinstance(found.get(name), dict):
            found[name] = kind(**found[name])
    return found


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(part) for part in value)
    return {name: _tuples(part) for name, part in value.items()} if isinstance(value, dict) else value

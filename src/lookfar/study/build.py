"""Candidates made real: the host under the seed, the block afterwards under a generator of its own."""

import contextlib
import hashlib
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lookfar.study.candidates import Candidate
from lookfar.study.plan import Plan
from lookfar.study.sources import source_for

if TYPE_CHECKING:
    from lookfar.data import Data

_BLOCK_SEED = 1_000_003  # added to a trial's seed: blocks are drawn apart from the host, which is the same for all


def open_plan_data(plan: Plan) -> "Data":
    """The data of a plan."""
    from lookfar.data import open_data

    data = open_data(
        plan.data,
        size=plan.size,
        val=plan.val,
        also_val=plan.also_val,
        in_chans=plan.in_chans,
        ignore=plan.ignore,
        labels=plan.labels,
        classes=plan.classes,
        exif=plan.exif,
        skip_bad=plan.skip_bad,
        crop_pct=plan.crop_pct,
        flip=plan.flip,
    )
    if plan.crop is None:
        return data
    from lookfar.data.transforms import ScaledCrop

    if data.target != "mask":
        raise ValueError(f"crop is for masks: {plan.data} has one label an image")
    return replace(data, augment=ScaledCrop(plan.crop))


def build_host(plan: Plan, data: "Data", seed: int, *, study: Path | None = None) -> nn.Module:
    """The network without a block, the same for all candidates of a seed.

    Args:
        plan: Resolved.
        data: What it is built for.
        seed: Of the trial.
        study: The folder that keeps copies of the user's own files as they were.
    """
    from lookfar.blocks._own import find_own, parse_address
    from lookfar.tasks import Host

    task, name = plan.find_task(study), plan.host or "small"
    wanted = Host(name, None, plan.output_stride, plan.width, plan.pretrained, plan.host_weights)
    if address := parse_address(name):
        target = find_own(address, source=source_for(plan.sources, address.where, study))
        with drawn_apart(seed):
            host = task.host(replace(wanted, own=target), data)
    else:
        torch.manual_seed(seed)
        host = task.host(wanted, data)
    if plan.norm == "batch":
        exchange_norms(host, data)
    return host


def exchange_norms(network: nn.Module, data: "Data") -> None:
    """Every LayerNorm of tokens gives way to a batch norm over images and tokens, which is the network's own from then.

    Raises:
        ValueError: There is none.
    """
    from lookfar.blocks import TokenBatchNorm
    from lookfar.insertion import replace

    norms = [name for name, module in network.named_modules() if type(module).__name__ == "LayerNorm"]
    if not norms:
        raise ValueError("--norm batch is for hosts on tokens: this one has no LayerNorm")
    for name in replace(network, TokenBatchNorm, norms, example=data.example(2)):
        del network.get_submodule(name).inserted


def weights_digest(plan: Plan, network: nn.Module) -> str:
    """Equal for equal weights of a host's backbone; empty where they are no file's but drawn from the seed."""
    if not plan.pretrained and plan.host_weights is None:
        return ""
    digest = hashlib.blake2b(digest_size=16)
    started: nn.Module = getattr(network, "backbone", network)
    for name, tensor in sorted(started.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def default_place(network: nn.Module) -> str:
    """The module after which blocks go by default; empty where the host does not say it."""
    place = getattr(network, "place", "")
    return place if isinstance(place, str) else ""


def find_place(network: nn.Module, name: str) -> str:
    """:func:`lookfar.networks.resolve_place`; a glob, such as ``layer3.*.conv2``, stands for all that it finds.

    Raises:
        ValueError: There is no such place.
    """
    from lookfar.insertion.places import find_modules
    from lookfar.networks import resolve_place

    if not set("*?[") & set(name):
        return resolve_place(network, name)
    find_modules(network, name)
    return name


def added_parameters(network: nn.Module, names: list[str]) -> int:
    """How many more the network has by the modules of :func:`put_in`; fewer where it is negative."""
    from lookfar.insertion import insertions

    def count(module: nn.Module | None) -> int:
        return 0 if module is None else sum(p.numel() for p in module.parameters())

    new = [one for one in insertions(network) if one.name in names]
    return sum(count(one.module) - count(one.record.replaced) for one in new)


def put_in(
    network: nn.Module,
    plan: Plan,
    candidate: Candidate,
    data: "Data",
    seed: int,
    *,
    control_parameters: int,
    study: Path | None = None,
) -> list[str]:
    """Insert a candidate into its host; a layer takes the place of convolutions, a mixer one that is kept for it.

    Args:
        network: As :func:`build_host` gives it.
        plan: Says where blocks go.
        candidate: What to insert.
        data: Its size is the size of the example that insertion looks at.
        seed: Of the trial.
        control_parameters: How many parameters a control should have that does not say so itself.
        study: The folder that keeps copies of the user's own files as they were.

    Returns:
        Names of the new modules; none for the baseline.
    """
    from lookfar.blocks._own import find_own
    from lookfar.insertion import insert, replace
    from lookfar.insertion.places import find_modules
    from lookfar.insertion.replacing import takes_mixers
    from lookfar.networks import control_of

    if candidate.name == "baseline":
        return []
    place = find_place(network, candidate.place or plan.place or default_place(network))
    options = dict(candidate.options)
    block: Any = candidate.name
    mixes = takes_mixers(network, place)
    if candidate.name == "control":
        parameters = options.pop("parameters", control_parameters) // len(find_modules(network, place))
        kind: dict[str, Any] = {"dims": len(data.size), "kernel_size": 3 if data.ordered else 1, "residual": not mixes}
        block = partial(control_of, parameters=parameters, **kind)
    if candidate.own is not None:
        # its options are its own, also one that insert() would take for itself
        source = source_for(plan.sources, candidate.own.where, study)
        block, options = find_own(candidate.own, source=source).constructor, {}
    with drawn_apart(_BLOCK_SEED + seed):
        put = replace if mixes or candidate.replaces else insert
        names = put(network, block, at=place, example=data.example(2), **options)
    if candidate.own is not None:
        for name in names:
            network.get_submodule(name).inserted.options.update(candidate.options)  # type: ignore[union-attr]
    return names


@contextlib.contextmanager
def drawn_apart(seed: int) -> Iterator[None]:
    """Random numbers of a seed, of whichever generator, and none of the caller's."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


class _Seen(nn.Module):
    """Passes a map on and remembers its shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shape: tuple[int, ...] = ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shape = tuple(x.shape)
        return x


def map_at(network: nn.Module, place: str, data: "Data") -> tuple[int, tuple[int, ...]]:
    """Channels and size of the map that a block at a place takes."""
    from lookfar.insertion import insert, remove

    names = insert(network, _Seen, at=place, example=data.example(2))
    _, channels, *size = network.get_submodule(names[0]).shape  # type: ignore[misc]
    remove(network, names)
    return channels, tuple(size)  # type: ignore[return-value]

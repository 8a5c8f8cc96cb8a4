"""Candidates made real: the host under the seed, the block afterwards under a generator of its own."""

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lookfar.study.candidates import Candidate
from lookfar.study.plan import Plan

if TYPE_CHECKING:
    from lookfar.data import Data
    from lookfar.networks import Segmenter

_BLOCK_SEED = 1_000_003  # added to a trial's seed: blocks are drawn apart from the host, which is the same for all


def open_plan_data(plan: Plan) -> "Data":
    """The data of a plan."""
    from lookfar.data import open_data

    return open_data(
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
    )


def build_host(plan: Plan, data: "Data", seed: int) -> "Segmenter":
    """The network without a block, the same for all candidates of a seed."""
    from lookfar.networks import build_network

    torch.manual_seed(seed)
    return build_network(
        plan.host or "small",
        len(data.classes),
        in_chans=data.in_chans,
        output_stride=plan.output_stride or 8,
        pretrained=plan.pretrained,
        weights=plan.host_weights,
        width=plan.width,
    )


def weights_digest(plan: Plan, network: "Segmenter") -> str:
    """Equal for equal weights of a host's backbone; empty where they are no file's but drawn from the seed."""
    if not plan.pretrained and plan.host_weights is None:
        return ""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(network.backbone.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def put_in(
    network: "Segmenter", plan: Plan, candidate: Candidate, data: "Data", seed: int, *, control_parameters: int
) -> list[str]:
    """Insert a candidate into its host.

    Args:
        network: As :func:`build_host` gives it.
        plan: Says where blocks go.
        candidate: What to insert.
        data: Its size is the size of the example that insertion looks at.
        seed: Of the trial.
        control_parameters: How many parameters a control should have that does not say so itself.

    Returns:
        Names of the inserted modules; none for the baseline.
    """
    from lookfar.insertion import insert
    from lookfar.networks import control_of, resolve_place

    if candidate.name == "baseline":
        return []
    place = resolve_place(network, candidate.place or plan.place or network.place)
    options = dict(candidate.options)
    block: Any = candidate.name
    if candidate.name == "control":
        block = partial(control_of, parameters=options.pop("parameters", control_parameters))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_BLOCK_SEED + seed)
        example = torch.randn(2, data.in_chans, *data.size)
        return insert(network, block, at=place, example=example, **options)

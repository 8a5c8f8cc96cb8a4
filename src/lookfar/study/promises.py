"""What blocks, hosts and tasks of the user's own must keep for a study; modules are asked in another process."""

import copy
import math
from typing import TYPE_CHECKING

from lookfar.study.candidates import Candidate
from lookfar.study.plan import Plan

if TYPE_CHECKING:
    from torch import nn

    from lookfar.check import Report
    from lookfar.data import Data
    from lookfar.tasks import Task

# that it is trained, saved and loaded as a whole, that resuming is exact, that images are judged one by one
OF_BLOCKS = ("images", "registered", "reached", "input", "copies", "state", "deterministic")
OF_HOSTS = ("images", "registered", "copies", "state", "deterministic")
# larger maps and images are asked about in smaller ones: in float64, several at a time, on a CPU
POSITIONS, PIXELS = 64 * 64, 256 * 256


def check_block(candidate: Candidate, channels: int, size: tuple[int, ...]) -> str:
    """Ask a block of the user's own what a study needs; a line that says what was found.

    Args:
        candidate: With an address.
        channels: Of the map at its place.
        size: Of that map.

    Raises:
        ValueError: It breaks a promise, or cannot be built.
        FileNotFoundError: Its file is not there.
        TypeError: An option that it does not take.
    """
    from lookfar.check import check_apart

    text = str(Candidate(candidate.name, candidate.options))
    asked = (*OF_BLOCKS, "identity")
    smaller = _within(size, POSITIONS)
    report = check_apart(text, channels, smaller, only=asked)
    if smaller != size and any(row.promise == "runs" for row in report.broken()):  # made for the size of its place
        report = check_apart(text, channels, size, only=asked)
    _refuse_broken(text, report)
    identity = report["identity"].status == "holds"
    enters = (
        "starts as the identity" if identity else "is not the identity: it enters as x + γ(block(x) − x) from γ = 0"
    )
    return f"{text} keeps what a study needs, and {enters}."


def check_host(plan: Plan, data: "Data") -> None:
    """Ask a host of the user's own what a study needs; does nothing for other hosts.

    Raises:
        ValueError: It breaks a promise, or cannot be built.
        FileNotFoundError: Its file is not there.
        TypeError: An option that it does not take.
    """
    from lookfar.blocks._own import split_address
    from lookfar.check import check_apart

    text = str(plan.host)
    if split_address(text):
        size = _within(data.size, PIXELS)
        classes = len(data.classes) if plan.find_task().words.of_class else None  # else its outputs are no classes
        _refuse_broken(text, check_apart(text, data.in_chans, size, only=OF_HOSTS, classes=classes))


def check_task(plan: Plan, task: "Task", host: "nn.Module", data: "Data") -> None:
    """Ask a task of the user's own for the loss and the score of two samples; does nothing for other tasks.

    Raises:
        ValueError: It gives what a study cannot use.
    """
    import torch

    from lookfar._tables import said
    from lookfar.blocks._own import split_address

    if not split_address(str(plan.task)):
        return
    with torch.random.fork_rng(devices=[]):
        try:
            problem = _wrong_with(task, copy.deepcopy(host), data)
        except Exception as error:  # of the user's code
            problem = said(error)
    if problem:
        raise ValueError(f"{plan.task} cannot be studied: {problem}")


def _wrong_with(task: "Task", network: "nn.Module", data: "Data") -> str:
    """The first thing that a task gives otherwise than it should; empty where all is well."""
    import numpy as np
    import torch

    inputs, targets = data.batch(0, 0, 2)
    loss = task.learn(network.train(), inputs, targets, None)
    if not (
        isinstance(loss, tuple) and len(loss) == 2 and all(isinstance(v, torch.Tensor) and v.numel() == 1 for v in loss)
    ):
        return "its loss must be two tensors of one number: summed over what counts, and how much that is"
    if not loss[0].requires_grad:
        return "no gradient of its loss reaches the network"
    with torch.no_grad():
        judged = task.judge(network.eval()(inputs), targets)
    if not all(isinstance(values, torch.Tensor) for values in judged.values()):
        return "judge must give tensors, by name"
    arrays = {name: values.numpy() for name, values in judged.items()}
    if not task.fits(arrays, samples=2):
        shapes = ", ".join(f"{name} {values.dtype} {values.shape}" for name, values in arrays.items())
        return f"judge must give finite numbers (B, ...), for 2 samples it gives {shapes or 'nothing'}"
    facts = task.facts(arrays)
    scores = np.asarray(task.score(facts, np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]])))
    if scores.shape != (3,):
        return f"score must give a number for each set of samples, for 3 sets it gives {scores.shape}"
    return "" if task.metric in task.scores(arrays) else f"scores must hold its metric, {task.metric!r}"


def _within(size: tuple[int, ...], most: int) -> tuple[int, ...]:
    """The size, halved until it has no more than so many positions, as long as its sides stay even."""
    while math.prod(size) > most and all(side % 2 == 0 for side in size):
        size = tuple(side // 2 for side in size)
    return size


def _refuse_broken(text: str, report: "Report") -> None:
    broken = report.broken()
    if broken:
        row = broken[0]
        raise ValueError(f"{text} cannot be studied. Broken: {row.title} ({row.outcome.detail})")

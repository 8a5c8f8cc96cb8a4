"""Promises about a call: images apart, the input left alone, one size after another, odd sizes, determinism."""

import contextlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from lookfar._tables import by_size, listed, said
from lookfar.check.outcome import Outcome, fact, holds, not_asked, percent, verdict
from lookfar.check.subject import SCALES, TOLERANCE, Subject, all_moved, moved, outputs, pull, seed_all

OTHER_SIZES = {1: [(20,), (7,), (35,)], 2: [(12, 20), (7, 5), (19, 16)], 3: [(2, 6, 7), (3, 5, 4), (5, 8, 6)]}
ODD_SIZES = {
    1: [(1,), (2,), (7,)],
    2: [(1, 1), (1, 6), (6, 1), (2, 3), (7, 5)],
    3: [(1, 1, 1), (1, 3, 2), (2, 5, 3)],
}


@torch.no_grad()
def images_apart(subject: Subject) -> Outcome:
    """Images of a batch do not see each other, in inputs of ordinary size and in small ones."""
    return next((o for o in (_images_apart(subject, scale) for scale in SCALES) if o.status != "holds"), holds())


def _images_apart(subject: Subject, scale: float) -> Outcome:
    module = subject.make()
    inputs = subject.inputs(module, batch=3, scale=scale)
    before = outputs(module, inputs)
    x, *rest = inputs
    if any(y.shape[:1] != (3,) for y in before):
        return not_asked("an output does not have one row an image")
    changed = x.clone()
    changed[0] = subject.inputs(module, batch=3, seed=3, scale=scale)[0][0]
    after = outputs(module, (changed, *rest))
    faults: list[str] = []
    worst, image = max((moved(a[i], b[i]), i) for a, b in zip(after, before) for i in (1, 2))
    if worst > TOLERANCE:
        faults.append(f"image {image} moves by {percent(worst)} when image 0 changes")
    if all(t.shape[:1] == (3,) for t in inputs):
        try:
            alone = outputs(module, [t[1:2] for t in inputs])
            apart = all_moved(alone, [b[1:2] for b in before])
            if apart > TOLERANCE:
                faults.append(f"image 1 alone differs by {percent(apart)} from itself in a batch of 3")
        except Exception as error:
            faults.append(f"fails on a batch of one: {said(error)}")
    return verdict(faults)


def input_kept(subject: Subject) -> Outcome:
    """The input is not overwritten."""
    faults = []
    for train in (False, True):
        module = subject.make(train=train)
        inputs = [t.clone() for t in subject.inputs(module, batch=4)]
        before = [t.clone() for t in inputs]
        with torch.no_grad():
            module(*inputs)
        change = max(moved(t, b) for t, b in zip(inputs, before))
        if change > 0:
            faults.append(f"in {'training' if train else 'eval'} forward changes its input by {percent(change)}")
    return verdict(faults)


@torch.no_grad()
def one_size_after_another(subject: Subject) -> Outcome:
    """The same instance works at one size after another, and keeps nothing of the last one."""
    module = subject.make()
    faults: list[str] = []
    refused: list[str] = []
    before = None
    first, *others = OTHER_SIZES[len(subject.size)]
    exchanged = first[::-1]  # as many positions as the size before: a cache may go by their number
    sizes = [subject.size, first, exchanged, *others, subject.size]
    for size in sizes:
        fresh = subject.make()
        try:
            want = outputs(fresh, subject.inputs(fresh, size))
        except ValueError as error:
            refused.append(f"refuses {by_size(size)}: {said(error)}")
            continue
        except Exception as error:
            faults.append(f"fails at {by_size(size)}: {said(error)}")
            continue
        try:
            change = all_moved(outputs(module, subject.inputs(module, size)), want)
            if change > TOLERANCE and before is not None:
                faults.append(
                    f"at {by_size(size)} after {by_size(before)} the output differs by {percent(change)} from a "
                    "fresh one"
                )
        except Exception as error:
            faults.append(f"fails at {by_size(size)} after {by_size(before or size)}: {said(error)}")
        before = size
    return verdict(faults[:2], refused[:1], f"tried {', '.join(map(by_size, sizes))}")


@torch.no_grad()
def odd_sizes(subject: Subject) -> Outcome:
    """Odd and 1×1 sizes, a batch of one, in eval."""
    faults: list[str] = []
    refused: list[str] = []
    sizes = ODD_SIZES[len(subject.size)]
    for size in sizes:
        module = subject.make()
        try:
            if not all(y.isfinite().all() for y in outputs(module, subject.inputs(module, size, batch=1))):
                faults.append(f"gives nan or inf at {by_size(size)}")
        except ValueError as error:  # raised on purpose, where torch raises RuntimeError
            refused.append(f"refuses {by_size(size)}: {said(error)}")
        except Exception as error:
            faults.append(f"fails at {by_size(size)}: {said(error)}")
    more = [f"{len(faults) - 2} more of {len(sizes)} sizes fail"] if len(faults) > 2 else []
    return verdict(faults[:2] + more, refused[:1], f"tried {', '.join(map(by_size, sizes))}")


def deterministic(subject: Subject) -> Outcome:
    """Nothing is random in eval; in training the random state alone decides."""
    faults: list[str] = []
    module = subject.make()
    first, second = (_results(module, subject.inputs(module), seed) for seed in (5, 6))
    change = all_moved(second, first)
    if change > 0:
        faults.append(f"in eval two calls differ by {percent(change)}")
    runs = []
    for _ in range(2):
        module = subject.make(train=True)
        runs.append(_results(module, subject.inputs(module, batch=4), 5))
    change = all_moved(*runs)
    if change > 0:
        faults.append(f"in training two calls under one random state differ by {percent(change)}")
    return verdict(faults)


def _results(module: nn.Module, inputs: tuple[Tensor, ...], seed: int) -> list[Tensor]:
    """Outputs and the gradient of the input."""
    x = inputs[0].clone()
    seed_all(seed)
    if not x.is_floating_point():
        return outputs(module, inputs)
    found = outputs(module, (x.requires_grad_(), *inputs[1:]))
    with contextlib.suppress(RuntimeError):  # a backward pass that fails is reported by `reached`
        pull(found).backward()
    return [*(y.detach() for y in found), torch.zeros_like(x) if x.grad is None else x.grad]


@torch.no_grad()
def identity(subject: Subject) -> Outcome:
    """Identity at insertion, or how far from it."""
    module = subject.build().to(subject.dtype)
    inputs = subject.inputs(module)
    x, y = inputs[0], outputs(module, inputs)[0]
    if x.shape != y.shape:
        return fact(f"{by_size(x.shape[1:])} becomes {by_size(y.shape[1:])}", fails_strict=True)
    if torch.equal(x, y):
        return holds("as built, the output is the input")
    return fact(f"as built, the output differs from the input by {percent(moved(y, x))}", fails_strict=True)


def arguments(subject: Subject) -> Outcome:
    """Other numbers of channels work, and every whole-number option has an effect."""
    faults: list[str] = []
    facts: list[str] = []
    if subject.target.channels_argument is None:
        facts.append("the constructor has no argument for channels")
    else:
        faults += _channels_fault(subject)
    ignored = _ignored_options(subject)
    if ignored:
        # another option may be what switches these on; without any there is no excuse
        switches = any(isinstance(v, str | bool) or v is None for v in _options(subject).values())
        found = f"changing {listed(ignored)} changes nothing"
        (facts if switches else faults).append(f"{found} with the other options as they are" if switches else found)
    return verdict(faults, facts, f"tried {_other_channels(subject)} channels too")


def _other_channels(subject: Subject) -> int:
    """Half as many, or twice as many where half cannot be built: groups and heads divide channels."""
    half = subject.channels // 2
    try:
        subject.build(half)
    except Exception:
        return 2 * subject.channels
    return half


def _channels_fault(subject: Subject) -> list[str]:
    name, channels = subject.target.channels_argument, _other_channels(subject)
    count, other = (_count(subject.build(c)) for c in (subject.channels, channels))
    error = _failure(subject, channels)
    if error is None or (count != other and _failure(subject, subject.channels) is not None):
        return []  # a module that fails on any number of channels has another fault
    same = f" and has the {count:,} parameters of {subject.channels}" if count == other else ""
    return [f"{name}={channels} fails on {channels} channels{same}: {said(error)}"]


@torch.no_grad()
def _failure(subject: Subject, channels: int) -> Exception | None:
    module = subject.build(channels).to(subject.dtype)
    try:
        outputs(module, subject.inputs(module, channels=channels))
    except Exception as error:
        return error
    return None


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _ignored_options(subject: Subject) -> list[str]:
    """Whole-number options of which no other value changes layers, initial values, outputs or gradients."""
    return [
        f"{name}={value}"
        for name, value in _options(subject).items()
        if type(value) is int and value > 0 and _ignored(subject, name, value)
    ]


def _options(subject: Subject) -> dict[str, Any]:
    """Options that have a value, given or by default."""
    target = subject.target
    values = {name: target.options.get(name, p.default) for name, p in target.parameters.items()}
    without = (target.channels_argument, "device", "dtype")
    return {name: v for name, v in values.items() if name not in without and v is not inspect.Parameter.empty}


def _ignored(subject: Subject, name: str, value: int) -> bool:
    tried = 0
    near = (2 * value, value // 2, value + 1)
    # max(8, channels // reduction) changes with a smaller reduction alone, and only with a much smaller one
    far = (4 * value, value // 4, 1)
    for other in dict.fromkeys(v for v in near + far if v not in (0, value)):
        try:
            if not _equal(_seen(subject, {name: other}), _seen(subject, {})):
                return False
        except Exception:  # a value that is refused is not ignored
            return False
        tried += 1
    return tried > 0


def _seen(subject: Subject, changed: dict[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """Layers, initial values, and what both passes give in training and in eval."""
    built = subject.build(**changed)
    tensors = {f"state {k}": t for k, t in built.state_dict().items()}
    for train in (False, True):
        module = subject.make(train=train, **changed)
        results = _results(module, subject.inputs(module, batch=4), 5)
        results += [p.grad for p in module.parameters() if p.grad is not None]
        tensors |= {f"{train} {n}": t for n, t in enumerate(results)}
    return repr(built), tensors


def _equal(a: tuple[str, dict[str, Tensor]], b: tuple[str, dict[str, Tensor]]) -> bool:
    if a[0] != b[0] or a[1].keys() != b[1].keys():
        return False
    return all(torch.equal(t, b[1][k]) for k, t in a[1].items())

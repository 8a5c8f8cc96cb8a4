"""Promises about numbers: dtypes, autocast, large inputs, memory formats."""

import torch
from torch import Tensor

from lookfar._tables import said
from lookfar.check.outcome import Outcome, broken, fact, holds, not_asked, percent, verdict
from lookfar.check.subject import TOLERANCE, Subject, all_moved, outputs

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ROUGH = 0.2  # of the mean size: half precision may put single numbers on the other side of a kink


@torch.no_grad()
def output_dtype(subject: Subject) -> Outcome:
    """The output has the dtype of the input."""
    faults = []
    tried = []
    for dtype in DTYPES:
        module = subject.make(dtype)
        try:
            found = outputs(module, subject.inputs(module, dtype=dtype))
        except Exception:  # reported in the row of dtypes
            continue
        tried.append(_name(dtype))
        wrong = {_name(y.dtype) for y in found if y.is_floating_point()} - {_name(dtype)}
        if wrong:
            faults.append(f"{_name(dtype)} becomes {', '.join(sorted(wrong))}")
    return verdict(faults, fine=f"tried {', '.join(tried)}") if tried else not_asked("it runs in no dtype")


@torch.no_grad()
def dtypes(subject: Subject) -> Outcome:
    """The module runs in every floating dtype, in half precision with roughly the same numbers."""
    want = _reference(subject, 1.0)
    faults = []
    for dtype in DTYPES:
        module = subject.make(dtype)
        try:
            faults += _rough(_name(dtype), outputs(module, subject.inputs(module, dtype=dtype)), want)
        except Exception as error:
            faults.append(f"{_name(dtype)}: {said(error, 90)}")
    more = [f"{len(faults) - 1} more dtypes fail"] if len(faults) > 1 else []
    return verdict(faults[:1] + more)


@torch.no_grad()
def autocast(subject: Subject) -> Outcome:
    """A float32 module under autocast runs and gives roughly the same numbers."""
    want = _reference(subject, 1.0)
    faults = []
    for dtype in (torch.bfloat16, torch.float16):
        module = subject.make(torch.float32)
        inputs = subject.inputs(module, dtype=torch.float32)
        try:
            with torch.autocast("cpu", dtype=dtype):
                found = outputs(module, inputs)
            faults += _rough(f"autocast to {_name(dtype)}", found, want)
        except Exception as error:
            faults.append(f"autocast to {_name(dtype)}: {said(error, 90)}")
    return verdict(faults)


@torch.no_grad()
def large_inputs(subject: Subject) -> Outcome:
    """Finite on inputs 30 times larger, where the exact output is one that the dtype holds."""
    want = [y for y in _reference(subject, 30.0) if y.is_floating_point()]
    if not all(bool(y.isfinite().all()) for y in want):
        return broken(f"{_name(subject.dtype)}: the output is nan or inf")
    faults: list[str] = []
    facts: list[str] = []
    tried = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        module = subject.make(dtype)
        try:
            x, *rest = subject.inputs(module, dtype=dtype)
            found = outputs(module, (30 * x, *rest))
        except Exception:  # reported in the row of dtypes
            continue
        largest = max((float(w.abs().max()) for w in want), default=0.0)
        if largest > torch.finfo(dtype).max:
            facts.append(f"the exact output reaches {largest:.1e}, more than {_name(dtype)} holds")
            continue
        tried.append(_name(dtype))
        bad = sum(int((~y.isfinite()).sum()) for y in found) / sum(y.numel() for y in found)
        if bad:
            faults.append(f"{_name(dtype)}: {percent(bad)} of the output is nan or inf")
    return verdict(faults, facts, f"tried {', '.join(tried)}") if tried else not_asked("it runs in none of the dtypes")


@torch.no_grad()
def channels_last(subject: Subject) -> Outcome:
    """Channels_last inputs give the same numbers, and come back in this format."""
    module = subject.make()
    x, *rest = subject.inputs(module)
    if x.dim() not in (4, 5):
        return not_asked("a sequence has one memory format")
    wanted = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    want = outputs(module, (x, *rest))
    got = outputs(module, (x.contiguous(memory_format=wanted), *rest))
    change = all_moved(got, want)
    if change > TOLERANCE:
        return verdict([f"the output differs by {percent(change)} from that of a contiguous input"])
    if any(y.dim() == x.dim() and not y.is_contiguous(memory_format=wanted) for y in got):
        return fact("equal numbers; the output comes back contiguous, which costs the next layer a copy")
    return holds("equal numbers, format kept")


def _reference(subject: Subject, factor: float) -> list[Tensor]:
    module = subject.make()
    x, *rest = subject.inputs(module)
    return outputs(module, (factor * x, *rest))


def _rough(what: str, found: list[Tensor], want: list[Tensor]) -> list[str]:
    for y, w in zip(found, want):
        if y.shape != w.shape:
            return [f"{what} gives the shape {tuple(y.shape)}, else {tuple(w.shape)}"]
        if not bool(y.isfinite().all()) and bool(w.isfinite().all()):
            return [f"{what} gives nan or inf"]
        error = float((y.double() - w.double()).abs().mean()) / max(float(w.double().abs().mean()), 1e-6)
        if error > ROUGH:
            return [f"{what} is off by {percent(error)} on average"]
    return []


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""Promises about the company that a module keeps: it writes nothing, can be copied, and its state dict is its state."""

import contextlib
import copy
import io
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator

import torch

from lookfar._tables import said, shorten
from lookfar.check.outcome import Outcome, broken, fact, holds, percent
from lookfar.check.subject import TOLERANCE, Subject, all_moved, outputs, pull, seed_all


def silent(subject: Subject) -> Outcome:
    """Nothing is written on standard output, by Python or below it: another program may be reading it."""
    with _overheard() as heard:
        for train in (False, True):
            module = subject.make(train=train)
            found = outputs(module, subject.inputs(module, batch=4))
            with contextlib.suppress(RuntimeError):  # a backward pass that fails is reported by `reached`
                pull(found).backward()
        text = heard()
    return (
        broken(f"writes on standard output: {shorten(' '.join(text.split()) or repr(text), 80)}") if text else holds()
    )


@contextlib.contextmanager
def _overheard() -> Iterator[Callable[[], str]]:
    """What is written on standard output meanwhile, through Python or to the file descriptor."""
    spoken = io.StringIO()
    with tempfile.TemporaryFile() as file, contextlib.redirect_stdout(spoken):
        before = _standard_output()
        if before is not None:
            os.dup2(file.fileno(), 1)

        def heard() -> str:
            file.seek(0)
            return spoken.getvalue() + file.read().decode(errors="replace")

        try:
            yield heard
        finally:
            if before is not None:
                os.dup2(before, 1)
                os.close(before)


def _standard_output() -> int | None:
    """A second handle of standard output; None where there is none."""
    with contextlib.suppress(OSError):
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()
        return os.dup(1)
    return None


def copies(subject: Subject) -> Outcome:
    """A deep copy gives what the module gives; so does one that went through pickle, where that is possible."""
    module = subject.make()
    inputs = subject.inputs(module)
    want = outputs(module, inputs)  # with gradients: what keeps a graph cannot be copied
    try:
        change = all_moved(outputs(copy.deepcopy(module), inputs), want)
    except Exception as error:
        return broken(f"copy.deepcopy fails: {said(error)}")
    if change > TOLERANCE:
        return broken(f"the output of a deep copy differs by {percent(change)}")
    try:
        change = all_moved(outputs(pickle.loads(pickle.dumps(module)), inputs), want)
    except Exception as error:
        return fact(f"cannot be pickled: {said(error)}")
    return broken(f"the output differs by {percent(change)} after pickle") if change > TOLERANCE else holds()


@torch.no_grad()
def state(subject: Subject) -> Outcome:
    """Another instance with the same state dict gives the same: nothing that it computes with is kept elsewhere."""
    module = subject.make(train=True)
    outputs(module, subject.inputs(module, batch=4))  # what training changes belongs to the state
    module.eval()
    seed_all(17)
    other = subject.target.build(subject.channels).to(subject.dtype).eval()
    try:
        other.load_state_dict({key: value.clone() for key, value in module.state_dict().items()})
    except Exception as error:
        return broken(f"its state dict does not load into another instance: {said(error)}")
    inputs = subject.inputs(module)
    change = all_moved(outputs(other, inputs), outputs(module, inputs))
    if change > TOLERANCE:
        return broken(
            f"another instance with its state dict differs by {percent(change)}: something that it computes with is "
            "neither a parameter nor a buffer"
        )
    return holds()

"""Promises about leaving Python: compile, export, ONNX, each right at other sizes than it was made for."""

import importlib.util
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lookfar._tables import by_size, said
from lookfar.check.calls import OTHER_SIZES
from lookfar.check.outcome import Outcome, broken, not_asked, percent, verdict
from lookfar.check.subject import TOLERANCE, Subject, all_moved, outputs, pull

ROUNDING = 10 * TOLERANCE  # of float32 in another order


def compiles(subject: Subject) -> Outcome:
    """One graph without breaks, forward and backward; the code generator behind it is torch's own matter."""
    torch._dynamo.reset()
    faults = []
    module, other = subject.make(), subject.make()
    with _quiet():
        compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
        for size in (subject.size, OTHER_SIZES[len(subject.size)][0]):
            found = []
            for called in (module, compiled):
                inputs = subject.inputs(module, size)
                x = inputs[0].clone()
                ys = outputs(called, (x.requires_grad_(x.is_floating_point()), *inputs[1:]))
                if pull(ys).requires_grad:
                    pull(ys).backward()
                found.append(ys if x.grad is None else [*ys, x.grad])
            change = all_moved(found[1], found[0])
            if change > TOLERANCE:
                faults.append(f"at {by_size(size)} the compiled module differs by {percent(change)}")
    torch._dynamo.reset()
    return verdict(faults)


@torch.no_grad()
def exports(subject: Subject) -> Outcome:
    """``torch.export`` with free height and width, right at three other sizes."""
    module = subject.make(torch.float32)
    program = _exported(subject, module)
    known = "check_guards" in inspect.signature(program.module).parameters  # newer torch checks sizes by itself
    exported: Any = program.module(**({"check_guards": False} if known else {}))
    return _right_elsewhere(subject, module, lambda inputs: outputs(exported, inputs))


@torch.no_grad()
def exports_onnx(subject: Subject) -> Outcome:
    """ONNX with free height and width, right in onnxruntime at three other sizes."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        return not_asked(f"{', '.join(missing)} not installed: pip install 'lookfar[onnx]'")
    import onnxruntime

    module = subject.make(torch.float32)
    with _quiet():
        program = torch.onnx.export(
            module,
            subject.inputs(module, dtype=torch.float32),
            dynamo=True,
            dynamic_shapes=_free(subject, module),
            verbose=False,
        )
    if program is None:
        return broken("torch.onnx gave no program")
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        found = session.run(None, {name: t.contiguous().numpy() for name, t in zip(names, inputs)})
        return [torch.as_tensor(y) for y in found]

    return _right_elsewhere(subject, module, run)


def _exported(subject: Subject, module: nn.Module) -> torch.export.ExportedProgram:
    with _quiet():
        return torch.export.export(
            module,
            subject.inputs(module, dtype=torch.float32),
            dynamic_shapes=_free(subject, module),
            strict=False,
        )


def _free(subject: Subject, module: nn.Module) -> tuple[dict[int, Any] | None, ...]:
    """The axes of every input that follow the size of the map."""
    here, there = subject.inputs(module), subject.inputs(module, OTHER_SIZES[len(subject.size)][0])
    free = ([axis for axis, (n, m) in enumerate(zip(x.shape, y.shape)) if n != m] for x, y in zip(here, there))
    return tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) or None for axes in free)


def _right_elsewhere(subject: Subject, module: nn.Module, run: Callable[[tuple[Tensor, ...]], list[Tensor]]) -> Outcome:
    faults = []
    sizes = OTHER_SIZES[len(subject.size)]
    for size in sizes:
        inputs = subject.inputs(module, size, dtype=torch.float32)
        try:
            want = outputs(module, inputs)
        except Exception:  # the module itself does not run there, which its own row reports
            continue
        try:
            change = all_moved(run(inputs), want)
            if change > ROUNDING:
                faults.append(f"at {by_size(size)} off by {percent(change)}")
        except Exception as error:
            faults.append(f"made at {by_size(subject.size)}, fails at {by_size(size)}: {said(error, 90)}")
    return verdict(faults, fine=f"right at {', '.join(map(by_size, sizes))}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters log what is in their exceptions too."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)

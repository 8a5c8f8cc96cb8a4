"""Promises about parameters: all are registered, all are reached."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lookfar._tables import listed
from lookfar.check.outcome import Outcome, holds, verdict
from lookfar.check.subject import Subject, outputs, pull

_OWN = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}


def registered(subject: Subject) -> Outcome:
    """No layer or parameter lives where ``parameters()``, ``to`` and ``state_dict`` do not see it."""
    module = subject.build()
    known = {id(t) for t in (*module.parameters(), *module.buffers())}
    modules = {id(m) for m in module.modules()}
    lost: list[str] = []
    constants: list[str] = []
    for name, value in plain_attributes(module):
        if isinstance(value, nn.Module):
            if id(value) not in modules and any(True for _ in value.parameters()):
                lost.append(f"{name} ({type(value).__name__})")
        elif id(value) not in known:
            (lost if value.requires_grad else constants).append(f"{name} {tuple(value.shape)}")
    faults = [f"not registered: {listed(lost)}: no optimiser, .to() or state_dict sees them"] if lost else []
    if not lost and (hidden := _leaves_outside(subject)):
        faults.append(
            f"{hidden} tensors that learn are not among parameters(): layers in a closure or made in forward?"
        )
    count = sum(p.numel() for p in module.parameters())
    if faults and not count:
        faults.append("parameters() is empty")
    facts = [f"plain tensors that .to() and state_dict leave behind: {listed(constants)}"] if constants else []
    return verdict(faults, facts, f"{count:,} numbers" if count else "it has none")


def plain_attributes(module: nn.Module) -> Iterator[tuple[str, nn.Module | Tensor]]:
    """Modules and floating tensors in the attributes of registered modules, inside lists and dictionaries too."""
    for prefix, owner in module.named_modules():
        for key, value in vars(owner).items():
            if key not in _OWN and not key.endswith("_hooks"):
                yield from _inside(f"{prefix}.{key}".lstrip("."), value, depth=4)


def _inside(name: str, value: Any, depth: int) -> Iterator[tuple[str, nn.Module | Tensor]]:
    if isinstance(value, nn.Module) or (isinstance(value, Tensor) and value.is_floating_point()):
        yield name, value
    elif isinstance(value, list | tuple | set) and depth:
        for n, item in enumerate(value):
            yield from _inside(f"{name}[{n}]", item, depth - 1)
    elif isinstance(value, dict) and depth:
        for key, item in value.items():
            yield from _inside(f"{name}[{key!r}]", item, depth - 1)


def _leaves_outside(subject: Subject) -> int:
    """Leaves of the graph of a forward pass that are not parameters."""
    module = subject.build().to(subject.dtype)
    known = {id(p) for p in module.parameters()}
    found: dict[int, Tensor] = {}
    try:
        nodes = [y.grad_fn for y in outputs(module, subject.inputs(module)) if y.grad_fn is not None]
    except Exception:  # a module that does not run has a row for that
        return 0
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            found[id(leaf)] = leaf
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return len(found)


def reached(subject: Subject) -> Outcome:
    """After all parameters are perturbed, autograd gives each of them a gradient."""
    largest: dict[str, float] = {}
    failed: list[Exception] = []
    for train, factor in ((True, 1.0), (False, 1.0), (False, 8.0)):
        module = subject.make(train=train)
        try:
            x, *rest = subject.inputs(module, batch=4)
            y = pull(outputs(module, (factor * x, *rest)))
            if y.requires_grad:
                y.backward()
        except Exception as error:
            failed.append(error)
            continue
        for name, p in module.named_parameters():
            if p.grad is not None:
                largest[name] = max(largest.get(name, 0.0), float(p.grad.abs().max()))
    if len(failed) == 3:
        raise failed[0]
    parameters = dict(subject.make().named_parameters())
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    outside = [name for name in parameters if name not in largest and name not in frozen]
    limit = (1e-9 if subject.dtype == torch.float64 else 1e-6) * max(largest.values(), default=1.0)
    zero = [name for name, size in largest.items() if size <= limit]
    faults = [f"outside the graph, where DDP stops: {listed(outside)}"] if outside else []
    if failed:
        faults.append(f"a pass in {'training' if len(failed) == 1 else 'eval'} fails")
    facts = [f"gradient exactly zero: {listed(zero)}"] if zero else []
    facts += [f"declared frozen: {listed(frozen)}"] if frozen else []
    return verdict(faults, facts) if parameters else holds("it has none")

"""When a custom autograd function can be used, and what replaces its gradient where that is differentiated again.

The custom functions of this library have fast, hand-written first derivatives. They cannot be used in graphs with
dynamic sizes, under the transforms of ``torch.func`` or for forward-mode derivatives. There each op falls back to its
plain form, made of ordinary differentiable operations.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

# A step within a step must be recomputed as it was run, also where the backward pass is run under a transform.
_within_a_step = ContextVar("within a recomputed step", default=False)


def under_transform() -> bool:
    """Whether a transform of ``torch.func`` is active: vmap, grad, jvp and those built on them."""
    return torch._C._are_functorch_transforms_active()  # what ``torch.autograd.Function.apply`` itself asks


def traced() -> bool:
    """Whether a program is being compiled, exported or traced: sizes may be dynamic, and no loop may depend on them."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def compiled_here() -> bool:
    """Whether a program is being compiled for this process alone, which may call operations of this library.

    Exported programs are loaded without it. Its operations know nothing of ``torch.func`` and forward-mode derivatives.
    """
    # torch 2.8 takes what is compiled for being exported
    compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return compiled and not under_transform() and forward_ad._current_level < 0


def compiled_for(*sizes: int) -> bool:
    """Whether a program is :func:`compiled_here` for these sizes alone, on which its loops may depend."""
    if not compiled_here():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # takes a second to import, and is by then

    return all(has_static_value(n) for n in sizes)


def for_graphs() -> bool:
    """Whether sizes may be dynamic or a transform is active."""
    return traced() or under_transform()


def has_tangent(*tensors: Tensor) -> bool:
    """Whether a forward-mode derivative is being computed."""
    return forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def needs_graph() -> bool:
    """Whether a backward pass must itself be differentiable (``create_graph=True``) or is run under vmap."""
    return torch.is_grad_enabled() or under_transform()


def gradients(
    f: Callable[..., Tensor], inputs: Sequence[Tensor], wanted: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Gradients of ``f`` at ``inputs`` by ordinary differentiation, None where not wanted.

    For a backward pass that :func:`needs_graph`: ``f`` is the plain form, whose gradient has a graph of its own.

    >>> x = torch.tensor([1.0, 2.0])
    >>> gradients(lambda a, b: a * b, [x, x], [True, False], torch.ones(2))
    [tensor([1., 2.]), None]
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # views, since two inputs may be the same tensor
        fresh = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_(w) for t, w in zip(inputs, wanted)]
        y = f(*fresh)
    sources = [t for t, w in zip(fresh, wanted) if w]
    found = iter(torch.autograd.grad(y, sources, grad.to(y.dtype), create_graph=again, materialize_grads=True))
    return [next(found) if w else None for w in wanted]


def recomputed(f: Callable[..., Any], *args: Any) -> Any:
    """``f(*args)``, recomputed in the backward pass instead of being stored for it, where possible."""
    tensors = [t for t in args if isinstance(t, Tensor)]
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if not wanted or (not _within_a_step.get() and (for_graphs() or has_tangent(*tensors))):
        return f(*args)
    return checkpoint(_step, f, *args, use_reentrant=False, preserve_rng_state=False)


def _step(f: Callable[..., Any], *args: Any) -> Any:
    token = _within_a_step.set(True)
    try:
        return f(*args)
    finally:
        _within_a_step.reset(token)

"""Loops that compiled programs call as they are, each as one operation.

Traced, a loop over blocks would be unrolled for one size, or give way to its plain form, which holds everything at
once. Exported programs take the plain form: they are loaded where lookfar is not installed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lookfar.ops._autograd import compiled_here, gradients, needs_graph, traced
from lookfar.ops._precision import without_autocast


@dataclass(frozen=True)
class Loop:
    """What is known of a loop over ``given`` tensors, with sizes and words for further arguments.

    Attributes:
        name: Of its own among all loops.
        forward: ``(given, sizes, words) -> y``.
        backward: ``(given, sizes, words, dy, wanted) -> gradients``, of each of ``given``; None where not wanted.
        plain: As ``forward``, in ordinary operations: its gradients have gradients.
        shape: Of y, ``(given, sizes) -> shape``; its type is that of the first tensor.
    """

    name: str
    forward: Callable[..., Tensor]
    backward: Callable[..., Sequence[Tensor | None]]
    plain: Callable[..., Tensor]
    shape: Callable[..., Sequence[int]]

    def __post_init__(self) -> None:
        _LOOPS[self.name] = self

    def __call__(self, given: Sequence[Tensor], sizes: Sequence[int] = (), words: Sequence[str] = ()) -> Tensor:
        """The operation, for programs that are being compiled."""
        return _forward(self.name, given, sizes, words)


_LOOPS: dict[str, Loop] = {}


def trains_compiled(*inputs: Tensor) -> bool:
    """Whether a program is compiled that is differentiated: others are faster where they fuse what a loop does."""
    return compiled_here() and torch.is_grad_enabled() and any(t.requires_grad for t in inputs)


def of_function(
    name: str,
    function: Any,
    plain: Callable[..., Tensor],
    shape: Callable[..., Sequence[int]],
    **setting: Callable[[Sequence[int], Sequence[str]], Any],
) -> Loop:
    """Of an autograd function of tensors, which it saves.

    Args:
        name: Of the loop.
        function: The autograd function.
        plain: What takes the same, in ordinary operations.
        shape: As in :class:`Loop`.
        setting: The last argument of both, made of sizes and words, by the name under which the context keeps it.
    """

    def made(sizes: Sequence[int], words: Sequence[str]) -> dict[str, Any]:
        return {key: of(sizes, words) for key, of in setting.items()}

    def forward(given: Sequence[Tensor], sizes: Sequence[int], words: Sequence[str]) -> Tensor:
        return function.forward(
            SimpleNamespace(save_for_backward=lambda *_: None), *given, *made(sizes, words).values()
        )

    def backward(
        given: Sequence[Tensor], sizes: Sequence[int], words: Sequence[str], dy: Tensor, wanted: Sequence[bool]
    ) -> Any:
        ctx = SimpleNamespace(saved_tensors=tuple(given), needs_input_grad=wanted, **made(sizes, words))
        return function.backward(ctx, dy)[: len(given)]

    return Loop(name, forward, backward, lambda given, *of: plain(*given, *made(*of).values()), shape)


@torch.library.custom_op(
    "lookfar::loop", mutates_args=(), schema="(str name, Tensor[] given, SymInt[] sizes, str[] words) -> Tensor"
)
def _forward(name: str, given: Sequence[Tensor], sizes: Sequence[int], words: Sequence[str]) -> Tensor:
    with without_autocast(given[0]):
        return _LOOPS[name].forward(given, sizes, words).contiguous()  # as :func:`_empty` has it


@_forward.register_fake
def _empty(name: str, given: Sequence[Tensor], sizes: Sequence[int], words: Sequence[str]) -> Tensor:
    return given[0].new_empty(tuple(_LOOPS[name].shape(given, sizes)))


@torch.library.custom_op(
    "lookfar::loop_backward",
    mutates_args=(),
    schema="(str name, Tensor[] given, SymInt[] sizes, str[] words, Tensor dy, bool[] wanted) -> Tensor[]",
)
def _backward(
    name: str,
    given: Sequence[Tensor],
    sizes: Sequence[int],
    words: Sequence[str],
    dy: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """A gradient for each of ``given``; nothing, ``(0,)``, for those that are not wanted."""
    with without_autocast(dy):
        found = _LOOPS[name].backward(given, sizes, words, dy, wanted)
    return [
        g.sum_to_size(t.shape).contiguous() if w and g is not None else t.new_empty(0)
        for g, w, t in zip(found, wanted, given, strict=True)
    ]


@_backward.register_fake
def _empty_gradients(name: str, given: Sequence[Tensor], *others: Any) -> list[Tensor]:
    return [t.new_empty(t.shape if w else (0,)) for t, w in zip(given, others[-1])]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.name, given, ctx.sizes, ctx.words = inputs
    ctx.save_for_backward(*given)


def _differentiated(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    given, wanted = ctx.saved_tensors, list(ctx.needs_input_grad[1])
    if needs_graph():
        plain = _LOOPS[ctx.name].plain
        found = gradients(lambda *given: plain(given, ctx.sizes, ctx.words), given, wanted, dy)
    else:
        found = _backward(ctx.name, given, ctx.sizes, ctx.words, dy.contiguous(), wanted)
        found = [g if w else None for g, w in zip(found, wanted)]
    none = [None if listed else [] for listed in (ctx.sizes, ctx.words)]  # torch takes an empty list for one of tensors
    return None, found, *none


_forward.register_autograd(_differentiated, setup_context=_keep)


@dataclass(frozen=True)
class Tiled:
    """A loop over ``given`` tensors of one type whose backward pass reads what its forward pass gave.

    Not only compiled programs call it; in them it is one operation, too.

    Attributes:
        name: Of its own among all of these.
        forward: ``(given, sizes) -> y, kept``, such as logarithms of what weights were divided by.
        backward: ``(given, sizes, y, kept, dy) -> gradients`` of all of ``given``.
        plain: ``(given, sizes) -> y`` in ordinary operations: its gradients have gradients.
        shapes: Of y and what is kept, ``(given, sizes) -> shape, shape``.
    """

    name: str
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., Sequence[Tensor]]
    plain: Callable[..., Tensor]
    shapes: Callable[..., tuple[Sequence[int], Sequence[int]]]

    def __post_init__(self) -> None:
        _TILED[self.name] = self

    def __call__(self, given: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
        """y, which the caller may change in place."""
        y: Any = _tiled(self.name, given, sizes)[0] if traced() else _Tiled.apply(self, sizes, *given)
        return y.clone() if y.requires_grad else y


_TILED: dict[str, Tiled] = {}


class _Tiled(torch.autograd.Function):
    """For programs that are not compiled: what counts operations sees those of the loop."""

    @staticmethod
    def forward(ctx: Any, loop: Tiled, sizes: Sequence[int], *given: Tensor) -> Tensor:
        y, kept = loop.forward(given, sizes)
        ctx.loop, ctx.sizes = loop, sizes
        ctx.save_for_backward(*given, y, kept)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        *given, y, kept = ctx.saved_tensors
        if needs_graph():
            wanted = ctx.needs_input_grad[2:]
            return None, None, *gradients(lambda *t: ctx.loop.plain(t, ctx.sizes), given, wanted, grads[0])
        with without_autocast(y):
            return None, None, *ctx.loop.backward(given, ctx.sizes, y, kept, grads[0])


@torch.library.custom_op(
    "lookfar::tiled", mutates_args=(), schema="(str name, Tensor[] given, SymInt[] sizes) -> (Tensor, Tensor)"
)
def _tiled(name: str, given: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    if not all(t.numel() for t in given):
        y, kept = _empty_tiled(name, given, sizes)
        return y.zero_(), kept.zero_()
    with without_autocast(given[0]):
        return _TILED[name].forward(given, sizes)


@_tiled.register_fake
def _empty_tiled(name: str, given: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    y, kept = (given[0].new_empty(tuple(shape)) for shape in _TILED[name].shapes(given, sizes))
    return y, kept


@torch.library.custom_op(
    "lookfar::tiled_backward",
    mutates_args=(),
    schema="(str name, Tensor[] given, SymInt[] sizes, Tensor y, Tensor kept, Tensor dy) -> Tensor[]",
)
def _tiled_backward(
    name: str, given: Sequence[Tensor], sizes: Sequence[int], y: Tensor, kept: Tensor, dy: Tensor
) -> list[Tensor]:
    if not all(t.numel() for t in given):
        return [t.new_zeros(t.shape) for t in given]
    with without_autocast(y):
        return [g.contiguous() for g in _TILED[name].backward(given, sizes, y, kept, dy)]


@_tiled_backward.register_fake
def _empty_gradients_of_tiled(name: str, given: Sequence[Tensor], *others: Any) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in given]


def _keep_tiled(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.name, given, ctx.sizes = inputs
    ctx.save_for_backward(*given, *output)


def _differentiated_tiled(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Any, ...]:
    *given, y, kept = ctx.saved_tensors
    wanted = ctx.needs_input_grad[1]
    if needs_graph():
        found = gradients(lambda *t: _TILED[ctx.name].plain(t, ctx.sizes), given, wanted, dy)
    else:
        found = _tiled_backward(ctx.name, given, ctx.sizes, y, kept, dy)
    return None, [g if w else None for g, w in zip(found, wanted)], None if ctx.sizes else []


_tiled.register_autograd(_differentiated_tiled, setup_context=_keep_tiled)

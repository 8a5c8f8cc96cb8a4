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

from lookfar.ops._autograd import compiled_here, gradients, needs_graph
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

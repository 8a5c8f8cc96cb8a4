"""Under activation checkpointing nothing is held but the input: all that a backward pass needs is seen by its hooks."""

from collections.abc import Callable

import pytest
import torch
from ops._every import CASES
from samples import Sample, outputs, samples
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from lookfar.ops import _tiles, embedded_gaussian


def held(f: Callable[..., list[Tensor]], *inputs: Tensor) -> int:
    """Bytes that are allocated after a checkpointed call beyond its inputs and outputs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorder:
        found = checkpoint(f, *inputs, use_reentrant=False, preserve_rng_state=False)
    total = sum(event.self_cpu_memory_usage for event in recorder.events())
    return total - sum(y.untyped_storage().nbytes() for y in found)


# of numbers that torch keeps, such as the place of a maximum's gradient; an input has more
LITTLE = 512


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ops(case):
    inputs = [t.requires_grad_(n in case.wanted) for n, t in enumerate(case.inputs(batch=8))]
    assert held(lambda *t: [case.fast(*t)], *inputs) <= LITTLE


@samples(variants=False)
def test_blocks(sample: Sample):
    block = sample.make(train=True)
    inputs = sample.inputs(block)
    x = inputs[0].requires_grad_()
    outputs(block, inputs)  # what is made once stays
    assert held(lambda x: outputs(block, (x, *inputs[1:])), x) <= LITTLE


def test_the_measure_sees_what_is_kept():
    """A function that hides its tensors from the hooks is what this file looks for."""

    class Hiding(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.kept = x.exp()
            return ctx.kept.clone()

        @staticmethod
        def backward(ctx, *grads):
            return grads[0] * ctx.kept

    x = torch.randn(1000, requires_grad=True)
    assert held(lambda x: [Hiding.apply(x)], x) == 4000


@pytest.mark.parametrize("width", [8, 5], ids=["equal widths", "filled up"])
def test_fused_attention_holds_what_its_kernel_does(width: int):
    """Without checkpointing: inputs in one width, the kernel's output and the logarithms of its denominators.

    More positions than have all their weights in one tile, which then are kept.
    """
    N = 320
    assert _tiles.LIMITS["rows"] * _tiles.LIMITS["keys"] < 2 * N * N
    q, k, v = (torch.randn(1, 2, N, d, requires_grad=True) for d in (width, width, 8))
    seen = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: seen.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
    ):
        y = embedded_gaussian(q, k, v)
    assert y.requires_grad
    assert sum(t.untyped_storage().nbytes() for t in seen.values()) <= (4 * 8 + 1) * 2 * N * 4

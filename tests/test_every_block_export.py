"""Blocks leave Python by ``torch.export``, some to ONNX, with free height and width where their sizes are free."""

import copy
import functools
import io
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from samples import Sample, assert_same, outputs, samples
from torch import Tensor
from variants import STATIC_EXPORT

from lookfar import list_blocks

LONG = {"interlaced"}  # six seconds an option: its options are exported at one size

every_block = samples()
# Fifteen seconds a block: those whose mathematics meets different operators of ONNX. tests/insertion/matrix.py asks
# every context block, inserted.
TO_ONNX = (
    "atrous_pyramid", "carafe", "criss_cross", "expectation_maximization", "glimpse", "global_context", "nonlocal",
    "object_contextual", "point_stage", "pointwise_spatial_attention", "relation", "spatial_transformer",
    "squeeze_excitation",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _translations_read_once() -> Iterator[None]:
    """The exporter reads the source of its 500 translations for every model anew: half of its time, sixty times."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            from torch.onnx._internal.exporter import _registration

            read = functools.cache(lambda apis=_registration.onnxscript_apis: apis.get_torchlib_ops())
            patch.setattr(_registration, "onnxscript_apis", SimpleNamespace(get_torchlib_ops=read))
        except (ImportError, AttributeError):
            pass  # another torch: it only takes longer
        yield


def dynamic(sample: Sample, inputs: tuple[Tensor, ...]) -> tuple[dict[int, object], ...] | None:
    """The axes of every input that follow the size of the map. None for one size alone.

    Options are asked too: one may freeze the size of the example into the graph, which is silently wrong elsewhere.
    """
    if sample.name in STATIC_EXPORT or (sample.options and sample.name in LONG):
        return None
    if "pool" in sample.options:  # a program refuses maps that are pooled to one position by itself
        return None
    if getattr(sample.build(), "_on_grid", False):  # the square root of a number of tokens is fixed in a program
        return None
    others = sample.inputs(sample.build(), sample.sizes[1])
    free = ([axis for axis, (n, m) in enumerate(zip(x.shape, y.shape)) if n != m] for x, y in zip(inputs, others))
    return tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in free)


@torch.no_grad()
@every_block
def test_torch_export(sample: Sample) -> None:
    m = sample.make()
    inputs = sample.inputs(m)
    axes = dynamic(sample, inputs)
    exported = torch.export.export(m, inputs, dynamic_shapes=axes, strict=False).module(check_guards=False)
    for size in sample.sizes[: 1 if axes is None else 2]:
        inputs = sample.inputs(m, size)
        for y, want in zip(outputs(exported, inputs), outputs(m, inputs)):
            assert_same(f"{sample} at {size}", y, want)


@pytest.mark.parametrize(
    "sample",
    [*(Sample(name, {}) for name in list_blocks(kind="context")), Sample("expectation_maximization", {"heads": 2})],
    ids=str,
)
def test_a_program_that_was_exported_with_gradients_is_loaded_again(sample: Sample) -> None:
    """Torch writes what stands under no_grad inside autocast into a program that it refuses to read."""
    m = sample.make().train()
    inputs = sample.inputs(m)
    file = io.BytesIO()
    torch.export.save(torch.export.export(m, inputs, strict=False), file)
    file.seek(0)
    assert torch.export.load(file).module(check_guards=False)(*inputs).shape == inputs[0].shape


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporter's own making
@torch.no_grad()
@pytest.mark.parametrize(
    "sample", [*(Sample(name, {}) for name in TO_ONNX), Sample("local_relation", {"kernel_size": 3})], ids=str
)
def test_onnx(sample: Sample) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX needs `pip install lookfar[onnx]`")
    m = sample.make(dtype=torch.float32)
    inputs = sample.inputs(m)
    axes = dynamic(sample, inputs)
    program = torch.onnx.export(m, inputs, dynamo=True, dynamic_shapes=axes, verbose=False, optimize=True)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for size in sample.sizes[: 1 if axes is None else 2]:
        inputs = sample.inputs(m, size)
        names = [node.name for node in session.get_inputs()]
        found = session.run(None, {name: x.numpy() for name, x in zip(names, inputs)})
        exact = outputs(copy.deepcopy(m).double(), tuple(x.double() for x in inputs))
        for y, want, right in zip(found, outputs(m, inputs), exact):
            # logarithms of gates that are nearly nothing tell one processor's rounding from another's
            own = float((want.double() - right).abs().max() / right.abs().max().clamp_min(1))
            assert_same(f"{sample} at {size}", torch.from_numpy(y), want, max(1e-4, 10 * own))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@torch.no_grad()
@samples("context")
def test_jit_trace(sample: Sample) -> None:
    """A trace takes the branches of its example: a branch by size would be wrong, in silence, at every other size."""
    m = sample.make()
    sizes = [*sample.sizes[:2], *([(12, 9)] if len(sample.sizes[0]) == 2 else [])]
    for example in (sizes[0], sizes[-1]):
        traced = torch.jit.trace(m, sample.inputs(m, example), check_trace=False)
        for size in sizes:
            inputs = sample.inputs(m, size)
            for y, want in zip(outputs(traced, inputs), outputs(m, inputs)):
                # a number made of sizes is one of float32 in a trace
                assert_same(f"{sample} traced at {example}, run at {size}", y, want, 1e-6)

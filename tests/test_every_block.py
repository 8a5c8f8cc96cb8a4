"""What every block promises, asked of each registered block and of the options in :mod:`variants`.

A new block is tested by being registered. Context blocks promise all of it; the other kinds promise all but the shape
and the identity, on the inputs that their ``sample_inputs`` gives.
"""

import math
import pickle

import pytest
import torch
from samples import (
    Sample,
    assert_all_same,
    assert_same,
    inert,
    learns_exactly,
    outputs,
    pull,
    samples,
    twin,
    with_gradients,
)
from torch import Tensor, nn
from variants import WIDE

from lookfar.blocks import create_block, sample_inputs
from lookfar.diagnostics.maps import map_kinds
from lookfar.ops._layout import memory_format

every_block = samples()
every_default = samples(variants=False)
every_context = samples("context")


@every_context
def test_shape_is_kept(sample: Sample) -> None:
    m = sample.make()
    for size in sample.sizes:
        for batch in (0, 1, 3):
            (x,) = sample.inputs(m, size, batch=batch)[:1]
            y = m(x)
            assert y.shape == x.shape
            assert y.dtype == x.dtype
            assert y.isfinite().all()


@every_context
def test_an_empty_batch_trains(sample: Sample) -> None:
    m = sample.make()
    (x, *rest) = sample.inputs(m, batch=0)
    m(x.requires_grad_(), *rest).sum().backward()
    assert x.grad is not None
    assert all((p.grad == 0).all() for p in m.parameters() if p.grad is not None)


@torch.no_grad()
@every_block
def test_runs_on_odd_sizes(sample: Sample) -> None:
    m = sample.make()
    for size in sample.sizes:
        for y in outputs(m, sample.inputs(m, size, batch=1)):
            assert y.isfinite().all()


@every_context
def test_memory_format_is_kept(sample: Sample) -> None:
    m = sample.make()
    x, *rest = sample.inputs(m)
    want = m(x, *rest)
    assert memory_format(want) == torch.contiguous_format
    wanted = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if wanted is None:
        pytest.skip("a 1-D map has one memory format")
    y = m(x.contiguous(memory_format=wanted), *rest)
    assert y.is_contiguous(memory_format=wanted)
    assert_same(sample, y, want)


@torch.no_grad()
@every_block
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision(sample: Sample, dtype: torch.dtype) -> None:
    m = sample.make(dtype=torch.float32)
    inputs = sample.inputs(m)
    want = outputs(m, inputs)
    with torch.autocast("cpu", dtype=dtype):
        mixed = outputs(m, inputs)
    # most numbers are near; single ones may fall to the other side of a kink or of a near tie
    for got, y in zip(mixed, want):
        assert got.isfinite().all()
        assert (got.double() - y.double()).abs().mean() < 0.05 * max(1.0, float(y.abs().mean()))
    m = m.to(dtype)
    for y in outputs(m, sample.inputs(m)):
        assert y.dtype == dtype, f"a block in {dtype} gives {y.dtype}"
        assert y.isfinite().all()


@torch.no_grad()
@every_block
def test_half_precision_does_not_overflow(sample: Sample) -> None:
    m = sample.make(dtype=torch.float32)
    inputs = tuple(30 * x if n == 0 else x for n, x in enumerate(sample.inputs(m)))
    want = outputs(m, inputs)
    with torch.autocast("cpu", dtype=torch.float16):
        got = outputs(m, inputs)
    for y, reference in zip(got, want):
        assert y[reference.isfinite()].isfinite().all()


@every_block
def test_gradient(sample: Sample) -> None:
    m = sample.make()
    if not learns_exactly(m):
        pytest.skip("the published gradient is not the derivative; the golden vectors hold it")
    inputs = sample.inputs(m, sample.sizes[-1], batch=2)
    names = [name for name, p in m.named_parameters() if p.requires_grad]
    values = [m.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def forward(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        found = torch.func.functional_call(m, dict(zip(names, values)), (x, *inputs[1:]))
        found = found if isinstance(found, tuple | list) else (found,)
        return tuple(y for y in found if y.is_floating_point())

    torch.autograd.gradcheck(forward, (inputs[0].requires_grad_(), *values), fast_mode=True)


def _as_matrix_product(t: Tensor) -> Tensor:
    """``t`` (B, C, *S) with the strides that a product of matrices over positions leaves: of one image (C, 1, ..)."""
    if t.dim() < 4:
        return t
    return t.flatten(2).transpose(1, 2).contiguous().transpose(1, 2).unflatten(2, t.shape[2:])


@every_block
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_one_image_has_the_gradient_that_it_has_in_a_batch(sample: Sample, train: bool) -> None:
    m = sample.make(train=train)
    batch = sample.inputs(m, batch=2)
    if any(x.shape[:1] != (2,) for x in batch):
        pytest.skip("some inputs belong to no image")
    mixing = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    if train and any(isinstance(layer, mixing) for layer in m.modules()):
        pytest.skip("statistics of the batch, or chance")
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(batch[0].dim())
    for memory in filter(None, (torch.contiguous_format, last)):
        for arrives in (Tensor.contiguous, _as_matrix_product):
            found = []
            for B in (2, 1):
                m.zero_grad()
                torch.manual_seed(1)
                x = batch[0][:B].clone(memory_format=memory).requires_grad_()
                # the second image takes part in the batch, and what comes back to it is zero
                ys = [y for y in outputs(m, (x, *(r[:B] for r in batch[1:]))) if y.requires_grad]
                torch.manual_seed(2)
                back = [torch.randn(1, *y.shape[1:], dtype=y.dtype) for y in ys]
                back = [torch.cat([g, torch.zeros_like(g)]) if B == 2 else g for g in back]
                torch.autograd.backward(ys, [arrives(g) for g in back])
                assert x.grad is not None
                found.append({f"d{n}": p.grad.clone() for n, p in m.named_parameters() if p.grad is not None})
                found[-1]["dx"] = x.grad[:1]
            assert_all_same(f"{sample} {memory} {arrives.__name__}", found[1], found[0])


@every_block
def test_gradient_of_one_image_in_training(sample: Sample) -> None:
    m = sample.make(train=True)
    if not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in m.modules()) or not learns_exactly(m):
        pytest.skip("without statistics of the batch it is as in eval; and some gradients are no derivatives")
    x, *rest = sample.inputs(m, batch=1)
    parameters, buffers = dict(m.named_parameters()), dict(m.named_buffers())
    try:
        weights = [torch.randn_like(y) for y in outputs(twin(m), (x, *rest))]
    except ValueError as e:
        if "more than 1 value per channel" not in str(e):
            raise
        pytest.skip("pools to one position, which has no statistics")

    def forward(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        moved = {name: b.clone() for name, b in buffers.items()}  # a forward in training moves them
        found = torch.func.functional_call(m, parameters | moved, (x, *rest))
        found = found if isinstance(found, tuple | list) else (found,)
        return sum(((_as_matrix_product(y) * w).sum() for y, w in zip(found, weights)), x.new_zeros(()))

    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    for memory in filter(None, (torch.contiguous_format, last)):
        torch.autograd.gradcheck(forward, (x.clone(memory_format=memory).requires_grad_(),), fast_mode=True)


@every_block
def test_every_parameter_is_reached(sample: Sample) -> None:
    m = sample.make()
    size, factor = WIDE.get(sample.name, (None, 1.0))
    x, *rest = sample.inputs(m, size)
    found = with_gradients(m, (factor * x, *rest))
    scale = max((float(found[f"d{n}"].abs().max()) for n, _ in m.named_parameters() if f"d{n}" in found), default=1.0)
    unknown = set(inert(m)) - dict(m.named_parameters()).keys()
    assert not unknown, f"inert_parameters names {unknown}, which do not exist"
    for name, p in m.named_parameters():
        if not p.requires_grad:
            continue
        assert f"d{name}" in found, f"{name} is outside the graph: DDP stops on it"
        size = float(found[f"d{name}"].abs().max())
        if name in inert(m):
            assert size <= 1e-9 * max(1.0, scale), f"{name} is declared inert and has gradient {size:.1e}"
        else:
            assert size > 1e-9 * scale, f"{name} learns nothing: largest gradient {size:.1e} of {scale:.1e}"


@every_block
def test_all_trainable_parameters_stay_in_the_training_graph(sample: Sample) -> None:
    m = sample.make(train=True)
    found = with_gradients(m, sample.inputs(m))
    missing = [name for name, p in m.named_parameters() if p.requires_grad and f"d{name}" not in found]
    assert not missing, f"DDP would stop on {missing}"


@every_context
def test_starts_as_the_identity(sample: Sample) -> None:
    if not sample.info.residual or sample.options.get("zero_init") is False:
        pytest.skip("not residual by nature: insertion wraps it")
    for train in (False, True):
        m = sample.build().train(train)
        x, *rest = sample.inputs(m)
        assert torch.equal(m(x, *rest), x)


@every_context
def test_everything_learns_from_the_start(sample: Sample) -> None:
    """One zero factor a path: two would never learn."""
    m = sample.build(dtype=torch.float64).eval()
    inputs = sample.inputs(m, WIDE.get(sample.name, (None, 1.0))[0])  # a softmax over one key has no gradient
    target = torch.randn_like(inputs[0])
    trained = {name: p for name, p in m.named_parameters() if p.requires_grad and name not in inert(m)}
    optimiser = torch.optim.Adam(trained.values(), lr=0.01)
    asleep = set(trained)
    for _ in range(3):
        optimiser.zero_grad()
        (m(*inputs) - target).square().mean().backward()
        asleep -= {name for name in asleep if (g := trained[name].grad) is not None and g.abs().max() > 0}
        optimiser.step()
    if learns_exactly(m):
        assert not asleep, f"no gradient after two steps: {sorted(asleep)}"


@samples(attends="weights")
def test_weights_times_values_is_the_output(sample: Sample) -> None:
    m = sample.make()
    for size in sample.sizes[:4]:
        x, *_ = sample.inputs(m, size)
        weights, values = m.attention(x), m.values(x)
        B, heads, Q, M = weights.shape
        assert x.shape[0] == B
        y = m(x)
        # positions of a map (B, C, *S), also of an output of another size or of that pooled, or tokens (B, N, C)
        pooled = math.prod(-(-n // getattr(m, "pool", 1)) for n in y.shape[2:])
        assert Q in (x[0, 0].numel(), y[0, 0].numel(), x.shape[1], pooled)
        assert values.shape[:3] == (B, heads, M)
        kinds = map_kinds(m)
        assert heads == len(kinds) * getattr(m, "heads", getattr(m, "groups", 1)) or not kinds
        assert_same(sample, m.finish(x, weights @ values), y)
        chosen = torch.tensor([Q - 1, 0, Q // 2])
        assert_same(sample, m.attention(x, chosen), weights[:, :, chosen])
        if sample.info.family == "global":
            assert_same(f"{sample}: one map for all queries", weights, weights[:, :, :1].expand_as(weights))


# of the module, of the features, of autocast; and the mean error that is allowed, of the mean number
PRECISIONS = {
    "float64": (torch.float64, torch.float64, None, 1e-9),
    "float32": (torch.float32, torch.float32, None, 1e-4),
    "bf16": (torch.bfloat16, torch.bfloat16, None, 0.03),
    "fp16": (torch.float16, torch.float16, None, 0.004),
    "float32 under bf16": (torch.float32, torch.float32, torch.bfloat16, 0.03),
    "float32 under fp16": (torch.float32, torch.float32, torch.float16, 0.004),
    "bf16 features under bf16": (torch.float32, torch.bfloat16, torch.bfloat16, 0.03),
    "fp16 features under fp16": (torch.float32, torch.float16, torch.float16, 0.004),
}


@torch.no_grad()
@samples(attends="weights")
def test_weights_times_values_in_every_precision(sample: Sample) -> None:
    base = sample.make(dtype=torch.float32)
    for precision, (dtype, features, autocast, tolerance) in PRECISIONS.items():
        m = twin(base).to(dtype)
        x = sample.inputs(m, dtype=features)[0]
        last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
        for memory in filter(None, (torch.contiguous_format, last)):
            x = x.contiguous(memory_format=memory)
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                y, weights, values = m(x), m.attention(x), m.values(x)
                got = m.finish(x, weights @ values)
            assert weights.dtype == values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert got.dtype == y.dtype, f"{precision}: {got.dtype} for {y.dtype}"
            error = float((got.double() - y.double()).abs().mean() / y.double().abs().mean())
            assert error <= tolerance, f"{precision}, {memory}: off by {error:.1e}"


@samples(attends="maps")
def test_maps(sample: Sample) -> None:
    m = sample.make()
    inputs = sample.inputs(m)
    found = m.maps(*inputs)
    found = list(found.values()) if isinstance(found, dict) else found
    for maps in found if isinstance(found, tuple | list) else [found]:
        assert maps.shape[0] == inputs[0].shape[0]
        assert maps.isfinite().all()
        assert maps.numel()


@samples(attends="none")
def test_no_weights_over_positions(sample: Sample) -> None:
    m = sample.build()
    assert not hasattr(m, "attention")
    assert not hasattr(m, "maps")


@torch.no_grad()
@every_block
def test_images_do_not_see_each_other(sample: Sample) -> None:
    m = sample.make()
    inputs = sample.inputs(m)
    B = inputs[0].shape[0]
    if any(x.shape[:1] != (B,) for x in inputs):
        pytest.skip("some inputs belong to no image")
    for y, alone in zip(outputs(m, inputs), outputs(m, [x[1:2] for x in inputs])):
        assert_same(sample, y[1:2], alone)


@every_block
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_inputs_are_not_overwritten(sample: Sample, train: bool) -> None:
    m = sample.make(train=train)
    inputs = sample.inputs(m)
    before = [x.clone() for x in inputs]
    outputs(m, inputs)
    assert all(torch.equal(x, b) for x, b in zip(inputs, before))


@torch.no_grad()
@every_block
def test_nothing_is_left_over_from_another_size(sample: Sample) -> None:
    m = sample.make()
    first, second = (sample.inputs(m, size) for size in sample.sizes[:2])
    want = outputs(twin(m), first), outputs(twin(m), second)
    for inputs, wanted in [(first, want[0]), (second, want[1]), (first, want[0])]:
        for y, w in zip(outputs(m, inputs), wanted):
            assert torch.equal(y, w)


@every_block
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_deterministic(sample: Sample, train: bool) -> None:
    m = sample.make(train=train)
    inputs = sample.inputs(m)
    found = []
    for copied in (twin(m), twin(m)):
        torch.manual_seed(1)
        found.append(with_gradients(copied, inputs))
        if not train:
            torch.manual_seed(2)  # nothing is random in eval
            assert_all_same(sample, with_gradients(copied, inputs), found[0], 0)
    assert_all_same(sample, *found, 0)


@torch.no_grad()
@every_block
def test_copies_are_equal_and_independent(sample: Sample) -> None:
    m = sample.make()
    inputs = sample.inputs(m)
    want = [y.detach().clone() for y in outputs(m, inputs)]
    for copied in (twin(m), pickle.loads(pickle.dumps(m))):
        assert all(torch.equal(y, w) for y, w in zip(outputs(copied, inputs), want))
        with torch.no_grad():
            for p in copied.parameters():
                p.add_(1)
        assert all(torch.equal(y, w) for y, w in zip(outputs(m, inputs), want))


@torch.no_grad()
@every_block
def test_state_dict_carries_everything(sample: Sample) -> None:
    m = sample.make()
    inputs = sample.inputs(m)
    other = sample.make()
    other.load_state_dict(m.state_dict())
    assert all(torch.equal(y, w) for y, w in zip(outputs(other, inputs), outputs(m, inputs)))


@every_block
def test_device_and_dtype_go_everywhere(sample: Sample) -> None:
    m = sample.build(dtype=torch.float64).eval()
    wrong = [n for n, t in m.state_dict().items() if t.is_floating_point() and t.dtype != torch.float64]
    assert not wrong, f"not in the dtype asked for: {wrong}"
    assert all(y.dtype == torch.float64 for y in outputs(m, sample.inputs(m)) if y.is_floating_point())
    m = sample.build(device="meta")
    wrong = [n for n, t in [*m.named_parameters(), *m.named_buffers()] if not t.is_meta]
    assert not wrong, f"not on the device asked for: {wrong}"


@every_default
def test_unknown_option_names_the_known(sample: Sample) -> None:
    with pytest.raises(TypeError, match=f"{sample.name} has no option 'colour'"):
        create_block(sample.name, 16, colour="red")
    for option in sample.info.options:
        with pytest.raises(TypeError, match=rf"Did you mean {option}\?"):
            create_block(sample.name, 16, **{f"{option}_": 1})


@every_default
def test_an_odd_value_is_refused_by_name_or_works(sample: Sample) -> None:
    """Nothing foreign, when built or in forward, and nothing that gives NaN: option, value, what is accepted."""
    for option, parameter in sample.info.options.items():
        for value in (0, -1, 1.5, "x", None, True, (), (0,), float("nan")):
            try:
                m = create_block(sample.name, 16, **{option: value}).eval()
                got = outputs(m, sample_inputs(m, 16, (6, 5)))
            except ValueError as refusal:
                message = str(refusal)
                assert option in message, f"{option}={value!r}: {message}"
                assert repr(value) in message or value is True, f"{option}={value!r}: {message}"
                assert len(message) <= 240
                continue
            assert value not in ("x", (), (0,)), f"{option}={value!r} is taken in silence"
            assert value == value, f"{option}=nan is taken in silence"
            assert not isinstance(value, bool) or "bool" in str(parameter.annotation), f"{option}=True"
            assert all(y.isfinite().all() for y in got), f"{option}={value!r}"


@every_default
def test_defaults_fit_every_number_of_channels(sample: Sample) -> None:
    """Counts of groups and heads that the paper fixed are the largest that divide, where its own do not."""
    for channels in (*range(1, 65), 100, 152, 1000):
        create_block(sample.name, channels, device="meta")
    for channels in (1, 5, 12):
        m = create_block(sample.name, channels).eval()
        for y in outputs(m, sample_inputs(m, channels, (6, 5))):
            assert y.isfinite().all()


@every_default
def test_facts_are_complete(sample: Sample) -> None:
    info = sample.info
    for fact in ("title", "paper", "complexity", "memory", "verified"):
        assert getattr(info, fact), f"{sample.name} does not say its {fact}"
    assert "Shape:" in (info.cls.__doc__ or ""), f"{sample.name} does not say its shape"
    assert all(p.kind is p.KEYWORD_ONLY for p in info.options.values()), "options go by keyword"


def _assert_compiles(sample: Sample, backend: str, sizes: list[tuple[int, ...]]) -> None:
    """In one graph, with the gradients of a batch in training. Of more than one size it is a graph for all sizes."""
    torch._dynamo.reset()
    m = sample.make(train=True)
    other = twin(m)
    compiled = torch.compile(other, fullgraph=True, backend=backend, dynamic=len(sizes) > 1)
    for size in sizes:
        inputs = sample.inputs(m, size)
        found = []
        for module in (m, compiled):
            torch.manual_seed(1)
            x = inputs[0].clone().requires_grad_()
            ys = outputs(module, (x, *inputs[1:]))
            pull(ys).backward()
            found.append({f"y{n}": y for n, y in enumerate(ys)} | {"dx": x.grad})
        assert_all_same(sample, found[1], found[0])
    for (name, p), q in zip(m.named_parameters(), other.parameters()):
        if p.grad is not None:
            assert q.grad is not None, name
            assert_same(f"{sample} d{name}", q.grad, p.grad)


@every_block
def test_compiles_in_one_graph(sample: Sample) -> None:
    """Options at one size: that they leave sizes free is asked of their exported programs, at a third of the time."""
    _assert_compiles(sample, "eager", sample.sizes[: 1 if sample.options else 2])


@every_default
def test_compiles_with_its_backward_graph(sample: Sample) -> None:
    """At one size: with sizes as symbols it takes three times as long, and finds what the capture finds."""
    _assert_compiles(sample, "aot_eager", sample.sizes[:1])


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore::UserWarning")
@torch.no_grad()
@every_default
def test_dynamic_quantization_leaves_it_nearly_the_same(sample: Sample) -> None:
    """What reads a layer's weight would not survive the exchange of the layer."""
    m = sample.make().float().eval()
    if not any(isinstance(layer, nn.Linear) for layer in m.modules()):
        pytest.skip("no linear layers")
    inputs = [x.float() if x.is_floating_point() else x for x in sample.inputs(m)]
    quantized = torch.ao.quantization.quantize_dynamic(m, {nn.Linear})
    for got, want in zip(outputs(quantized, inputs), outputs(m, inputs)):
        assert_same("output", got, want, 0.1)

"""``residual=False``: a block is what it adds alone, f of x + f(x), exactly and with its gradients."""

from typing import Any

import pytest
import torch
from samples import Sample, assert_same, pull, randomise, samples
from torch import Tensor, nn

from lookfar.blocks import create_block
from lookfar.insertion import insert, insertions
from lookfar.insertion.gated import Gated
from lookfar.ops._layout import memory_format


def _refused(sample: Sample) -> bool:
    options = sample.options
    return (
        not sample.info.residual
        or options.get("form") == "published"
        or options.get("fusion") in ("mul", "both")
        or bool(options.get("final_act"))
    )


@samples("context")
def test_it_is_the_block_minus_its_input(sample: Sample) -> None:
    if _refused(sample):
        pytest.skip("no sum, or a ReLU behind it")
    alone = randomise(sample.build(residual=False, dtype=torch.float64)).eval()
    sums = {} if "zero_init" in sample.options else {"zero_init": False}
    whole = sample.build(dtype=torch.float64, **sums).eval()
    gates = whole.state_dict().keys() - alone.state_dict().keys()
    assert all(name.rpartition(".")[2] in ("gamma", "shortcut") for name in gates)
    whole.load_state_dict(whole.state_dict() | alone.state_dict())
    with torch.no_grad():
        for name in gates:
            whole.get_parameter(name).fill_(1)
    for size in (sample.sizes[0], sample.sizes[-1]):
        x, *_ = sample.inputs(alone, size, batch=1 if size == sample.sizes[-1] else 3)
        _assert_f(sample, alone, whole, x)


def _assert_f(sample: Sample, alone: Any, whole: nn.Module, x: Tensor) -> None:
    x.requires_grad_()
    last = getattr(whole, "_last_input", lambda x: x)  # criss-cross attention sums in the steps before the last, too
    want, got = whole(x) - last(x), alone(x)
    assert_same(sample, got, want)
    assert got.is_contiguous()
    grads = []
    for module, y in ((alone, got), (whole, want)):
        learned = [p for n, p in module.named_parameters() if p.requires_grad and n in alone.state_dict()]
        grads.append(torch.autograd.grad(pull([y]), [x, *learned], materialize_grads=True))
    for a, b in zip(*grads, strict=True):
        assert_same(f"{sample} gradient", a, b)
    if getattr(alone, "attends", sample.info.attends) == "weights":
        assert_same(f"{sample} law", alone.finish(x, alone.attention(x) @ alone.values(x)), got)
    if x.dim() == 4:
        nhwc = alone(x.contiguous(memory_format=torch.channels_last))
        assert memory_format(nhwc) == memory_format(x.contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nonlocal", {"zero_init": True}, "zero_init=True starts x"),
        ("interlaced", {"form": "published"}, "form='published' is the authors' module"),
        ("global_context", {"fusion": "both"}, "want fusion='add', got 'both'"),
    ],
)
def test_what_has_no_meaning_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_block(name, 16, residual=False, **options)
    with pytest.raises(TypeError, match="cbam has no option 'residual'"):
        create_block("cbam", 16, residual=False)


@pytest.mark.parametrize(
    ("name", "options"), [("position_attention", {}), ("dual_attention", {}), ("hamburger", {"variant": "v2plus"})]
)
def test_no_gate_is_left(name: str, options: dict[str, object]) -> None:
    keys = create_block(name, 16, residual=False, **options).state_dict()
    assert not [key for key in keys if key.rpartition(".")[2] in ("gamma", "shortcut")]


@pytest.mark.parametrize("built", [False, True], ids=["by name", "built"])
def test_inserted_it_enters_through_a_gate(built: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    x = torch.randn(2, 3, 9, 8)
    before = net(x)
    if built:
        insert(net, create_block("position_attention", 8, residual=False), "0", example=x)
    else:
        insert(net, "position_attention(residual=False, zero_init=False)", "0", example=x)
    assert torch.equal(net(x), before)
    assert isinstance(insertions(net)[0].module, Gated)

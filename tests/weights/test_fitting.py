"""Loading into a block: the authors' names, and what is said where weights do not fit."""

import re

import pytest
import torch
from samples import randomise
from torch import Tensor, nn

from lookfar import create_block, weights


def mmcv_nonlocal(channels: int = 16, inner: int = 8, *, norm: bool = True) -> dict[str, Tensor]:
    """Names and shapes of mmcv's NonLocal2d with conv_cfg and norm_cfg."""
    state = {}
    for name in ("g", "theta", "phi"):
        state |= {f"{name}.conv.weight": torch.randn(inner, channels, 1, 1), f"{name}.conv.bias": torch.randn(inner)}
    state["conv_out.conv.weight"] = torch.randn(channels, inner, 1, 1)
    if not norm:
        return state | {"conv_out.conv.bias": torch.randn(channels)}
    for name in ("weight", "bias", "running_mean", "running_var"):
        state[f"conv_out.bn.{name}"] = torch.rand(channels)
    return state | {"conv_out.bn.num_batches_tracked": torch.tensor(5)}


def segmentor(**at: dict[str, Tensor]) -> dict[str, Tensor]:
    """A head of mmsegmentation around a block, behind a backbone."""
    state = {"backbone.conv1.weight": torch.randn(4, 3, 3, 3), "backbone.bn1.weight": torch.randn(4)}
    state["decode_head.conv_seg.weight"] = torch.randn(5, 16, 1, 1)
    for name, part in at.items():
        state |= {f"decode_head.{name}.{key}": value for key, value in part.items()}
    return state


def refusal(name: str, options: dict, state: dict, prefix: str = "") -> str:
    block = create_block(name, **{"channels": 16, **options})
    kept = {key: value.clone() for key, value in block.state_dict().items()}
    with pytest.raises(ValueError, match="do not fit") as caught:
        weights.load(block, state, prefix=prefix)
    assert all(torch.equal(value, kept[key]) for key, value in block.state_dict().items()), "changed by halves"
    message = str(caught.value)
    assert message.count("\n") <= 2
    assert len(message) <= 240
    return message


@pytest.mark.parametrize(
    ("options", "made", "would_fit"),
    [
        ({}, {}, "project_bias=False"),
        ({"project_bias": False}, {"inner": 16}, "inner_channels=16"),
        ({"project_bias": False}, {"channels": 32, "inner": 16}, "channels=32"),
        ({}, {"norm": False}, "norm_layer=None"),
        ({"norm_layer": None}, {}, "norm_layer=nn.BatchNorm2d"),
        ({"mode": "gaussian", "project_bias": False}, {}, "mode='embedded_gaussian'"),
        ({"share_query_key": True, "project_bias": False}, {}, "share_query_key=False"),
        ({"heads": 2}, {"inner": 4}, "inner_channels=4"),
    ],
    ids=str,
)
def test_the_option_that_would_fit_is_named_and_does(options: dict, made: dict, would_fit: str) -> None:
    message = refusal("nonlocal", options, mmcv_nonlocal(**made))
    assert would_fit in message
    named = re.search(r"With (.*) they do\.", message)
    assert named, message
    changes = eval(f"dict({named[1]})", {"nn": nn})  # as a user would copy it
    weights.load(create_block("nonlocal", **{"channels": 16, **options, **changes}), mmcv_nonlocal(**made))


@pytest.mark.parametrize(
    ("name", "kept", "theirs", "would_fit"),
    [
        ("position_attention", {}, {"reduction": 4}, "=4"),
        ("squeeze_excitation", {}, {"reduction": 4, "bias": False}, "bias=False"),
        ("expectation_maximization", {}, {"bases": 5}, "bases=5"),
        ("dual_attention", {}, {"inner_channels": 3}, "inner_channels=3"),
        ("adaptive_context", {}, {"form": "published"}, "form='published'"),
        ("disentangled_nonlocal", {"norm_layer": nn.BatchNorm2d}, {}, "norm_layer=None"),
        ("glimpse", {"channels": 1, "kernel_size": 8}, {"scales": 1}, "scales=1"),
        ("local_relation", {}, {"groups": 4}, "groups=4"),
    ],
)
def test_options_of_other_blocks(name: str, kept: dict, theirs: dict, would_fit: str) -> None:
    base = {"channels": 16} | {key: value for key, value in kept.items() if key != "norm_layer"}
    state = create_block(name, **base, **theirs).state_dict()
    assert would_fit in refusal(name, kept, state)


def test_the_prefix_that_would_fit_is_named() -> None:
    state = segmentor(nl_block=mmcv_nonlocal())
    assert "prefix='decode_head.nl_block.'" in refusal("nonlocal", {"project_bias": False}, state)
    message = refusal("nonlocal", {}, state)
    assert "With project_bias=False, prefix='decode_head.nl_block.' they do." in message
    weights.load(create_block("nonlocal", 16, project_bias=False), state, prefix="decode_head.nl_block.")


def test_what_the_weights_are_of_is_named() -> None:
    assert "They look like nonlocal." in refusal("criss_cross", {}, mmcv_nonlocal())
    message = refusal("criss_cross", {}, segmentor(nl_block=mmcv_nonlocal()))
    assert "nonlocal at 'decode_head.nl_block.'" in message
    message = refusal("criss_cross", {}, {"conv1.weight": torch.ones(3, 3), "bn1.weight": torch.ones(3)})
    assert "They hold conv1 (1), bn1 (1)" in message


def test_a_name_before_all_keys_is_taken_off() -> None:
    block = randomise(create_block("position_attention", 16))
    state = {f"encoder.{key}": value for key, value in block.state_dict().items()}
    other = weights.load(create_block("position_attention", 16), {"net": state})
    assert torch.equal(other.query.weight, block.query.weight)


def test_somebodys_module_takes_its_own_names() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(2, 3)

    net = Net()
    other = weights.load(Net(), {"state_dict": net.state_dict()})
    assert torch.equal(other.model.weight, net.model.weight)
    with pytest.raises(ValueError, match=r"missing: model.weight.*\nThey hold"):
        weights.load(Net(), {"a.weight": torch.ones(2), "b.weight": torch.ones(2)})


def _mmseg_names(state: dict[str, Tensor], numbered: str) -> dict[str, Tensor]:
    """Ours of adaptive_context as mmsegmentation's APCHead has them."""
    theirs = {"pooled": "pooled_redu_conv", "reduce": "input_redu_conv", "summary": "global_info"}
    theirs |= {"project": "residual_conv", "fuse": "fusion_conv"}
    found = {}
    for key, value in state.items():
        _, number, layer, *rest = key.split(".")
        rest = ["bn" if part == "norm" else part for part in rest]
        found[".".join([numbered + number, theirs.get(layer, "gla"), *rest])] = value
    return found


@pytest.mark.parametrize(("numbered", "prefix"), [("acm_modules.", ""), ("decode_head.acm_modules.", None)])
def test_the_numbered_modules_of_a_head(numbered: str, prefix: str | None) -> None:
    block = randomise(create_block("adaptive_context", 16, bins=(1, 3), form="published"))
    state = _mmseg_names(block.state_dict(), numbered)
    other = create_block("adaptive_context", 16, bins=(1, 3), form="published")
    weights.load(other, state, prefix=numbered if prefix is None else prefix)
    for key, value in block.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key

"""Blocks as they are written on the command line."""

import pytest
import torch
from torch import nn

from lookfar import insert, replace
from lookfar.blocks import create_block, parse_block
from lookfar.insertion import recipe, replay


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("position_attention", ("position_attention", {})),
        (" pam ( reduction = 4 ) ", ("position_attention", {"reduction": 4})),
        ("pam()", ("position_attention", {})),
        ("pam(reduction=4, zero_init=False)", ("position_attention", {"reduction": 4, "zero_init": False})),
        ("pam(reduction=word)", ("position_attention", {"reduction": "word"})),
        ("pam(reduction='a b')", ("position_attention", {"reduction": "a b"})),
        ("pam(reduction=(1, -3))", ("position_attention", {"reduction": (1, -3)})),
        ("generalized_attention(terms=0010, heads=4)", ("generalized_attention", {"terms": "0010", "heads": 4})),
        ("pam(reduction=nn.Word)", ("position_attention", {"reduction": "nn.Word"})),
        ("generalized_attention(terms=1110)", ("generalized_attention", {"terms": "1110"})),
    ],
)
def test_reads(text, want):
    assert parse_block(text) == want


@pytest.mark.parametrize("text", ["emau(norm_layer=nn.BatchNorm2d)", "emau(norm_layer=BatchNorm2d)"])
def test_classes_of_layers_may_be_words(text):
    name, options = parse_block(text)
    assert type(create_block(name, 8, **options).norm) is nn.BatchNorm2d
    assert type(create_block(name, 8, **options, dims=3).norm) is nn.BatchNorm3d
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1))
    insert(net, text, at="0", example=torch.randn(2, 3, 6, 5))
    replace(net, text.replace(")", ", residual=False)"), at="1", example=torch.randn(2, 3, 6, 5))
    assert [recorded["options"]["norm_layer"] for recorded in recipe(net)] == [options["norm_layer"]] * 2
    again = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1))
    replay(again, recipe(net))
    again.load_state_dict(net.state_dict())
    with pytest.raises(ValueError, match=r"such as nn\.BatchNorm2d, got 'bn'"):
        create_block(name, 8, norm_layer="bn")
    with pytest.raises(ValueError, match=r"such as nn\.BatchNorm2d, got 'functional'"):
        create_block(name, 8, norm_layer="functional")


@pytest.mark.parametrize(
    "text",
    ["pam(reduction=4", "pam(4)", "pam(**x)", "pam(reduction=4)(2)", "pam(reduction=4) + f(1)", "pam(reduction=4))"],
)
def test_refuses_other_forms(text):
    with pytest.raises(ValueError, match=r"cannot read .*want position_attention\(option=value"):
        parse_block(text)


def test_refuses_what_is_no_value():
    with pytest.raises(ValueError, match=r"cannot read reduction=open\('x'\)"):
        parse_block("pam(reduction=open('x'))")


def test_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean position_attention"):
        parse_block("positional_attention(reduction=4)")
    with pytest.raises(ValueError, match=r"Did you mean nonlocal, .*simplified_nonlocal"):
        parse_block("nonlokal")
    with pytest.raises(ValueError, match=r"There is a function, lookfar\.ops\.mean_shift\."):
        parse_block("mean_shift")
    with pytest.raises(TypeError, match="Did you mean reduction"):
        parse_block("pam(reducton=4)")

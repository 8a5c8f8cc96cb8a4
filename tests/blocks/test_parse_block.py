"""Blocks as they are written on the command line."""

import pytest

from lookfar.blocks import parse_block


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
        ("generalized_attention(terms=1110)", ("generalized_attention", {"terms": "1110"})),
    ],
)
def test_reads(text, want):
    assert parse_block(text) == want


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

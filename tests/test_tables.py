"""Tables of the command line and of documents."""

import copy
import pickle

import pytest
import torch
from torch import nn

import lookfar
from lookfar._notebooks import Shown, html_table
from lookfar._tables import markdown_table, significant, table
from lookfar.cost.growing import Growth
from lookfar.cost.measure import Cost
from lookfar.cost.tables import cost_table


@pytest.mark.parametrize(
    ("value", "want"),
    [(0.0000164, "0.0000164"), (0.1, "0.100"), (9.6637, "9.66"), (9.996, "10.0"), (99.96, "100"), (131.9, "132"),
     (12345.6, "12300"), (-0.5, "-0.500"), (0, "0"), (0.0, "0"), (float("nan"), "nan"), (float("inf"), "inf")],
)  # fmt: skip
def test_three_significant_digits_without_exponent(value, want):
    assert significant(value) == want


def test_numbers_stand_right_and_text_left():
    text = table(["block", "time ms", "note"], [("a", 1.5, "x"), ("longer", 1234.5, None), ("b", None, "yz")])
    assert text.splitlines() == [
        "block   time ms  note",
        "a          1.50  x",
        "longer     1230  –",
        "b             –  yz",
    ]


def test_longest_text_gives_way_to_the_width():
    rows = [("name", "a paper with a title that has no end", "N^2 C + N log N + C^2", 1), ("other", "short", "N", 22)]
    for width in (50, 60):
        lines = table(["block", "paper", "time", "parameters"], rows, width=width).splitlines()
        assert max(map(len, lines)) == width
        assert "…" in lines[1]
    assert len(table(["block", "paper", "time", "parameters"], rows, width=10).splitlines()[0]) > 40  # to no less
    assert "…" not in table(["block", "paper", "time", "parameters"], rows)


def test_markdown():
    assert markdown_table(["a", "b"], [("|x|", 1.0)]) == "| a | b |\n| --- | ---: |\n| \\|x\\| | 1.00 |"


def test_a_notebook_gets_escaped_cells_on_the_side_of_their_kind():
    html = html_table(["block", "time ms"], [("my<script>", 1.5), ("b", None)], below=["a & b", ""])
    assert html.count("<tr>") == 3
    assert '<td style="text-align: left">my&lt;script&gt;</td><td style="text-align: right">1.50</td>' in html
    assert html.endswith("<p>a &amp; b</p>")


def test_shown_text_is_text_and_survives_copies():
    shown = Shown("a  b\nc", "<table></table>")
    assert (shown, repr(shown), shown._repr_html_()) == ("a  b\nc", "a  b\nc", "<table></table>")
    again = pickle.loads(pickle.dumps(copy.copy(shown)))
    assert (again, again.html) == (shown, shown.html)
    assert Shown("<x>")._repr_html_() == "<pre>&lt;x&gt;</pre>"


def test_what_a_notebook_shows_of_costs_and_descriptions():
    cost = Cost("nonlocal", 16, (8, 9), 1, False, 100, 2_000_000_000, 1.5, 3.25, 10, "cpu (1 thread)")
    assert cost._repr_html_() == cost_table([cost])._repr_html_()
    assert "8×9" in cost._repr_html_()
    grown = Growth("nonlocal", (cost,), None, None, ((512, 512),))
    assert "not measured, one call would take too long: 512×512" in grown._repr_html_()
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    assert "no block" in lookfar.describe(network)._repr_html_()
    lookfar.insert(network, "squeeze_excitation", at="1", example=torch.randn(1, 3, 8, 8))
    described = lookfar.describe(network)
    assert all(name in described._repr_html_() for name in ("<table>", "squeeze_excitation", "together"))
    assert repr(described) == str(described)

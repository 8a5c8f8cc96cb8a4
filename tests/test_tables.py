"""Tables of the command line and of documents."""

import pytest

from lookfar._tables import markdown_table, significant, table


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

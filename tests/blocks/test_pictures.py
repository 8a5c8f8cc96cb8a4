"""Pictures of who attends to whom say what the blocks do."""

from xml.etree import ElementTree

import pytest

from lookfar.blocks import _catalogue, block_info
from lookfar.blocks._pictures import HEIGHT, QUERY, WIDTH, Pattern, pattern_of


def marked(name):
    seen = pattern_of(block_info(name))
    return {divmod(n, WIDTH) for n, mark in enumerate(seen.marked) if mark}


def test_shapes_that_are_known():
    row, column = divmod(QUERY, WIDTH)
    every = {(y, x) for y in range(HEIGHT) for x in range(WIDTH)}
    assert marked("nonlocal") == every
    assert marked("local_attention") == {(y, x) for y, x in every if max(abs(y - row), abs(x - column)) <= 3}
    assert marked("atrous_attention") == {(y, x) for y, x in every if (y - row) % 4 == (x - column) % 4 == 0}
    assert marked("criss_cross") == {(y, x) for y, x in every if y == row or x == column}


def test_words_say_which_kind_it_is():
    assert "same weights" in pattern_of(block_info("global_context")).words()
    assert "gives weight" in pattern_of(block_info("nonlocal")).words()
    assert "change what comes out" in pattern_of(block_info("cbam")).words()
    assert pattern_of(block_info("asymmetric_nonlocal")).words().startswith("Every position attends to 110 pooled")
    assert pattern_of(block_info("self_attention")) is None


@pytest.mark.parametrize("own", [True, False])
def test_the_picture_shows_what_the_characters_show(own):
    seen = Pattern([n in (0, 13) or (own and n == QUERY) for n in range(HEIGHT * WIDTH)])
    text = "".join(seen.characters()).replace(" ", "")
    assert [n for n, mark in enumerate(text) if mark == "■"] == [0, 13]
    assert text[QUERY] == ("◎" if own else "○")
    empty, full, ring = ElementTree.fromstring(seen.svg())
    assert (empty.get("d").count("M"), full.get("d").count("M")) == (HEIGHT * WIDTH - 2 - own, 2 + own)
    assert full.get("d").startswith("M1 1h18v18h-18zM21 21h")
    assert (float(ring.get("cx")) // 20, float(ring.get("cy")) // 20) == (QUERY % WIDTH, QUERY // WIDTH)


def test_measured_costs_are_those_of_the_block(tmp_path):
    folder = tmp_path / "benchmarks/results"
    assert _catalogue.measured_costs(tmp_path) == {}
    folder.mkdir(parents=True)
    (folder / "blocks-cpu.md").write_text(
        "# Title\n\n`command`: a machine. Time is that.\n\n"
        "| block | ms | time ratio | MB |\n| --- | ---: | ---: | ---: |\n"
        "| `nonlocal` | 1 | 2 | 3 |\n| `criss_cross` | 4 | 5 | 6 |\n| `nonlocal(mode=gaussian)` | 7 | 8 | 9 |\n"
    )
    found = _catalogue.measured_costs(tmp_path)
    assert set(found) == {"nonlocal", "criss_cross"}
    table = found["nonlocal"].partition("\n\n")[2]
    assert table.splitlines()[0] == "| block | ms | MB |"
    assert table.splitlines()[2:] == ["| `nonlocal` | 1 | 3 |", "| `nonlocal(mode=gaussian)` | 7 | 9 |"]
    assert "by `command`: a machine:" in found["nonlocal"]

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
    (folder / "costs-cpu.md").write_text(
        "# Title\n\n`counter`: one map. A multiply-add is 2.\n\n"
        "| block | GFLOPs | MB |\n| --- | ---: | ---: |\n| `cbam` | 1.5 | 2.5 |\n| `nonlocal` | 3.5 | 4.5 |\n"
    )
    (folder / "blocks-cpu.md").write_text(
        "# Title\n\n`command`: a machine. Time is that.\n\n"
        "| block | size | passes | ms | time ratio | MB |\n| --- | --- | --- | ---: | ---: | ---: |\n"
        "| `nonlocal` | s | f | 1 | 2 | 3 |\n| `criss_cross` | s | f | 4 | 5 | 6 |\n"
        "| `nonlocal(mode=gaussian)` | s | f | 7 | 8 | 9 |\n\nThese have no other form: `cbam`.\n"
    )
    found = _catalogue.measured_costs(tmp_path)
    assert {name: len(texts) for name, texts in found.items()} == {"cbam": 2, "nonlocal": 2, "criss_cross": 1}
    assert found["cbam"][1].startswith("With default options the block runs as it is defined")
    assert found["cbam"][0].startswith("A forward pass takes 1.5 GFLOPs and 2.5 MB (")
    assert found["cbam"][0].endswith("by `counter`: one map.")
    intro, table = found["nonlocal"][1].split("\n\n")
    assert table.splitlines()[:2] == ["| block | size | passes | ms | MB |", "| --- | --- | --- | ---: | ---: |"]
    assert table.splitlines()[2:] == ["| `nonlocal` | s | f | 1 | 3 |", "| `nonlocal(mode=gaussian)` | s | f | 7 | 9 |"]
    assert intro.endswith("by `command`: a machine:")

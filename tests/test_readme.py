"""The documents tell the truth: the example runs, commands and links exist, generated parts are up to date."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import typer
import versions

from lookfar import cli
from lookfar.blocks import _catalogue, list_blocks

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def fenced(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_example_runs_as_pasted_but_for_the_download(capsys):
    (example,) = fenced(README, "python")
    assert len(example.strip().splitlines()) <= 10
    assert "pretrained=True" in example
    exec(compile(example.replace("pretrained=True", "pretrained=False"), "README.md", "exec"), {})
    described = capsys.readouterr().out
    assert "nonlocal" in described
    assert described.count("global_context") == 2


def test_first_words_say_what_it_is():
    title, first, second = README.split("\n\n")[:3]
    assert title == "# lookfar"
    assert first.startswith("lookfar is a PyTorch library")
    assert "no compiler" in second


def commands():
    text = "\n".join(line for path in DOCUMENTS for line in fenced(path.read_text(encoding="utf-8"), "sh"))
    text = re.sub(r"\\\n\s*", "", text)  # a command may go on in the next line
    return sorted({line.split("#")[0].strip() for line in text.splitlines()} - {""})


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("lookfar ")])
def test_commands_have_the_options_that_documents_use(command):
    _, name, *arguments = shlex.split(command)
    group = typer.main.get_command(cli.app)
    assert name in group.commands, f"{command}: no such command"
    known = {option for p in group.commands[name].params for option in (*p.opts, *p.secondary_opts)}
    unknown = [a for a in arguments if a.startswith("--") and a not in known]
    assert not unknown, f"{command}: no such option"


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    used = set(re.findall(r"(?:^|`)make ([a-z][a-z-]+)", text, re.MULTILINE))
    assert used >= {"demo", "demo-cue", "test", "lint", "blocks-docs"}
    assert [target for target in used if f"\n{target}:" not in makefile] == []


def test_claims_name_tests_that_exist():
    named = re.findall(r"`(?:pytest|python) ([\w./]+)", README)
    assert len(named) >= 6
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_versions_are_those_that_were_run():
    """The oldest torch that is supported, and the newest that was tried: a newer one is not yet wrong."""
    found = re.search(versions.LINE, README)
    assert found, "the README does not say which versions the suite passed on"
    oldest, newest = (tuple(map(int, re.findall(r"\d+", words)[:2])) for words in found.groups())
    required = re.search(r"torch>=(\d+)\.(\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pinned = re.search(r"'torch==(\d+)\.(\d+)\.\*'", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert required
    assert pinned
    assert tuple(map(int, required.groups())) == tuple(map(int, pinned.groups())) == oldest
    here = tuple(map(int, torch.__version__.split(".")[:2]))
    assert oldest <= here
    if here > newest:
        pytest.skip(f"torch {torch.__version__} is newer than what the README names: `make versions` writes it")


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in DOCUMENTS])
def test_links_between_files_work(path):
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_generated_documents_are_up_to_date():
    wanted = _catalogue.documents(ROOT)
    stale = [str(p.relative_to(ROOT)) for p, t in wanted.items() if not p.exists() or p.read_text("utf-8") != t]
    gone = [p.name for p in (ROOT / "docs/blocks").glob("*.*") if p not in wanted]
    assert (stale, gone) == ([], []), "run `make blocks-docs`"


def test_every_block_is_in_the_index_and_counted():
    index = (ROOT / "docs/blocks/index.md").read_text(encoding="utf-8").partition("## ")[0]
    assert re.findall(r"^\| \[`(\w+)`\]", index, re.MULTILINE) == list_blocks()
    by_equations = len(re.findall(r"\| equations[^|]*\|$", index, re.MULTILINE))
    all_blocks, by_code, others = map(int, re.findall(r"\d+", _catalogue.counted().replace("float64", "")))
    assert (all_blocks, by_code, others) == (len(list_blocks()), len(list_blocks()) - by_equations, by_equations)


def test_generator_writes_what_differs_and_removes_what_is_gone(tmp_path):
    (tmp_path / "README.md").write_text(f"before\n{_catalogue.START}\nold\n{_catalogue.END}\nafter\n")
    (tmp_path / "docs/blocks").mkdir(parents=True)
    (tmp_path / "docs/blocks/no_block.md").write_text("gone")
    changed = _catalogue.write_documents(tmp_path)
    assert sum(path.suffix == ".md" for path in changed) == len(list_blocks()) + 3  # README, the index, what is gone
    drawn = {path.stem for path in changed if path.suffix == ".svg"}
    assert {"nonlocal", "cbam"} <= drawn
    assert not {"asymmetric_nonlocal", "carafe"} & drawn  # keys that are no positions; another map
    written = (tmp_path / "README.md").read_text("utf-8")
    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    assert "old" not in written
    assert not (tmp_path / "docs/blocks/no_block.md").exists()
    assert _catalogue.write_documents(tmp_path) == []

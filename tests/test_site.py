"""The documents as a site: every page can be reached, the pages that code writes are whole, examples run.

`make docs` builds the site itself, strictly.
"""

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from lookfar import cli, study

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def load_hooks():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = load_hooks()


def leaves(nav):
    if isinstance(nav, str):
        return [nav]
    return [page for one in (nav.values() if isinstance(nav, dict) else nav) for page in leaves(one)]


def test_no_page_is_lost():
    """From the first page, by links, each can be reached; so can it from the menu."""
    seen, waiting = set(), ["index.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page not in PAGES:
            continue
        seen.add(page)
        text = (DOCS / page).read_text(encoding="utf-8")
        targets = [(DOCS / page).parent / link for link in re.findall(r"\]\(([^)#\s]+\.md)", text)]
        waiting += [t.resolve().relative_to(DOCS).as_posix() for t in targets if t.resolve().is_relative_to(DOCS)]
    assert sorted(set(PAGES) - seen) == []
    own = [page for page in PAGES if not page.startswith("blocks/")]
    assert sorted(set(own) - set(leaves(CONFIG["nav"]))) == [], "name it in the nav of mkdocs.yml"


def test_the_menu_names_pages_that_exist():
    written = {"commands.md", "plan.md", *HOOKS.FROM_ROOT}
    assert [page for page in leaves(CONFIG["nav"]) if page not in {*PAGES, *written}] == []
    assert all((ROOT / path).is_file() for path in HOOKS.FROM_ROOT.values())


def test_nothing_is_asked_of_the_network():
    assert CONFIG["theme"]["font"] is False
    assert not {"analytics", "social"} & set(CONFIG["extra"])
    assert not any(
        str(value).startswith("http") for key in ("extra_css", "extra_javascript") for value in CONFIG.get(key, [])
    )


def test_the_plan_file_is_explained_whole():
    text = HOOKS.plan()
    entries = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", text, re.MULTILINE)
    assert [name for name, *_ in entries] == list(study.Plan.__dataclass_fields__)
    defaults = {name: default for name, default, _ in entries}
    assert (defaults["data"], defaults["seeds"], defaults["margin"], defaults["flip"], defaults["steps"]) == (
        "required", "`3`", "`0.5`", "`true`", "`null`",
    )  # fmt: skip
    assert ":func:" not in text


def test_commands_have_a_page_with_their_help():
    text = HOOKS.commands()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [c.name for c in HOOKS.group_of(cli.app).commands.values()]
    assert "Usage: lookfar study" in text


@pytest.mark.parametrize(
    ("page", "link", "want"),
    [
        ("study.md", "[a](statistics.md#x)", "[a](statistics.md#x)"),
        ("index.md", "[a](../CONTRIBUTING.md)", "[a](contributing.md)"),
        ("blocks/nonlocal.md", "[a](../../README.md)", "[a](../index.md)"),
        ("contributing.md", "[a](docs/design.md)", "[a](design.md)"),
        ("blocks/nonlocal.md", "[a](../../benchmarks/results/blocks-cpu.md)", "[a](../measured/blocks-cpu.md)"),
        ("measured/blocks-cpu.md", "[a](../../docs/cost.md)", "[a](../cost.md)"),
        ("index.md", "[a](../examples/1_a.ipynb)", "[a](examples/1_a.ipynb)"),
        ("data.md", "[a](https://x.org/docs/a.md)", "[a](https://x.org/docs/a.md)"),
    ],
)
def test_links_of_the_repository_become_those_of_the_site(page, link, want):
    class Page:
        class file:
            src_uri = page

    assert HOOKS.on_page_markdown(link, Page, None, None) == want


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("| 1.06 to 1.25 | 90.2 ± 2.8 |", "| 1.06~to~1.25 | 90.2~±~2.8 |"),
        ("| +53.9 [+42.5, +65.3] | −0.9 [−8.4, +6.6] |", "| +53.9 [+42.5,~+65.3] | −0.9 [−8.4,~+6.6] |"),
        ("| 1 to all | 100.0, 99.0 |", "| 1 to all | 100.0, 99.0 |"),
        ("from 1.06 to 1.25", "from 1.06 to 1.25"),
    ],
)
def test_intervals_in_tables_stay_on_one_line(line, want):
    class Page:
        class file:
            src_uri = "index.md"

    assert HOOKS.on_page_markdown(line, Page, None, None).replace("\N{NO-BREAK SPACE}", "~") == want


BLOCK_PAGES = sorted(path for path in (DOCS / "blocks").glob("*.md") if path.stem != "index")


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in BLOCK_PAGES])
def test_a_block_stands_beside_its_definition(path):
    """Measured by benchmarks/blocks.py, or said to run as it is defined."""
    text = path.read_text(encoding="utf-8")
    assert ("beside the plain definition" in text) != ("the block runs as it is defined" in text)


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in BLOCK_PAGES])
def test_formulas_of_a_block_become_mathml(path):
    class Page:
        class file:
            src_uri = f"blocks/{path.name}"

    text = path.read_text(encoding="utf-8")
    drawn = HOOKS.on_page_markdown(text, Page, None, None)
    found = re.findall(r"<math .*</math>", drawn)
    assert found, "the page has no formula"
    rows = re.search(r"^```math\n(?:\\begin.*\n)?((?:.*\n)*?)(?:\\end.*\n)?```$", text, re.MULTILINE)[1].splitlines()
    assert len(found) == len(rows), "one formula a line"
    assert "```math" not in drawn
    for one in found:
        root = ElementTree.fromstring(one)  # whole, and every & written out
        assert "\\" not in one, "a command that the converter does not know"
        assert len(list(root.iter())) > 5


def test_a_formula_says_what_its_latex_does():
    found = HOOKS.formula(re.match(r"(?s)```math\n(.*?)```", "```math\n\\frac{a}{b} = \\sum_j c_j\n```"))
    names = [element.tag.partition("}")[2] for element in ElementTree.fromstring(found).iter()]
    assert "mfrac" in names
    assert {"munder", "msub"} & set(names)


def test_what_the_engineer_reads_runs(tmp_path, monkeypatch):
    """Pasted one after the other into one session."""
    monkeypatch.chdir(tmp_path)
    found = re.findall(r"^```python\n(.*?)^```", (DOCS / "engineer.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(found) >= 3
    names = {}
    for text in found:
        exec(compile(text.replace("torch.randn(1, 3, 224", "torch.randn(1, 3, 64"), "engineer.md", "exec"), names)
    assert names["maps"]

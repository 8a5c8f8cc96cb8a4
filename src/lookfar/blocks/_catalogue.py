"""What is known about blocks, made from their facts and docstrings: for the terminal, JSON and the documents.

``python -m lookfar.blocks._catalogue`` writes the count of README.md, the pages and pictures of docs/blocks/ and the
list that ``lookfar blocks`` prints.
"""

import functools
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from lookfar import ops
from lookfar._options import refused_by, words_of
from lookfar._overview import FILE
from lookfar._tables import markdown_table
from lookfar.blocks._base import BlockInfo, Family, Kind, block_info, create_block, list_blocks
from lookfar.blocks._pictures import Pattern, pattern_of
from lookfar.blocks._texts import OPTIONS, args_of

CHANNELS = 256  # parameters are given at this width
START, END = "<!-- blocks: made by `make blocks-docs` -->", "<!-- end of blocks -->"
_ATTENDS = {
    "weights": "weights over positions: `attention(x, queries)`, `values(x)` and `finish(x, mixed)`",
    "maps": "node or assignment maps: `maps(x)`",
    "none": "no weights over positions",
}

LETTERS = "index.md#letters"
MEASURED = "../../benchmarks/results"
_LETTERS = """
- x is the input and y the output; x_i is the vector of C channels at position i. i asks, j is asked.
- N positions of an H × W map, C channels, D channels of queries and keys, d those of one head, h heads, K bases, nodes,
  classes or clusters, k the extent of a window; other letters are the block's own sizes.
- q, k and v are queries, keys and values, each a linear map of x: a 1×1 convolution on maps. W and P, with or without
  an index, are such maps too; P or W_o is the last one, which starts at zero where the block starts as the identity.
- γ is a learned number that starts at zero, σ the sigmoid, ⊙ the product of entries, [a, b] channels side by side.
- norm is a normalisation layer, act an activation, LN and BN are the layer's and the batch's normalisation. pool means
  regions of the map, up resizes bilinearly, unit divides by the length.
- double is double normalisation: softmax along one axis, then division by the sum along the other.
- softmax_j runs over what j runs over.
"""

_FILTERS = "the classical filters bilateral, nonlocal_means and mean_shift are functions of lookfar.ops"
_ASKED = (
    "Options of many blocks, for studies that compare one block with itself. At their defaults every block is the "
    "published one; which values a block takes, and why not others, its page or its error says."
)
_EXPORTED = (
    "Programs for maps of any size come from `torch.export` and from `torch.onnx.export(..., dynamo=True)`, which is "
    "what ONNX means in these documents. `torch.jit.trace`, and with it the older exporter (`dynamo=False`), takes the "
    "form without loops too, so that a trace is right at other sizes than its example's."
)
_QUESTIONS = ("heads", "share_query_key", "projections", "normalization", "reasoning")


def parameters(name: str) -> int:
    """Parameters of the block with its default options at 256 channels, counted without allocating them."""
    module = create_block(name, CHANNELS, device="meta")
    return sum(p.numel() for p in module.parameters())


def facts(name: str) -> dict[str, Any]:
    """All that is known about a block, as plain values for JSON."""
    info = block_info(name)
    return {
        "name": info.name,
        "title": info.title,
        "paper": info.paper,
        "arxiv": info.arxiv,
        "kind": info.kind,
        "family": info.family,
        "complexity": info.complexity,
        "memory": info.memory,
        f"parameters_{CHANNELS}": parameters(info.name),
        "attends": info.attends,
        "residual": info.residual,
        "aliases": list(info.aliases),
        "options": {option: _default(p) for option, p in info.options.items()},
        "verified": list(info.verified),
        "differences": list(info.differences),
        "source": _source(info),
    }


def listed() -> str:
    """What ``lookfar blocks`` lists, as JSON: see :mod:`lookfar._overview`."""
    content = {
        "kinds": get_args(Kind),
        "families": get_args(Family),
        "functions": ops.__all__,
        "filters": _FILTERS,
        "blocks": [facts(name) for name in list_blocks()],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def page(name: str) -> str:
    """All about one block, for the terminal."""
    info = block_info(name)
    seen = pattern_of(info)
    picture = [] if seen is None else [*_code(*seen.characters(), "", seen.words(), markdown=False, lang="text")]
    return _page(info, picture[:-1], (), markdown=False).replace("`", "")


def document(name: str, measured: Mapping[str, Sequence[str]]) -> tuple[str, Pattern | None]:
    """All about one block as Markdown, and what its picture shows, for which the page has a place.

    Args:
        name: The block.
        measured: What was measured of blocks; see :func:`measured_costs`.
    """
    info = block_info(name)
    seen = pattern_of(info)
    picture = [] if seen is None else [seen.words()]
    if seen is not None and seen.marked:
        picture = [f"![{seen.words()}]({info.name}.svg)", "", seen.words()]
    return _page(info, picture, measured.get(info.name, ()), markdown=True), seen


def _page(info: BlockInfo, picture: Sequence[str], costs: Sequence[str], *, markdown: bool) -> str:
    """What it computes, options, cost, sources."""
    heading = (lambda text: f"## {text}") if markdown else str.upper
    arxiv = f"arXiv:{info.arxiv}"
    if info.arxiv and markdown:
        arxiv = f"[{arxiv}](https://arxiv.org/abs/{info.arxiv})"
    lines = [
        f"# {info.title}" if markdown else f"{info.name}: {info.title}",
        "",
        ", ".join([info.paper, *([arxiv] if info.arxiv else [])]),
        "",
        *_paragraphs(_section(info), info.formula if markdown else (), markdown=markdown),
        *([f"[What the letters mean]({LETTERS}).", ""] if markdown else []),
        heading("Use"),
        "",
        *_code(
            *("import lookfar", ""),
            f'lookfar.create_block("{info.name}", {CHANNELS})',
            *_insertion(info),
            markdown=markdown,
            lang="python",
        ),
        f"Shape: {_inline(_joined(_section(info, 'Shape')))}",
        "",
        heading("Options"),
        "",
        *_option_lines(info, markdown=markdown),
        "",
        heading("Cost and kind"),
        "",
        *_list(
            f"time grows as `{info.complexity}`, extra memory as `{info.memory}`",
            f"{parameters(info.name)} parameters at {CHANNELS} channels",
            f"kind `{info.kind}`, family `{info.family}`; gives {_ATTENDS[info.attends]}",
            *([f"also called {', '.join(f'`{alias}`' for alias in info.aliases)}"] if info.aliases else []),
        ),
        "",
        *[line for text in costs for line in (text, "")],
        heading("Verified against"),
        "",
        *_list(*(f"`{source}`" for source in info.verified)),
    ]
    if picture:
        lines += ["", heading("Who attends to whom"), "", *picture]
    if info.differences:
        lines += ["", heading("Where paper and code differ"), "", *_list(*info.differences)]
    return "\n".join(lines) + "\n"


def counted() -> str:
    """How many blocks there are, by what they were verified against: a line of the README."""
    infos = [block_info(name) for name in list_blocks()]
    by_code = sum(not info.verified[0].startswith("equations") for info in infos)
    line = (
        f"{len(infos)} blocks: {by_code} give the same numbers as their authors' code or its best-known port, "
        f"gradients included; the other {len(infos) - by_code}, without published code, the same as a float64 loop "
        "over their equations."
    )
    return textwrap.fill(line, 120)


def documents(root: Path) -> dict[Path, str]:
    """What the generated documents under ``root`` should contain: path -> text."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    if readme.count(START) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md must hold the markers {START!r} and {END!r} once each")
    before, rest = readme.split(START)
    written = {root / "README.md": f"{before}{START}\n\n{counted()}\n\n{END}{rest.split(END)[1]}"}
    written[root / "src" / "lookfar" / "blocks" / FILE.name] = listed()
    folder = root / "docs" / "blocks"
    written[folder / "index.md"] = _index()
    costs = measured_costs(root)
    for name in list_blocks():
        written[folder / f"{name}.md"], seen = document(name, costs)
        if seen is not None and seen.marked:
            written[folder / f"{name}.svg"] = seen.svg()
    return written


def measured_costs(root: Path) -> dict[str, list[str]]:
    """What benchmarks/costs.py and benchmarks/blocks.py measured, as paragraphs of Markdown: block -> its own."""
    found: dict[str, list[str]] = {}
    _, rows, how = _measured(root, "costs-cpu.md")
    for name, flops, memory in rows:
        text = f"A forward pass takes {flops} GFLOPs and {memory} MB ([counted]({MEASURED}/costs-cpu.md)), by {how}."
        found[name.strip("`")] = [text]
    head, rows, how = _measured(root, "blocks-cpu.md")
    ratios = [n for n, title in enumerate(head) if "ratio" in title]
    beside = "Time and memory beside the plain definition, as one writes it from the paper"
    for name in dict.fromkeys(_block_of(row) for row in rows):
        table = _without(ratios, [*_heads(head), *(row for row in rows if _block_of(row) == name)])
        found.setdefault(name, []).append(f"{beside} ([how]({MEASURED}/blocks-cpu.md)), by {how}:\n\n{table}")
    for name in _as_defined(root):
        found.setdefault(name, []).append(
            "With default options the block runs as it is defined; there is no cheaper form to measure beside that."
        )
    return found


def _as_defined(root: Path) -> list[str]:
    """Blocks that benchmarks/blocks.py names below its table: their definition is what runs."""
    path = root / "benchmarks" / "results" / "blocks-cpu.md"
    last = path.read_text(encoding="utf-8").rpartition("|\n")[2] if path.exists() else ""
    return re.findall(r"`(\w+)`", last)


def _measured(root: Path, name: str) -> tuple[list[str], list[list[str]], str]:
    """Head and rows of a table that a benchmark wrote, and the command, machine and sizes that stand above it."""
    path = root / "benchmarks" / "results" / name
    if not path.exists():
        return [], [], ""
    text = path.read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return lines[0], lines[2:], re.split(r"\. (?:Time|A multiply)", text.split("\n\n")[1])[0]


def _block_of(row: Sequence[str]) -> str:
    return re.split(r"[`(]", row[0])[1]


def _heads(titles: Sequence[str]) -> list[list[str]]:
    """The first two lines of a table as Markdown; what follows the sizes and passes are numbers."""
    return [[*titles], ["---" if n < 3 else "---:" for n in range(len(titles))]]


def _without(columns: Sequence[int], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, without some of its columns."""
    return "\n".join(f"| {' | '.join(cell for n, cell in enumerate(row) if n not in columns)} |" for row in rows)


def write_documents(root: Path) -> list[Path]:
    """Write the generated documents where they differ, remove pages of blocks that are gone; returns what changed."""
    wanted = documents(root)
    changed = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path], encoding="utf-8")
    gone = [path for path in (root / "docs" / "blocks").glob("*.*") if path not in wanted]
    for path in gone:
        path.unlink()
    return changed + gone


def _index() -> str:
    rows = []
    for info in map(block_info, list_blocks()):
        title = f"[{info.title}](https://arxiv.org/abs/{info.arxiv})" if info.arxiv else info.title
        costs = info.complexity, info.memory, parameters(info.name)
        rows.append((f"[`{info.name}`]({info.name}.md)", title, info.kind, info.family, *costs, _source(info)))
    head = (
        "# Blocks\n\nN positions, C channels, H × W the map; other letters are [below](#letters). How fast and large "
        "blocks are beside those of other libraries: [performance](../performance.md).\n\n"
    )
    heads = [
        "block",
        "what",
        "kind",
        "family",
        "time",
        "extra memory",
        f"parameters, C = {CHANNELS}",
        "verified against",
    ]
    table = markdown_table(heads, rows)
    shared = [(f"`{option}`", _inline(OPTIONS[option]), _with_option(option)) for option in _QUESTIONS]
    questions = markdown_table(["option", "what it asks", "blocks"], shared)
    head = f"{head}{table}\n\n## Exported\n\n{_EXPORTED}\n\n"
    letters = f"## Letters\n\nIn the formulas of the pages:\n{_LETTERS}"
    return f"{head}## Questions that the field leaves open\n\n{_ASKED}\n\n{questions}\n\n{letters}"


def _with_option(option: str) -> str:
    """Links to the blocks that take an option."""
    names = (name for name in list_blocks() if option in block_info(name).options)
    return ", ".join(f"[`{name}`]({name}.md)" for name in names)


def _source(info: BlockInfo) -> str:
    """The first of what the block was verified against, without the file, and how many more there are."""
    first, *more = (re.split(r":|,? \(", source)[0] for source in info.verified)
    others = set(more) - {first}
    return f"{first} and {len(others)} more" if others else first


def _insertion(info: BlockInfo) -> tuple[str, ...]:
    if info.kind != "context":
        return ()
    return (f'lookfar.insert(network, "{info.name}", at="layer3")',)


def _default(parameter: inspect.Parameter) -> Any:
    value = parameter.default
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return list(value) if isinstance(value, tuple) else _name(value)


def _name(value: Any) -> str:
    if isinstance(value, functools.partial):  # the class alone is another choice
        own = ", ".join(f"{name}={given!r}" for name, given in value.keywords.items())
        return f"{_name(value.func)} with {own}"
    return getattr(value, "__name__", repr(value))


def _section(info: BlockInfo, name: str = "") -> str:
    """A section of the class docstring, or what stands before the first one."""
    doc = inspect.getdoc(info.cls) or ""
    about, *sections = re.split(r"\n(?=(?:Args|Shape|Raises|Example|Attributes|Traps):)", doc)
    return next((s.partition(":")[2] for s in sections if s.startswith(f"{name}:")), "") if name else about


def _joined(text: str) -> str:
    return " ".join(text.split())


def _paragraphs(text: str, formula: Sequence[str], *, markdown: bool) -> list[str]:
    """Paragraphs of a docstring. Those that are a formula stand as code, or give their place to ``formula``.

    A formula that no paragraph gives its place to stands behind the first.
    """
    lines: list[str] = []
    paragraphs = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", text.strip())]
    written = [i for i, paragraph in enumerate(paragraphs) if re.match(r"\S+( \S+)? (=|<-) ", paragraph)]
    place = (written or [1])[0]
    for i, paragraph in enumerate([*paragraphs, ""]):
        if i == place and formula:
            lines += _math(formula)
        if i in written and not formula:
            lines += _code(*(line.strip() for line in paragraph.splitlines()), markdown=markdown, lang="text")
        elif i not in written and paragraph:
            lines += [_inline(paragraph), ""]
    return lines


def _math(formula: Sequence[str]) -> list[str]:
    """Formulas one below the other, as GitHub draws them; docs/hooks.py draws them for the site."""
    if len(formula) == 1:
        return ["```math", *formula, "```", ""]
    rows = [re.sub(r" (=|\\leftarrow|\\approx) ", r" &\1 ", row, count=1) for row in formula]
    return ["```math", r"\begin{aligned}", *(rf"{row} \\" for row in rows), r"\end{aligned}", "```", ""]


def _code(*lines: str, markdown: bool, lang: str) -> list[str]:
    return [f"```{lang}", *lines, "```", ""] if markdown else [*(f"    {line}".rstrip() for line in lines), ""]


def _list(*lines: str) -> list[str]:
    return [f"- {_inline(line)}" for line in lines]


def _option_lines(info: BlockInfo, *, markdown: bool) -> list[str]:
    texts = args_of(inspect.getdoc(info.cls) or "")
    rows = [(f"`{o}={_shown(p)}`", _inline(f"{texts[o]}{_accepted(p, texts[o])}")) for o, p in info.options.items()]
    if not rows:
        return ["none"]
    if markdown:
        return [markdown_table(["option and default", "meaning"], rows)]
    return [f"- {option}: {text}" for option, text in rows]


def _accepted(parameter: inspect.Parameter, text: str) -> str:
    """The words that an option takes, where its text gives none of them, and why it does not take another."""
    words = words_of(parameter.annotation)
    listed = "" if any(f"``{word}``" in text for word in words) else ", ".join(f"``{word}``" for word in words)
    reasons = "".join(f" No ``{no.value}``: {no.why}." for no in refused_by(parameter.annotation))
    return (f" One of {listed}." if listed else "") + reasons


def _shown(parameter: inspect.Parameter) -> str:
    value = parameter.default
    return repr(value) if value is None or isinstance(value, bool | int | float | str | tuple) else _name(value)


def _inline(text: str) -> str:
    """Double backticks and roles of docstrings as Markdown's single ones."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")


if __name__ == "__main__":
    for changed_path in write_documents(Path(sys.argv[1] if len(sys.argv) > 1 else ".")):
        print(changed_path)

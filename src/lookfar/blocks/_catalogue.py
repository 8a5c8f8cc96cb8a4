"""What is known about blocks, made from their facts and docstrings: for the terminal, JSON and the documents.

``python -m lookfar.blocks._catalogue`` writes the count of README.md, the pages of docs/blocks/ and the
list that ``lookfar blocks`` prints.
"""

import functools
import inspect
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lookfar import ops
from lookfar._options import refused_by, words_of
from lookfar._overview import FILE
from lookfar._tables import markdown_table
from lookfar.blocks._base import BlockInfo, Family, Kind, block_info, create_block, list_blocks, sample_inputs
from lookfar.blocks._texts import OPTIONS, args_of

CHANNELS = 256  # parameters are given at this width
START, END = "<!-- blocks: made by `make blocks-docs` -->", "<!-- end of blocks -->"
HEIGHT, WIDTH = 8, 12  # of the map in the pictures
_ATTENDS = {
    "weights": "weights over positions: `attention(x, queries)`, `values(x)` and `finish(x, mixed)`",
    "maps": "node or assignment maps: `maps(x)`",
    "none": "no weights over positions",
}

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


def page(name: str, *, markdown: bool = False) -> str:
    """All about one block, for the terminal or as Markdown: what it computes, options, cost, sources."""
    info = block_info(name)
    heading = (lambda text: f"## {text}") if markdown else str.upper
    arxiv = f"arXiv:{info.arxiv}"
    if info.arxiv and markdown:
        arxiv = f"[{arxiv}](https://arxiv.org/abs/{info.arxiv})"
    lines = [
        f"# {info.title}" if markdown else f"{info.name}: {info.title}",
        "",
        ", ".join([info.paper, *([arxiv] if info.arxiv else [])]),
        "",
        *_paragraphs(_about(info), markdown=markdown),
        heading("Use"),
        "",
        *_code(f'lookfar.create_block("{info.name}", {CHANNELS})', *_insertion(info), markdown=markdown, lang="python"),
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
        heading("Verified against"),
        "",
        *_list(*(f"`{source}`" for source in info.verified)),
    ]
    if picture := _picture(info):
        lines += ["", heading("Who attends to whom"), "", *_code(*picture, markdown=markdown, lang="text")[:-1]]
    if info.differences:
        lines += ["", heading("Where paper and code differ"), "", *_list(*info.differences)]
    text = "\n".join(lines) + "\n"
    return text if markdown else text.replace("`", "")


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
    written.update({folder / f"{name}.md": page(name, markdown=True) for name in list_blocks()})
    return written


def write_documents(root: Path) -> list[Path]:
    """Write the generated documents where they differ, remove pages of blocks that are gone; returns what changed."""
    wanted = documents(root)
    changed = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path], encoding="utf-8")
    gone = [path for path in (root / "docs" / "blocks").glob("*.md") if path not in wanted]
    for path in gone:
        path.unlink()
    return changed + gone


def _picture(info: BlockInfo) -> list[str]:
    """The positions that one query of a small map gives weight to, found by asking the block itself."""
    query = 3 * WIDTH + 4
    if info.kind not in ("context", "layer", "head"):
        return []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = create_block(info.name, 16).eval()
        if info.attends != "weights":
            return _reach(module, query)
        two = module.attention(torch.randn(1, 16, HEIGHT, WIDTH), torch.tensor([query, query + 5]))  # pyright: ignore[reportCallIssue]
    here, there = two.abs().mean(1)[0]
    if len(here) != HEIGHT * WIDTH:
        return [f"every position attends to {len(here)} pooled or strided keys of a {HEIGHT} x {WIDTH} map"]
    same = bool(torch.allclose(here, there, atol=1e-7))
    legend = "◎ ○ the query, with and without weight on itself; ■ weight, · none"
    return [*_rows(here > 0, query), "", legend + ("; the same weights for every query" if same else "")]


def _reach(module: nn.Module, query: int) -> list[str]:
    """The positions whose features change the output at the query, tried one by one; none where no map comes out."""
    module = module.double()
    for parameter in module.parameters():  # behind a factor of zero nothing would reach anything
        parameter.add_(0.3 * torch.randn_like(parameter))
    x, *rest = (t.double() for t in sample_inputs(module, 16, (HEIGHT, WIDTH), batch=1))

    def answer(x: Tensor) -> Tensor | None:
        y = module(x, *rest)
        y = y[0] if isinstance(y, tuple) else y
        return y.flatten(2)[0, :, query] if y.shape[2:] == x.shape[2:] == (HEIGHT, WIDTH) else None

    before = answer(x)
    if before is None:
        return []
    reached = torch.zeros(HEIGHT * WIDTH, dtype=torch.bool)
    for n in range(len(reached)):
        changed = x.clone()
        changed.flatten(2)[:, :, n] += 1  # a view
        after = answer(changed)
        reached[n] = after is not None and not torch.allclose(after, before, rtol=1e-9, atol=1e-12)
    return [*_rows(reached, query), "", "◎ a position; ■ those whose features change what comes out there, · none"]


def _rows(marked: Tensor, query: int) -> list[str]:
    marks = ["■" if mark else "·" for mark in marked.tolist()]
    marks[query] = "◎" if marked[query] else "○"
    return [" ".join(marks[row * WIDTH : (row + 1) * WIDTH]) for row in range(HEIGHT)]


def _index() -> str:
    rows = []
    for info in map(block_info, list_blocks()):
        title = f"[{info.title}](https://arxiv.org/abs/{info.arxiv})" if info.arxiv else info.title
        costs = info.complexity, info.memory, parameters(info.name)
        rows.append((f"[`{info.name}`]({info.name}.md)", title, info.kind, info.family, *costs, _source(info)))
    head = "# Blocks\n\nN positions, C channels, H × W the map; other letters are the block's own sizes.\n\n"
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
    return f"{head}## Questions that the field leaves open\n\n{_ASKED}\n\n{questions}\n"


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
    if isinstance(value, functools.partial):
        return _name(value.func)
    return getattr(value, "__name__", repr(value))


def _about(info: BlockInfo) -> str:
    """The paragraphs of the class docstring before its first section."""
    return re.split(r"\n(?=(?:Args|Shape|Raises|Example|Attributes|Traps):)", inspect.getdoc(info.cls) or "")[0]


def _paragraphs(text: str, *, markdown: bool) -> list[str]:
    """Paragraphs of a docstring; those that are a formula stand as code, where Markdown leaves them alone."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        paragraph = paragraph.strip()
        formula = re.match(r"\S+( \S+)? (=|<-) ", paragraph)
        if formula:
            lines += _code(*(line.strip() for line in paragraph.splitlines()), markdown=markdown, lang="text")
        else:
            lines += [_inline(paragraph), ""]
    return lines


def _code(*lines: str, markdown: bool, lang: str) -> list[str]:
    return [f"```{lang}", *lines, "```", ""] if markdown else [*(f"    {line}" for line in lines), ""]


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

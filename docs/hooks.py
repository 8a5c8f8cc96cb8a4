"""What ``make docs`` adds to the documents: pages that the code itself writes, and files from outside this folder.

Pages of the commands and of the plan file are never stale, since they exist in the site alone.
"""

import dataclasses
import inspect
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# page of the site -> file of the repository
FROM_ROOT = {
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    **{
        f"measured/{path.name}": f"benchmarks/results/{path.name}"
        for path in (ROOT / "benchmarks/results").glob("*.md")
    },
}
ELSEWHERE = {"README.md": "index.md", **{path: page for page, path in FROM_ROOT.items()}}
LINK = re.compile(r"(\]\()([^)#\s]+)")
# "1.06 to 1.25", "90.2 ± 2.8" and "[+42.5, +65.3]" in the rows of tables
ROW = re.compile(r"^\|.*", re.MULTILINE)
TOGETHER = re.compile(r"(?<=\d)( to | ± )(?=[-+−\d])|(?<=\d,) (?=[-+−][\d.]+\])")
FORMULA = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> Any:
    """Puts a page for each block into the menu."""
    (blocks,) = (section["Blocks"] for section in config["nav"] if "Blocks" in section)
    pages = sorted((ROOT / "docs/blocks").glob("*.md"))
    blocks += [{path.stem: f"blocks/{path.name}"} for path in pages if path.stem != "index"]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are not in this folder."""
    from mkdocs.structure.files import File

    for page, path in FROM_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        files.append(File.generated(config, f"examples/{path.name}", abs_src_path=str(path)))
    files.append(File.generated(config, "commands.md", content=commands()))
    files.append(File.generated(config, "plan.md", content=plan()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as they are right in the repository become links of the site, formulas what browsers draw.

    Intervals in tables stay on one line.
    """
    path = page.file.src_uri
    folder = posixpath.dirname(FROM_ROOT.get(path, posixpath.join("docs", path)))

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, found[2]))
        if re.match(r"[a-z]+:", found[2]):
            return found[0]
        there = target if target.startswith("examples/") else posixpath.relpath(target, "docs")
        there = ELSEWHERE.get(target, there)
        return found[1] + posixpath.relpath(there, posixpath.dirname(path) or ".")

    markdown = ROW.sub(lambda row: TOGETHER.sub(unbroken, row[0]), markdown)
    return LINK.sub(link, FORMULA.sub(formula, markdown))


def unbroken(found: re.Match[str]) -> str:
    """The same, with spaces at which no line ends."""
    return found[0].replace(" ", "\N{NO-BREAK SPACE}")


def formula(found: re.Match[str]) -> str:
    """A fence of LaTeX, which GitHub draws, as MathML, which browsers draw: one formula a line."""
    from latex2mathml.converter import convert

    text = re.sub(r"\\(begin|end)\{aligned\}", "", found[1])
    rows = [row.replace("&", "").strip() for row in re.split(r"\\\\\n", text)]
    return "\n".join(['<div class="math">', *(convert(row, display="block") for row in rows if row), "</div>"])


def group_of(app: Any) -> Any:
    """The program with its commands."""
    import typer

    return typer.main.get_command(app)


def commands() -> str:
    """Every command's help, as the terminal shows it."""
    from lookfar import cli
    from lookfar.cli._help import page

    group = group_of(cli.app)
    top = group.context_class(group, info_name="lookfar", help_option_names=["-h", "--help"])  # commands inherit them
    text = ["# Commands", "What `lookfar COMMAND --help` prints. `lookfar --install-completion` teaches your shell."]
    for name, command in group.commands.items():
        helped = page(command, group.context_class(command, info_name=name, parent=top), 88)
        text += [f"## {name}", f"```text\n{helped.strip()}\n```"]
    return "\n\n".join(text) + "\n"


def plan() -> str:
    """Every entry of ``study.yaml`` with its default."""
    from lookfar.study import Plan

    said = dict(re.findall(r"^    (\w+): (.+(?:\n        .+)*)", inspect.cleandoc(Plan.__doc__ or ""), re.MULTILINE))
    rows = []
    for field in dataclasses.fields(Plan):
        default = "required" if field.default is dataclasses.MISSING else f"`{_yaml(field.default)}`"
        words = re.sub(r":\w+:`~?(?:lookfar\.)?([^`]+)`", r"`\1`", " ".join(said[field.name].split()))
        words = words.replace("``", "`").replace("|", r"\|")
        rows.append(f"| `{field.name}` | {default} | {words} |")
    return "\n".join(
        [
            "# The plan file",
            "",
            "A study is described by one flat YAML file. `lookfar study plan.yaml` runs it, and options of the command",
            "replace its entries. The study's folder keeps the plan as `study.yaml`, all defaults filled in. `null`",
            "stands for a default that depends on the data or the network; the copy in the folder says what it was.",
            "",
            "```yaml",
            "data: scenes:lookup",
            "blocks: [nonlocal, global_context]",
            "seeds: 3",
            "```",
            "",
            "| entry | default | meaning |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

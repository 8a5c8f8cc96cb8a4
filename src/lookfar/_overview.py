"""Names of blocks and their catalogue as a list, which a file made from the code holds: neither needs torch."""

import difflib
import fnmatch
import functools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lookfar._tables import table

FILE = Path(__file__).parent / "blocks" / "catalogue.json"


def canonical_name(
    name: str, names: Collection[str], aliases: Mapping[str, str], functions: Collection[str] = ()
) -> str:
    """The name of a block, from its name or an alias, in whatever case and with hyphens, blanks or nothing between.

    Args:
        name: As somebody writes it.
        names: Of all blocks.
        aliases: Other names of blocks.
        functions: Names in ``lookfar.ops``, for those who look for one of them here.

    Raises:
        ValueError: No block has this name; the message names the nearest ones.

    >>> [canonical_name(name, ["criss_cross"], {"ccnet": "criss_cross"}) for name in ("Criss-Cross", "CCNet")]
    ['criss_cross', 'criss_cross']
    """
    if name in names or name in aliases:
        return aliases.get(name, name)
    plain = {_plain(known): aliases.get(known, known) for known in (*aliases, *names)}
    if name and _plain(name) in plain:
        return plain[_plain(name)]
    known = [*names, *aliases]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.55) or [k for k in known if name in k][:3]
    near += [k for k in names if near and near[0] in k]  # its relatives too: nonlocal, simplified_nonlocal
    near = list(dict.fromkeys(aliases.get(k, k) for k in near))[:5]
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    if name in functions:
        hint = f" There is a function, lookfar.ops.{name}."
    raise ValueError(f"no block is called {name!r}.{hint} `lookfar blocks` lists all.")


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]", "", name.lower())


@functools.cache
def catalogue() -> dict[str, Any]:
    """What ``make blocks-docs`` found: ``blocks``, the facts of each, ``kinds``, ``families`` and ``functions``."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def is_pattern(text: str) -> bool:
    """Whether it may fit several names.

    >>> is_pattern("*local*"), is_pattern("nonlocal")
    (True, False)
    """
    return re.search(r"[*?\[]", text) is not None


def select(pattern: str | None = None, *, kind: str | None = None, family: str | None = None) -> list[dict[str, Any]]:
    """Facts of the blocks that fit a name, an alias or a glob pattern, a kind and a family.

    Raises:
        ValueError: A name, kind or family that does not exist.

    >>> [block["name"] for block in select("*cross*", kind="context")]
    ['criss_cross']
    """
    known = catalogue()
    for what, value, accepted in (("kind", kind, known["kinds"]), ("family", family, known["families"])):
        if value is not None and value not in accepted:
            raise ValueError(f"no {what} is called {value!r}; there are {', '.join(accepted)}")
    if pattern is not None and not is_pattern(pattern):
        aliases = {alias: block["name"] for block in known["blocks"] for alias in block["aliases"]}
        names = [block["name"] for block in known["blocks"]]
        pattern = canonical_name(pattern, names, aliases, known["functions"])
    return [
        block
        for block in known["blocks"]
        if (pattern is None or fnmatch.fnmatch(block["name"], pattern))
        and kind in (None, block["kind"])
        and family in (None, block["family"])
    ]


def overview(blocks: Sequence[Mapping[str, Any]], *, width: int | None = None) -> str:
    """A line for each block: name, paper, kind, time, parameters, sources. ``width`` shortens the longest.

    >>> print(overview(select("criss_cross"), width=100).splitlines()[0])
    block        paper             kind     time           parameters, C=256  verified against
    """
    known = catalogue()
    if not blocks:
        return "no block fits; `lookfar blocks` lists all"
    shown = ("name", "paper", "kind", "complexity", "parameters_256", "source")
    heads = ["block", "paper", "kind", "time", "parameters, C=256", "verified against"]
    text = table(heads, [[block[what] for what in shown] for block in blocks], width=width)
    return f"{text}\n{known['filters']}" if len(blocks) == len(known["blocks"]) else text

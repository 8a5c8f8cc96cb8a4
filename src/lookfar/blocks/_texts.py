"""What options mean that many blocks share, written once; help, the documents' pages and the command line read it.

A block's docstring describes the options that are its own, and those that mean something else in it; ``@block`` adds
the others from here (:func:`complete`).
"""

import inspect
import re
import textwrap
from collections.abc import Iterable

OPTIONS = {
    "channels": "Channels C of input and output.",
    "dims": "Spatial axes of the map: 1, 2, or 3 (time first).",
    "out_channels": "Channels O of the output; ``channels`` when None.",
    "inner_channels": "Width D of queries and keys; ``channels // reduction`` when None.",
    "reduction": "Divisor that gives the inner width.",
    "heads": "Attentions side by side, each on its share of the channels.",
    "kernel_size": "Odd extent k of the window.",
    "subsample": "Stride of max-pooling keys and values; 1 is off.",
    "normalization": "How similarities become weights, see :mod:`lookfar.ops.attention`.",
    "share_query_key": "One projection for queries and keys.",
    "projections": "``inside`` has one each for queries, keys and values; ``around`` has one before, whose result is "
    "all three, and one after.",
    "reasoning": "The middle step of a low-rank or graph block; off, it is left out.",
    "dropout": "Dropout on the published module's last map, in training.",
    "form": '``"block"`` keeps the shape, x + P(published(x)); ``"published"`` gives the authors\' module alone.',
    "residual": "Add the input; off, the block is what it adds alone, without gate: a layer, or a mixer of tokens.",
    "zero_init": "Start as the identity: the last factor of what is added is zero.",
}


def args_of(doc: str) -> dict[str, str]:
    """The text of each argument in the section ``Args:`` of a docstring."""
    block = re.split(r"\n(?=\S)", doc.partition("\nArgs:\n")[2])[0]
    return {
        name: re.sub(r"\s+", " ", match[2]).strip()
        for match in re.finditer(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {5,}\S.*)*)", block, re.MULTILINE)
        for name in match[1].split(", ")
    }


def complete(doc: str | None, options: Iterable[str]) -> str:
    """``doc`` with a section ``Args:`` that has all ``options``, in their order; shared texts where it has none.

    Raises:
        KeyError: An option that neither the docstring nor this file describes.
    """
    doc = inspect.cleandoc(doc or "")
    own = args_of(doc)
    lines = "\n".join(_wrapped(f"{option}: {own.get(option) or OPTIONS[option]}") for option in options)
    about, args, rest = doc.partition("\nArgs:\n")
    if not args:
        about, shape, rest = doc.partition("\nShape:")
        return f"{about}\nArgs:\n{lines}\n{shape}{rest}"
    after = re.split(r"\n(?=\S)", rest, maxsplit=1)[1:]
    return f"{about}{args}{lines}\n\n{''.join(after)}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 116, initial_indent="    ", subsequent_indent="        ", break_long_words=False)

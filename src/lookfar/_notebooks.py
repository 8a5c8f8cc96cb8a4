"""How tables look in a notebook: as HTML, with everything escaped."""

from collections.abc import Sequence
from html import escape

from lookfar._tables import cell_text

Cell = str | int | float | None


class Shown(str):
    """Text that prints as it is, at a prompt too, and that a notebook draws as a table.

    >>> Shown("a  b", "<table></table>")
    a  b
    """

    html: str

    def __new__(cls, text: str, html: str = "") -> "Shown":
        self = super().__new__(cls, text)
        self.html = html or f"<pre>{escape(text)}</pre>"
        return self

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.html


def html_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    numbers: Sequence[bool] | None = None,
    below: Sequence[str] = (),
) -> str:
    """A table of HTML and, below it, sentences.

    Args:
        headers: Names of the columns, with their units.
        rows: Cells, rounded as :func:`lookfar._tables.table` rounds them.
        numbers: Which columns are right-aligned; by default those that hold a number.
        below: A paragraph each.
    """
    if numbers is None:
        numbers = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(headers))]
    sides = ["right" if number else "left" for number in numbers]

    def line(tag: str, cells: Sequence[Cell]) -> str:
        texts = [escape(cell_text(value)) for value in cells]
        return "".join(f'<{tag} style="text-align: {side}">{text}</{tag}>' for text, side in zip(texts, sides))

    body = "\n".join(f"<tr>{cells}</tr>" for cells in [line("th", headers), *(line("td", row) for row in rows)])
    return "\n".join([f"<table>\n{body}\n</table>", *(f"<p>{escape(text)}</p>" for text in below if text)])

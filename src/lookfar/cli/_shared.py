"""Options that several commands have, said once."""

from typing import Annotated

import typer

DATA, NETWORK = "Data", "Network and blocks"

SIZE = Annotated[
    str | None,
    typer.Option(metavar="HxW", help="Size that the network sees. [default: by the data]", rich_help_panel=DATA),
]
PRETRAINED = Annotated[
    bool | None, typer.Option("--pretrained", help="Start from timm's weights.", rich_help_panel=NETWORK)
]
HOST_WEIGHTS = Annotated[
    str | None, typer.Option(metavar="FILE", help="Start from the weights in FILE.", rich_help_panel=NETWORK)
]
OUTPUT_STRIDE = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Stride of the last feature map: 8, 16 or 32. [default: 16; 8 for small and published networks; the "
        "host's own in a classification]",
        rich_help_panel=NETWORK,
    ),
]
VAL = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|SEQUENCE",
        help="Validate on this folder or sequence. [default: the data set's own]",
        rich_help_panel=DATA,
    ),
]
IGNORE = Annotated[
    list[str] | None,
    typer.Option(metavar="V,V", help="Mask values to ignore, as well as 255.", rich_help_panel=DATA),
]
LABELS = Annotated[
    str | None,
    typer.Option(
        metavar="V,V", help="Mask values of class 0, 1, ... in this order, such as 0,255.", rich_help_panel=DATA
    ),
]
CLASSES = Annotated[
    int | None,
    typer.Option(metavar="N", help="Number of classes, if no classes.txt names them.", rich_help_panel=DATA),
]
EXIF = Annotated[
    str | None,
    typer.Option(
        metavar="HOW", help="apply or ignore the orientation of images whose masks fit both ways.", rich_help_panel=DATA
    ),
]
MARGIN = Annotated[
    float | None,
    typer.Option(
        metavar="POINTS",
        help="Differences of up to so many points count as practically none. [default: 0.5, or what the plan says]",
        rich_help_panel="Judging",
    ),
]
GROUPS = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX|none",
        help="Which validation images belong together, by their names. [default: by folders and names]",
        rich_help_panel="Judging",
    ),
]

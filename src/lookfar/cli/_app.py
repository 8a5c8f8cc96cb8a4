"""The application that commands are added to."""

import functools
from typing import Annotated

import typer

from lookfar.cli._help import Command, Group

app = typer.Typer(
    name="lookfar",
    cls=Group,
    help="Visual attention that looks far: which block helps your network on your data, and what it costs.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
command = functools.partial(app.command, cls=Command)


def _version(wanted: bool) -> None:
    """What a report of an error should name; read from metadata, so that nothing heavy is imported."""
    if not wanted:
        return
    import platform
    from importlib.metadata import version

    from lookfar import __version__

    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm"))
    print(f"lookfar {__version__} ({libraries}, Python {platform.python_version()}, {platform.system()})")
    raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the versions and exit.")
    ] = False,
) -> None:
    """Keeps `lookfar COMMAND` a group even while it has one command."""

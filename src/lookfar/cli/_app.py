"""The application that commands are added to."""

import typer

app = typer.Typer(
    name="lookfar",
    help="Visual attention that looks far: which block helps your network on your data, and what it costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
    """Keeps `lookfar COMMAND` a group even while it has one command."""

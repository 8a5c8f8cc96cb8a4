"""Commands that look into networks: explore."""

from typing import Annotated

import typer

from lookfar.cli._app import app


@app.command()
def explore(
    networks: Annotated[
        list[str], typer.Argument(metavar="TRIAL|FILE...", help="Folders of trials, or files of published networks.")
    ],
    port: Annotated[int, typer.Option(help="Of the page; 0 is a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser", help="Open it in the browser.")] = False,
) -> None:
    """A page on this computer: click a pixel of your image, see where blocks look.

    Example: lookfar explore runs/lookup/trials/nonlocal/0
    """
    from lookfar.explorer.command import explore_command

    raise SystemExit(explore_command(networks, port=port, browser=browser))

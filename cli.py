"""The `triptych` command: what there is, a line each; the commands are in `commands/`."""

from __future__ import annotations

import typer

from commands.serve import serve
from commands.terminal import EXIT_CODES, Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Serve text, images and speech from open models.",
    epilog=EXIT_CODES,
)


@app.callback()
def triptych() -> None:
    """Serve text, images and speech from open models."""


app.command()(serve)

if __name__ == "__main__":
    app(prog_name="triptych")

"""The `triptych` command: what there is, a line each; the commands are in `commands/`."""

from __future__ import annotations

import typer

from commands import keys, models
from commands.bench import bench
from commands.doctor import doctor
from commands.drain import drain
from commands.fetch import import_model, pull
from commands.plan import plan
from commands.serve import serve
from commands.terminal import EXIT_CODES, Commands
from commands.usage import usage

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
app.command()(plan)
app.command()(doctor)
app.command()(bench)
models.app.command("pull")(pull)
models.app.command("import")(import_model)
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.command("usage")(usage)
app.command("drain")(drain)

if __name__ == "__main__":
    app(prog_name="triptych")

"""The `triptych` command."""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console

from models.catalog import CatalogError, Modality, models_served
from settings import SettingsError, settings

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Serve text, images and speech.")
errors = Console(stderr=True)


@app.callback()
def triptych() -> None:
    """Serve text, images and speech from open models."""


@app.command()
def serve() -> None:
    """Serve on HOST:PORT in the foreground until interrupted."""
    try:
        options = settings()
        for modality in Modality:
            models_served(options.profile, modality)
    except (SettingsError, CatalogError) as error:
        errors.print(str(error), style="red", markup=False, highlight=False)
        raise typer.Exit(2) from None
    url = f"http://{options.host}:{options.port}"
    Console().print(
        f"Triptych starts on {url} with the profile {options.profile}; /readyz says when it is up."
    )
    # The supervisor takes this process's place, so that a signal reaches it first.
    os.execv(  # noqa: S606 - a fixed program with checked arguments
        sys.executable,
        [
            *(sys.executable, "-m", "bentoml", "serve", "service:Triptych"),
            *("--host", options.host, "--port", str(options.port)),
            # Longer than proxies and clients keep an idle connection, so that it is theirs to close.
            *("--timeout-keep-alive", "75"),
        ],
    )


if __name__ == "__main__":
    app()

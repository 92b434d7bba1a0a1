"""How every command speaks: results on stdout (as JSON where `--json` is given), the rest on stderr, and how
it ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from models.catalog import CatalogError
from runners.placement import PlacementError
from settings import SettingsError

EXIT_CODES = """Exit codes: 0 done; 1 looked at, and it is not right; 2 a wrong command line, setting or
catalog; 3 something outside (a hub, the service) cannot be reached or refuses."""

_FILE_WIDTH = 200
"""Columns of what goes into a file or a pipe, where nothing says how wide it is."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
"""The option that every command with a result has; hand it on to `show`."""


class Exit(IntEnum):
    """How a command ends; `EXIT_CODES` is the help's wording of it."""

    DONE = 0
    WRONG = 1
    USAGE = 2
    UNREACHABLE = 3


class CommandError(Exception):
    """Ends a command: one message for its user, on stderr, and an exit code."""

    def __init__(self, message: str, code: Exit = Exit.WRONG) -> None:
        super().__init__(message)
        self.code = code


class Commands(TyperGroup):
    """The one place where errors become messages and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CommandError as error:
            say(str(error), style="red")
            raise typer.Exit(error.code) from None
        except (SettingsError, CatalogError, PlacementError) as error:
            say(str(error), style="red")
            raise typer.Exit(Exit.USAGE) from None


def say(message: str, style: str = "") -> None:
    """A line for the person at the terminal: never part of a result."""
    Console(stderr=True).print(message, style=style, markup=False, highlight=False, soft_wrap=True)


def show(result: Any, as_json: bool, *text: Any) -> None:
    """Prints a command's result: `result` as JSON, or `text`, anything that rich can print."""
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    for part in text:
        if isinstance(part, str):
            console.print(part, markup=False, soft_wrap=True)
        else:
            console.print(part)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> Table:
    """A plain table; a column whose heading ends in a blank is numbers, set to the right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column.strip(), justify="right" if column.endswith(" ") else "left", overflow="fold")
    for row in rows:
        made.add_row(*("" if cell is None else str(cell) for cell in row))
    return made


def gib(size_bytes: float) -> str:
    """A size for people: `4.1 GiB`, `9.5 MiB`."""
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.1f} MiB"

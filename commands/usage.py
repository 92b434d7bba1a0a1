"""`triptych usage`: the records of what was asked, for a spreadsheet or a bill."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Annotated, Literal

import typer

from commands.keys import opened_store
from gateway.ledger import as_csv, as_json_lines, records

_WHEN = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]


def usage(
    since: Annotated[datetime | None, typer.Option(help="From then on; 30 days ago.", formats=_WHEN)] = None,
    until: Annotated[datetime | None, typer.Option(help="Before then; now.", formats=_WHEN)] = None,
    key: Annotated[str | None, typer.Option(help="Only of the key with this id.")] = None,
    form: Annotated[Literal["csv", "jsonl"], typer.Option("--format", help="How to print it.")] = "csv",
) -> None:
    """Print one record a request: key, route, model, units, milliseconds in queue and at work, outcome.

    Times are this machine's. A record never holds what was asked or answered.
    """
    start = since or datetime.now().astimezone() - timedelta(days=30)
    end = until.timestamp() if until else time.time()
    with opened_store() as store, store.begin() as connection:
        found = records(connection, start.timestamp(), end, key)
        for line in as_csv(found) if form == "csv" else as_json_lines(found):
            typer.echo(line, nl=False)

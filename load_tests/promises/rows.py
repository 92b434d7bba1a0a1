"""One promise, what was measured of it, and whether that keeps it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from load_tests.report import write_results


@dataclass(frozen=True, slots=True)
class Row:
    promise: str
    measured: str
    kept: bool


Check = Callable[[], Sequence[Row]]


def run(name: str, checks: Mapping[str, Check], chosen: Sequence[str]) -> None:
    """Runs the checks, says each row as it is known, writes them all, and ends with 1 if one is broken."""
    rows: list[Row] = []
    for check in chosen:
        try:
            found = checks[check]()
        except Exception as error:  # noqa: BLE001 - one that breaks must not hide the others
            found = [Row(check, f"{type(error).__name__}: {str(error)[:300]}", kept=False)]
        for row in found:
            print(f"{'pass' if row.kept else 'FAIL'}  {row.promise}: {row.measured}", flush=True)
        rows += found
    records = [
        {"promise": row.promise, "measured": row.measured, "": "pass" if row.kept else "FAIL"} for row in rows
    ]
    write_results(name, records, ["promise", "measured", ""])
    broken = [row.promise for row in rows if not row.kept]
    if broken:
        sys.exit(f"{len(broken)} of {len(rows)} promises are broken: {', '.join(broken)}")

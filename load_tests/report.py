"""What a bench leaves in `load_tests/results/`: JSON, a table, a plot, with the hardware and the command."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from load_tests.load import Sample

RESULTS = Path(__file__).with_name("results")
Record = Mapping[str, Any]
"""One measurement: what was measured, of which server, at which load."""


def hardware() -> str:
    """One line: processor, cores this process may use, memory, system, torch."""
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0))
    system = f"{platform.system()} {platform.machine()}"
    return f"{_processor()}, {cores} cores, {memory_gib:.0f} GiB, {system}, torch {version('torch')}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def command() -> str:
    """The command line that makes this measurement again."""
    module = Path(sys.argv[0]).resolve().relative_to(Path(__file__).parents[1]).with_suffix("")
    return " ".join(["python -m", ".".join(module.parts), *map(shlex.quote, sys.argv[1:])])


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """Units a second between the first request due and the last answer; latencies in ms, of good answers."""
    good = [sample for sample in samples if sample.good]
    if not good:
        return {"requests": len(samples), "failed": len(samples)}
    elapsed_s = max(sample.end_s for sample in good) - min(sample.due_s for sample in samples)
    return {
        "requests": len(samples),
        "failed": len(samples) - len(good),
        "per_s": round(sum(sample.units for sample in good) / elapsed_s, 4),
        **percentiles_ms("latency", [sample.latency_s for sample in good]),
        **percentiles_ms("first_byte", [sample.first_byte_latency_s for sample in good]),
    }


def percentiles_ms(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """`NAME_p50_ms`, `_p95_`, `_p99_` and the mean."""
    marks = {f"p{mark}": float(np.percentile(seconds, mark)) for mark in (50, 95, 99)}
    return {
        f"{name}_{mark}_ms": round(value * 1000, 2)
        for mark, value in (marks | {"mean": float(np.mean(seconds))}).items()
    }


def write_results(name: str, records: Sequence[Record], columns: Sequence[str], **facts: Any) -> None:
    """Writes `NAME.json` and `NAME.md`; `columns` are the keys of the records that the table shows."""
    RESULTS.mkdir(exist_ok=True)
    about = {
        "hardware": hardware(),
        "command": command(),
        "date": datetime.now(UTC).date().isoformat(),
        **facts,
    }
    document = {**about, "records": list(records)}
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    lines = [f"- {key}: {value}" for key, value in about.items()]
    table = table_of(records, columns)
    (RESULTS / f"{name}.md").write_text("\n".join([*lines, "", table, ""]), encoding="utf-8")
    print(table)


def table_of(records: Sequence[Record], columns: Sequence[str]) -> str:
    rows = [[_shown(record.get(column)) for column in columns] for record in records]
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows])


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def plot_lines(
    name: str, records: Sequence[Record], x: str, ys: Mapping[str, str], line: str = "server"
) -> None:
    """`NAME.png`: a panel for each key of `ys` (its value is the panel's title), a line for each server."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(ys), figsize=(5 * len(ys), 4), squeeze=False)
    for panel, (y, title) in zip(panels[0], ys.items(), strict=True):
        for server in dict.fromkeys(record[line] for record in records):
            points = [
                r for r in records if r[line] == server and r.get(y) is not None and r.get(x) is not None
            ]
            points.sort(key=lambda record: record[x])
            panel.plot([p[x] for p in points], [p[y] for p in points], marker="o", label=str(server))
        panel.set(title=title, xlabel=x.replace("_", " "), ylim=(0, None))
    panels[0][0].legend()
    figure.text(0.01, 0.005, hardware(), fontsize=6)
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.png", dpi=110)
    pyplot.close(figure)

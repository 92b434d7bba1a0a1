"""The report of `make load` as one HTML file, its plots inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from load_tests.crowd.watching import MODALITIES

PAGE = Path(__file__).with_name("report.html.j2")


def write_page(report: Mapping[str, Any], file: Path) -> None:
    names = sorted({name for stage in report["stages"] for name in stage["names"]})
    page = Environment(autoescape=True).from_string(PAGE.read_text(encoding="utf-8"))
    text = page.render(report=report, names=names, modalities=MODALITIES, plots=_plots(report, names))
    file.write_text(text, encoding="utf-8")


def _plots(report: Mapping[str, Any], names: Sequence[str]) -> str:
    """A PNG in base64: six panels, clients along each but the last, which has the time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ramp = [stage for stage in report["stages"] if isinstance(stage["clients"], int)]
    clients = [stage["clients"] for stage in ramp]
    places = range(len(clients))
    figure, panels = pyplot.subplots(2, 3, figsize=(15, 8))
    answers, latency, waiting, rows, errors, memory = panels.flatten()
    answers.plot(places, [stage["per_s"] for stage in ramp], marker="o", color="black")
    answers.set(title="answers a second", ylim=(0, None))
    for name in names:
        marks = [stage["names"].get(name, {}).get("latency_p95_ms") for stage in ramp]
        latency.plot(places, [None if m is None else m / 1e3 for m in marks], marker=".", label=name)
    latency.set(title="p95, seconds", yscale="log")
    latency.legend(fontsize=7)
    width = 0.8 / len(MODALITIES)
    for number, name in enumerate(MODALITIES):
        at = [place + (number - 1.5) * width for place in places]
        told = [stage["modalities"][name] for stage in ramp]
        work = [each.get("work_ms", 0) / 1e3 for each in told]
        queue = [each.get("queue_ms", 0) / 1e3 for each in told]
        waiting.bar(at, work, width, label=f"{name}: work")
        waiting.bar(at, queue, width, bottom=work, color="lightgrey", hatch="//")
        rows.plot(places, [each.get("rows_per_step") for each in told], marker="o", label=name)
    waiting.set(title="mean seconds at work, and (hatched) in the queue")
    waiting.legend(fontsize=7)
    rows.set(title="mean rows of a step", ylim=(0, None))
    rows.legend(fontsize=7)
    errors.bar(places, [stage["failed"] for stage in ramp], color="firebrick")
    errors.set(title="failed requests", ylim=(0, max(1, *(stage["failed"] for stage in ramp))))
    seen = [each for each in report["memory"] if each["mib"]]
    memory.plot([each["s"] for each in seen], [each["mib"] / 1024 for each in seen])
    memory.set(title="memory of all processes, GiB", xlabel="seconds", ylim=(0, None))
    for panel in (answers, latency, waiting, rows, errors):
        panel.set_xticks(list(places), [str(each) for each in clients])
        panel.set_xlabel("clients")
        panel.grid(alpha=0.3)
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    pyplot.close(figure)
    return base64.b64encode(file.getvalue()).decode()

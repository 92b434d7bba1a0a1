"""A report against the thresholds, and one report against another."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from load_tests.report import table_of

THRESHOLDS = Path(__file__).with_name("thresholds.yaml")
Report = Mapping[str, Any]


def verdict(report: Report, thresholds: Path = THRESHOLDS) -> list[dict[str, Any]]:
    """A row each: `what`, `measured`, `good`; none for a stage or a request that was not made."""
    wanted = yaml.safe_load(thresholds.read_text(encoding="utf-8"))
    by_clients = {stage["clients"]: stage for stage in report["stages"]}
    rows: list[dict[str, Any]] = []
    requests = sum(stage["requests"] for stage in report["stages"])
    share = sum(stage["failed"] for stage in report["stages"]) / max(1, requests)
    most = wanted["failed_share"]
    rows.append(_row(f"at most {most:.1%} of requests fail", f"{share:.2%} of {requests}", share <= most))
    for each in wanted.get("latency", ()):
        told = by_clients.get(each["clients"], {}).get("names", {}).get(each["name"], {})
        if (measured := told.get("latency_p95_ms")) is not None:
            what = f"{each['name']} at {each['clients']} clients: p95 within {each['p95_ms']} ms"
            rows.append(_row(what, f"{measured:.0f} ms", measured <= each["p95_ms"]))
    for each in wanted.get("throughput", ()):
        if (stage := by_clients.get(each["clients"])) is not None:
            what = f"{each['clients']} clients get {each['per_s']} answers a second"
            rows.append(_row(what, f"{stage['per_s']:.1f}", stage["per_s"] >= each["per_s"]))
    memory = [stage["memory_mib"] for stage in report["stages"] if stage.get("memory_mib")]
    if len(memory) > 1:
        growth = memory[-1] / memory[0] - 1
        most = wanted["memory_growth"]
        rows.append(_row(f"memory grows by at most {most:.0%}", f"{growth:+.1%}", growth <= most))
    return rows


def _row(what: str, measured: str, good: bool) -> dict[str, Any]:
    return {"what": what, "measured": measured, "good": good}


def compared(before: Report, after: Report) -> str:
    """A table: each stage and kind of request that both have, and how much faster or slower it became."""
    old = {(s["clients"], name): told for s in before["stages"] for name, told in s["names"].items()}
    records: list[dict[str, Any]] = []
    for stage in after["stages"]:
        for name, told in stage["names"].items():
            then = old.get((stage["clients"], name))
            if then is None or "latency_p95_ms" not in then or "latency_p95_ms" not in told:
                continue
            ratio = told["latency_p95_ms"] / then["latency_p95_ms"]
            records.append(
                {
                    "clients": stage["clients"],
                    "request": name,
                    "p95_ms": f"{then['latency_p95_ms']:.0f} -> {told['latency_p95_ms']:.0f}",
                    "ratio": f"{ratio:.2f}",
                    "per_s": f"{then['per_s']:.2f} -> {told['per_s']:.2f}",
                    "failed": f"{then['failed']} -> {told['failed']}",
                }
            )
    return table_of(records, ("clients", "request", "p95_ms", "ratio", "per_s", "failed"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares two reports of `make load`.")
    parser.add_argument("before", type=Path, help="a .json file")
    parser.add_argument("after", type=Path, help="another one")
    given = parser.parse_args()
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in (given.before, given.after)]
    for report in reports:
        print(f"- {report['date']}, {report['hardware']}, {report['command']}")
    print()
    print(compared(*reports))


if __name__ == "__main__":
    main()

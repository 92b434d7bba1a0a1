"""A mixed crowd that grows from 1 to 64 clients, then callers who come when they like; a report.

    make load                 # about three minutes; load_tests/results/load.html and .json
    make load SHORT=1         # half a minute
    make load URL=https://... # a service that runs already; LOAD_KEY is its key

Closed loop first: each of so many clients asks again when it is answered and has thought a little. Then open
loop: requests come at random times (Poisson) at 70 % of the rate that eight clients had, answered or not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from load_tests.crowd.page import write_page
from load_tests.crowd.verdict import THRESHOLDS, verdict
from load_tests.crowd.watching import MODALITIES, Look, Watcher, between
from load_tests.load import Request, offer, poisson
from load_tests.promises.asking import service
from load_tests.report import RESULTS, command, hardware, percentiles_ms

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
OPEN_CLIENTS = "open loop"
WARM_UP: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/text", {"prompt": "Once", "max_tokens": 8}),
    ("/image", {"prompt": "a red circle", "num_inference_steps": 4, "loras": [{"name": "night"}]}),
    ("/speech", {"text": "one two three"}),
    ("/embed", {"texts": ["one"]}),
)


@contextmanager
def target(url: str | None) -> Generator[tuple[str, list[psutil.Process]]]:
    """Where to ask, and the processes whose memory is watched: none of a service elsewhere."""
    if url is not None:
        yield url.rstrip("/"), []
        return
    with service(TRIPTYCH_ACCESS_LOG="false") as served:
        yield served.url, served.processes()


def closed_loop(url: str, clients: Sequence[int], stage_s: float, folder: Path) -> list[dict[str, Any]]:
    """Each request of the crowd: `at` (its end, seconds since 1970), `name`, `ms`, `failed`, `clients`."""
    file = folder / "samples.jsonl"
    ramp = {"LOAD_CLIENTS": ",".join(map(str, clients)), "LOAD_STAGE_S": str(stage_s)}
    locust = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py"))]
    began = time.time()
    told = subprocess.run(
        [*locust, "--headless", "--only-summary", "--host", url, "--stop-timeout", "120"],
        env={**os.environ, **ramp, "LOAD_SAMPLES": str(file)},
        capture_output=True,
        text=True,
    )
    if not file.exists():
        raise RuntimeError(f"locust did not run: {told.stderr[-2000:]}")
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    first = min((each["at"] - each["ms"] / 1e3 for each in samples), default=began)
    for each in samples:
        stage = int((each["at"] - each["ms"] / 1e3 - first) / stage_s)
        each["clients"] = clients[min(stage, len(clients) - 1)]
    return samples


def open_loop(url: str, rate_per_s: float, seconds: float) -> list[dict[str, Any]]:
    count = max(1, int(rate_per_s * seconds))
    bodies = [WARM_UP[number % len(WARM_UP)] for number in range(count)]
    requests = [
        Request(path, {**body} if path == "/embed" else {**body, "seed": n})
        for n, (path, body) in enumerate(bodies)
    ]
    began = time.time()
    samples = offer(url, requests, poisson(count, rate_per_s, seed=7))
    return [
        {
            "at": began + sample.end_s,
            "name": request.path,
            "ms": sample.latency_s * 1e3,
            "failed": None if sample.good else str(sample.status),
            "clients": OPEN_CLIENTS,
        }
        for request, sample in zip(requests, samples, strict=True)
    ]


def stages(samples: Sequence[dict[str, Any]], looks: Sequence[Look]) -> list[dict[str, Any]]:
    """A record of each stage: all its requests together, each kind, and what the service said of itself."""
    made: list[dict[str, Any]] = []
    for clients in dict.fromkeys(each["clients"] for each in samples):
        own = [each for each in samples if each["clients"] == clients]
        began = min(each["at"] - each["ms"] / 1e3 for each in own)
        ended = max(each["at"] for each in own)
        names = sorted({each["name"] for each in own})
        elapsed_s = ended - began
        memory = [each.memory_mib for each in looks if began <= each.at <= ended and each.memory_mib]
        made.append(
            {
                "clients": clients,
                **_summed(own, elapsed_s),
                "memory_mib": round(memory[-1], 1) if memory else None,
                "names": {
                    name: _summed([e for e in own if e["name"] == name], ended - began) for name in names
                },
                "modalities": {name: between(looks, began, ended, name) for name in MODALITIES},
            }
        )
    return made


def _summed(samples: Sequence[dict[str, Any]], elapsed_s: float) -> dict[str, Any]:
    good = [each["ms"] / 1e3 for each in samples if each["failed"] is None]
    told: dict[str, Any] = {
        "requests": len(samples),
        "failed": len(samples) - len(good),
        "per_s": round(len(good) / elapsed_s, 3) if elapsed_s else 0.0,
    }
    errors = sorted({each["failed"] for each in samples if each["failed"] is not None})
    return (
        told | (percentiles_ms("latency", good) if good else {}) | ({"errors": errors[:3]} if errors else {})
    )


def measure(url: str | None, clients: Sequence[int], stage_s: float) -> dict[str, Any]:
    """The whole report."""
    key = os.environ.get("LOAD_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with (
        target(url) as (place, processes),
        tempfile.TemporaryDirectory() as folder,
        httpx.Client(base_url=place, timeout=300, headers=headers) as client,
    ):
        for path, body in WARM_UP:
            client.post(path, json=body).raise_for_status()
        with Watcher(client, processes) as watcher:
            samples = closed_loop(place, clients, stage_s, Path(folder))
            busy = [each for each in samples if each["clients"] == (8 if 8 in clients else clients[-1])]
            if not headers:  # its driver shows no key
                samples += open_loop(place, 0.7 * len(busy) / stage_s, stage_s)
    return {
        "hardware": hardware(),
        "command": command(),
        "date": time.strftime("%Y-%m-%d"),
        "stage_s": stage_s,
        "stages": stages(samples, watcher.looks),
        "memory": [
            {"s": round(each.at - watcher.looks[0].at, 1), "mib": each.memory_mib} for each in watcher.looks
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a service that runs already")
    parser.add_argument("--clients", default=",".join(map(str, CLIENTS)), help="of each stage, as 1,2,4")
    parser.add_argument("--stage-s", type=float, default=20, help="seconds of a stage")
    parser.add_argument("--out", type=Path, default=RESULTS / "load", help="the report, without its ending")
    parser.add_argument("--thresholds", type=Path, default=THRESHOLDS, help="a YAML file")
    given = parser.parse_args()
    report = measure(given.url, [int(each) for each in given.clients.split(",")], given.stage_s)
    report["verdict"] = verdict(report, given.thresholds)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_page(report, given.out.with_suffix(".html"))
    for row in report["verdict"]:
        print("pass" if row["good"] else "FAIL", f"{row['what']}: {row['measured']}")
    print(f"{given.out.with_suffix('.html')} is the report.")
    sys.exit(0 if all(row["good"] for row in report["verdict"]) else 1)


if __name__ == "__main__":
    main()

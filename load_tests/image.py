"""Ours against three peers on the same arrivals of mixed picture requests: throughput, latency, rows a step.

    make bench-image               # every load, about 15 minutes on two cores
    make bench-image SHORT=1       # one light and one heavy load, about 3 minutes
    make bench-image FULL_SIZE=1   # Stable Diffusion 1.5 of random weights at 256x256, 8 requests at once

A mixed request has 10 to 50 steps, guidance or none, one of four LoRAs or none, one of three samplers, and a
seed of its own. `capacity` is what ours draws a second with every client served; loads are parts of it.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import yaml

from load_tests.full_size import write_sd15
from load_tests.load import Request, Sample, offer, offer_in_turn, poisson
from load_tests.report import RESULTS, Record, percentiles_ms, plot_lines, summary, write_results
from load_tests.servers import Server, baseline, ours
from models.loading import EMBEDDED

COLOURS = ("red", "green", "blue", "yellow", "white")
SHAPES = ("circle", "square", "triangle", "star", "ring")
LORAS = ("outline", "stripes", "night", "pastel")
SCHEDULERS = ("ddim", "euler", "dpmpp_2m")
STEPS = (10, 15, 20, 25, 30, 40, 50)
SCALES = (1.0, 1.0, 4.0, 7.5)
CLIENTS = 12
COLUMNS = (
    "server",
    "load",
    "offered_per_s",
    "per_s",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "rows_per_step",
    "failed",
)


@dataclass(frozen=True, slots=True)
class Contender:
    server: Server
    in_a_list: bool
    """Whether its body is a list, here of one (BentoML's batches)."""

    def request(self, order: dict[str, Any]) -> Request:
        return Request("/image", {"orders": [order]} if self.in_a_list else order)


def mixed_orders(count: int, seed: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [
        {
            "prompt": f"a {chance.choice(COLOURS)} {chance.choice(SHAPES)} on a white background",
            "seed": chance.randrange(2**32),
            "num_inference_steps": chance.choice(STEPS),
            "guidance_scale": chance.choice(SCALES),
            "scheduler": chance.choice(SCHEDULERS),
            "loras": [
                {"name": name, "weight": 1.0} for name in [chance.choice((None, *LORAS))] if name is not None
            ],
            "width": None,
            "height": None,
        }
        for _ in range(count)
    ]


def contenders(
    stack: ExitStack, folder: Path, only: Sequence[str], warm: Sequence[dict[str, Any]], model: Path
) -> list[Contender]:
    """All of them started, ready, and warm by the requests `warm`."""
    loras = EMBEDDED / "loras" if model.parent == EMBEDDED else folder
    entry = {
        "family": "image.stable_diffusion",
        "source": f"folder:{model}",
        "loras": f"folder:{loras}",
        "licence": "Apache-2.0",
    }
    catalog = folder / "catalog.yaml"
    catalog.write_text(
        yaml.safe_dump({"models": {"bench": entry}, "profiles": {"default": {"image": ["bench"]}}})
    )
    weights = {"BENCH_MODEL": str(model), "BENCH_LORAS": str(loras)}
    starts: dict[str, Callable[[], Server]] = {
        "triptych": lambda: ours(folder, catalog),
        "fastapi": lambda: baseline("image_fastapi", folder, "/health", **weights),
        "litserve": lambda: baseline("image_litserve", folder, "/health", **weights),
        "bentoml": lambda: baseline("image_bentoml", folder, "/readyz", **weights),
    }
    started: list[Contender] = []
    for name in only:
        server = starts[name]()
        stack.callback(server.stop)
        server.name = name
        started.append(Contender(server, in_a_list=name == "bentoml"))
    for contender in started:
        contender.server.wait_ready()
        answers = offer_in_turn(contender.server.url, list(map(contender.request, warm)), clients=CLIENTS)
        log = contender.server.log.read_text(encoding="utf-8")
        assert all(answer.good for answer in answers), f"{contender.server.name} fails:\n{log}"
    return started


def rows_and_steps(server: Server) -> tuple[float, float]:
    """Rows that denoising steps of ours have advanced, and those steps; zeros for a peer."""
    if server.name != "triptych":
        return 0.0, 0.0
    counted = dict[str, float]()
    for line in httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines():
        if line.startswith("triptych_rows_per_step_") and 'lane="denoise"' in line and "bucket" not in line:
            counted[line.partition("{")[0]] = float(line.split()[-1])
    return counted.get("triptych_rows_per_step_sum", 0.0), counted.get("triptych_rows_per_step_count", 0.0)


def measured(
    contender: Contender, load: str, run: Callable[[], list[Sample]], **facts: Any
) -> dict[str, Any]:
    rows, steps = rows_and_steps(contender.server)
    samples = run()
    rows_now, steps_now = rows_and_steps(contender.server)
    record = {"server": contender.server.name, "load": load, **facts, **summary(samples)}
    if steps_now > steps:
        record["rows_per_step"] = round((rows_now - rows) / (steps_now - steps), 2)
    pipeline_ms = [float(s.headers["X-Pipeline-Ms"]) for s in samples if "X-Pipeline-Ms" in s.headers]
    if pipeline_ms:
        record |= percentiles_ms("pipeline", [each / 1000 for each in pipeline_ms])
    print(json.dumps(record), flush=True)
    return record


def one_client(all_of: Sequence[Contender], count: int) -> list[Record]:
    """The same requests to each server in turn, one at a time: A B C D A B C D ..."""
    orders = mixed_orders(count, seed=2)
    samples: dict[str, list[Sample]] = {each.server.name: [] for each in all_of}
    for order in orders:
        for each in all_of:
            samples[each.server.name] += offer_in_turn(each.server.url, [each.request(order)], clients=1)
    return [
        measured(each, "1 client", lambda each=each: samples[each.server.name]) | {"per_s": None}
        for each in all_of
    ]


def capacity_of(contender: Contender, count: int) -> float:
    """Pictures a second with every client served."""
    requests = list(map(contender.request, mixed_orders(count, seed=3)))
    return float(summary(offer_in_turn(contender.server.url, requests, clients=CLIENTS))["per_s"])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", default="0.3,0.6,1,2", help="parts of our capacity, with commas between")
    parser.add_argument("--requests", type=int, default=32, help="of each load")
    parser.add_argument("--alone", type=int, default=6, help="requests of the single client, 0 for none")
    parser.add_argument("--servers", default="triptych,fastapi,litserve,bentoml")
    parser.add_argument("--capacity", type=float, help="pictures a second, where it is known already")
    parser.add_argument(
        "--full-size", action="store_true", help="Stable Diffusion 1.5, 8 requests at once, and nothing else"
    )
    parser.add_argument(
        "--add", action="store_true", help="keep the other loads of the results that are there"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.full_size:
        full_size(args.servers.split(","))
        return
    records: list[Record] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        warm = [order | {"num_inference_steps": 2} for order in mixed_orders(2 * CLIENTS, seed=0)]
        all_of = contenders(stack, folder, args.servers.split(","), warm, EMBEDDED / "tiny-sd")
        capacity = args.capacity or capacity_of(all_of[0], args.requests)
        if args.alone:
            records += one_client(all_of, args.alone)
        for load in filter(None, args.loads.split(",")):
            rate = float(load) * capacity
            due = poisson(args.requests, rate, seed=4)
            for each in all_of:
                requests = list(map(each.request, mixed_orders(args.requests, seed=5)))
                facts = {"offered_per_s": round(rate, 3)}
                run = partial(offer, each.server.url, requests, due)
                records.append(measured(each, f"{load} x capacity", run, **facts))
    report(records, capacity, add=args.add)


def full_size(servers: Sequence[str]) -> None:
    """Each server alone, for the memory that its 4 GB of weights take."""
    same = {"num_inference_steps": 4, "loras": [], "width": 256, "height": 256}
    orders = [order | same for order in mixed_orders(8, seed=6)]
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as folder:
        model = write_sd15(Path(folder) / "sd15")
        for name in servers:
            with ExitStack() as stack:
                warm = [orders[0] | {"num_inference_steps": 1}]
                (each,) = contenders(stack, Path(folder), [name], warm, model)
                run = partial(offer_in_turn, each.server.url, list(map(each.request, orders)), clients=8)
                records.append(measured(each, "8 at once", run))
    write_results("image_full_size", records, tuple(name for name in COLUMNS if name != "offered_per_s"))


def report(records: list[Record], capacity: float, *, add: bool) -> None:
    if add and (RESULTS / "image.json").exists():
        before: list[Record] = json.loads((RESULTS / "image.json").read_text(encoding="utf-8"))["records"]
        again = {(record["server"], record["load"]) for record in records}
        records = [each for each in before if (each["server"], each["load"]) not in again] + records
    write_results("image", records, COLUMNS, capacity_per_s=round(capacity, 3))
    panels = {"per_s": "pictures a second", "latency_p50_ms": "p50 (ms)", "latency_p95_ms": "p95 (ms)"}
    plot_lines("image", records, "offered_per_s", panels)


if __name__ == "__main__":
    main()

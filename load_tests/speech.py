"""Ours against Hugging Face's `BarkModel.generate`, one by one and by 8 in lock step, on mixed requests.

    make bench-speech              # every load
    make bench-speech SHORT=1      # in about three minutes

Lengths, voices and seeds are mixed; a batch of the lock-step peer has the voice of its first request. Both
peers stand behind LitServe, with every core. Ours has as many threads as the service deals out itself, half
of the cores: Bark's steps are too small to share. Throughput is seconds of sound a second of the clock; ours
streams, so that its first byte is its first sound.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import yaml

from load_tests.load import Answer, Request, Sample, offer, offer_in_turn, poisson
from load_tests.report import Record, plot_lines, summary, write_results
from load_tests.servers import Server, baseline, ours
from models.loading import EMBEDDED

RATE = 16_000
WAV_HEAD = 44
VOICES = ("ada", "vera", "otto", "hugo")
WORDS = (
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "red",
    "green",
    "blue",
    "star",
)
AT_ONCE = 8
SENTENCES = "One two three four. The red star. Five six seven. A green circle. Eight nine one two."
COLUMNS = (
    "server",
    "load",
    "offered_per_s",
    "per_s",
    "first_byte_p50_ms",
    "first_byte_p95_ms",
    "latency_p50_ms",
    "latency_p95_ms",
    "rows_per_step",
    "failed",
)


def mixed(count: int, seed: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [
        {
            "text": " ".join(chance.choices(WORDS, k=chance.randint(2, 10))),
            "voice": chance.choice(VOICES),
            "seed": chance.randrange(2**32),
            "temperature": 0.6,
        }
        for _ in range(count)
    ]


def sound_s(answer: Answer) -> float:
    """Seconds of sound of a 16-bit WAV, its length from its size: a stream's header does not know it."""
    return (len(answer.body) - WAV_HEAD) / 2 / RATE


def requests_of(server: Server, orders: Sequence[dict[str, Any]]) -> list[Request]:
    more = {"stream": True} if server.name == "triptych" else {}
    return [Request("/speech", order | more) for order in orders]


def servers(stack: ExitStack, folder: Path, only: Sequence[str]) -> list[Server]:
    """All of them started, ready and warm."""
    model = EMBEDDED / "tiny-bark"
    entry = {"family": "speech.bark", "source": f"folder:{model}", "licence": "Apache-2.0"}
    catalog = folder / "catalog.yaml"
    profiles = {"default": {"speech": ["bench"]}}
    catalog.write_text(yaml.safe_dump({"models": {"bench": entry}, "profiles": profiles}))
    starts: dict[str, Callable[[], Server]] = {
        "triptych": lambda: ours(folder, catalog),
        "hf-one": lambda: baseline(
            "speech_litserve", folder, "/health", BENCH_MODEL=str(model), MAX_BATCH="1"
        ),
        "hf-lock-step": lambda: baseline(
            "speech_litserve", folder, "/health", BENCH_MODEL=str(model), MAX_BATCH=str(AT_ONCE)
        ),
    }
    started: list[Server] = []
    for name in only:
        server = starts[name]()
        stack.callback(server.stop)
        server.name = name
        started.append(server)
        server.wait_ready()
        warm = offer_in_turn(server.url, requests_of(server, mixed(AT_ONCE, 0)), clients=AT_ONCE)
        log = server.log.read_text(encoding="utf-8")
        assert all(answer.good for answer in warm), f"{name} fails:\n{log}"
    return started


def rows_and_steps(server: Server) -> tuple[float, float]:
    """Rows that coarse steps of ours have advanced, and those steps; zeros for a peer."""
    if server.name != "triptych":
        return 0.0, 0.0
    counted = dict[str, float]()
    for line in httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines():
        if line.startswith("triptych_rows_per_step_") and 'lane="coarse"' in line and "bucket" not in line:
            counted[line.partition("{")[0]] = float(line.split()[-1])
    return counted.get("triptych_rows_per_step_sum", 0.0), counted.get("triptych_rows_per_step_count", 0.0)


def measured(server: Server, load: str, run: Callable[[], list[Sample]], **facts: Any) -> dict[str, Any]:
    rows, steps = rows_and_steps(server)
    record: dict[str, Any] = {"server": server.name, "load": load, **facts, **summary(run())}
    rows_now, steps_now = rows_and_steps(server)
    if steps_now > steps:
        record["rows_per_step"] = round((rows_now - rows) / (steps_now - steps), 2)
    print(json.dumps(record), flush=True)
    return record


def in_turn(all_of: Sequence[Server], load: str, clients: int, rounds: int) -> list[Record]:
    """The same requests to each server, A B C A B C ...; the median round of each."""
    records: dict[str, list[dict[str, Any]]] = {server.name: [] for server in all_of}
    for number in range(rounds):
        orders = mixed(clients, 10 + number)
        for server in all_of:
            run = partial(offer_in_turn, server.url, requests_of(server, orders), clients, sound_s)
            records[server.name].append(measured(server, load, run))
    return [sorted(each, key=lambda record: record["per_s"])[len(each) // 2] for each in records.values()]


def sentences(server: Server, rounds: int) -> dict[str, float]:
    """A text of five sentences against its sentences one by one, in milliseconds, medians."""
    parts = [part.strip() + "." for part in SENTENCES.split(".") if part.strip()]
    taken: dict[str, list[float]] = {"first_alone": [], "first_sound": [], "one_by_one": [], "whole": []}
    for seed in range(rounds):
        orders = [{"text": text, "voice": "ada", "seed": seed, "temperature": 0.6} for text in parts]
        alone = [offer_in_turn(server.url, requests_of(server, [order]), 1)[0] for order in orders]
        (whole,) = offer_in_turn(server.url, requests_of(server, [orders[0] | {"text": SENTENCES}]), 1)
        taken["first_alone"].append(alone[0].latency_s)
        taken["one_by_one"].append(sum(each.latency_s for each in alone))
        taken["first_sound"].append(whole.first_byte_latency_s)
        taken["whole"].append(whole.latency_s)
    return {f"{name}_ms": round(1000 * median(each), 1) for name, each in taken.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", default="0.3,0.6,0.9", help="parts of our capacity, with commas between")
    parser.add_argument("--requests", type=int, default=40, help="of each load")
    parser.add_argument("--rounds", type=int, default=5, help="of what is measured in turn")
    parser.add_argument("--servers", default="triptych,hf-one,hf-lock-step")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    records: list[Record] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        all_of = servers(stack, folder, args.servers.split(","))
        at_once = in_turn(all_of, f"{AT_ONCE} at once", AT_ONCE, args.rounds)
        records += at_once
        records += in_turn(all_of, "1 alone", 1, args.rounds)
        long_text = sentences(all_of[0], args.rounds)
        mean_s = sum(record["per_s"] for record in at_once[:1]) / 2.5  # of about 2.5 s of sound a request
        for load in filter(None, args.loads.split(",")):
            rate = float(load) * mean_s
            due = poisson(args.requests, rate, seed=4)
            for server in all_of:
                requests = requests_of(server, mixed(args.requests, 5))
                run = partial(offer, server.url, requests, due, sound_s)
                records.append(measured(server, f"{load} x capacity", run, offered_per_s=round(rate, 3)))
    write_results("speech", records, COLUMNS, five_sentences=long_text)
    panels = {"per_s": "seconds of sound a second", "first_byte_p50_ms": "p50 to first sound (ms)"}
    plot_lines("speech", records, "offered_per_s", panels | {"latency_p95_ms": "p95 to the end (ms)"})


if __name__ == "__main__":
    main()

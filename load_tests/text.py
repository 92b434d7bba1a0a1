"""Streams of text for several clients at once: ours by the gateway and at the runner, vLLM's server, FastAPI.

    make bench-text               # the default engine and FastAPI; vLLM too where .venv-vllm is made
    make bench-text SHORT=1       # about 3 minutes
    make bench-text FULL_SIZE=1   # TinyLlama 1.1B of random weights, 16 tokens, one server after the other

Same model, prompts and sampling. Every server streams; tokens are those that its own usage tells. All get
every core. `triptych on vLLM` is the service with vLLM as its engine. `gateway_cpu` is the gateway's part of
the CPU time that the service took.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from jobs import TextJob, encode_job
from load_tests.full_size import write_tinyllama
from load_tests.load import Answer, Request, Sample, offer_in_turn
from load_tests.report import Record, percentiles_ms, plot_lines, summary, write_results
from load_tests.servers import Server, baseline, free_port, ours
from models.loading import EMBEDDED

ANIMALS = ("fox", "cat", "owl", "bear", "frog")
COLOURS = ("red", "green", "blue", "white", "black")
TOKENS = 64
VLLM = Path(".venv-vllm/bin/python")
COLUMNS = (
    *("server", "clients", "tokens_per_s", "first_byte_p50_ms", "first_byte_p95_ms"),
    *("between_tokens_p50_ms", "between_tokens_p95_ms", "gateway_cpu", "failed"),
)
_COUNTED = re.compile(rb'"completion_tokens": ?(\d+)')

Ask = Callable[[str, int, int], Request]
"""A request for a prompt, a seed and a number of tokens, in one server's words."""


@dataclass(frozen=True, slots=True)
class Contender:
    server: Server
    ask: Ask


def native(prompt: str, seed: int, tokens: int) -> Request:
    return Request("/text", {**_sampling(seed, tokens), "prompt": prompt})


def at_the_runner(prompt: str, seed: int, tokens: int) -> Request:
    job = TextJob(id=f"bench-{seed}", timeout_s=600, prompt=prompt, **_sampling(seed, tokens))
    return Request("/run", {"job": encode_job(job)})


def openai(prompt: str, seed: int, tokens: int) -> Request:
    told = {"model": "bench", "stream_options": {"include_usage": True}}
    return Request("/v1/completions", {**_sampling(seed, tokens), **told, "prompt": prompt})


def _sampling(seed: int, tokens: int) -> dict[str, Any]:
    return {"seed": seed, "max_tokens": tokens, "ignore_eos": True, "temperature": 0.7, "stream": True}


def tokens_of(answer: Answer) -> float:
    """The last count that a stream tells is that of the whole text."""
    counts = _COUNTED.findall(answer.body)
    return float(counts[-1]) if counts else 0.0


def contenders(folder: Path, model: Path) -> list[Callable[[], Contender]]:
    """Those that are here, each to be started."""
    entry = {"family": "text.decoder", "source": f"folder:{model}", "max_rows": 32, "licence": "Apache-2.0"}
    catalog = folder / "catalog.yaml"
    catalog.write_text(
        yaml.safe_dump({"models": {"bench": entry}, "profiles": {"default": {"text": ["bench"]}}})
    )

    def alone() -> Contender:
        port = free_port()
        serve = [sys.executable, "-m", "bentoml", "serve", "runners.text:TextRunner", "--port", str(port)]
        log = folder / "runner.log"
        profile = {"TRIPTYCH_PROFILE": str(catalog)}
        return Contender(Server("the runner alone", serve, port, log, "/readyz", **profile), at_the_runner)

    def on_vllm() -> Contender:
        server = ours(folder, catalog, "triptych on vLLM", VLLM, TRIPTYCH_TEXT_ENGINE="vllm")
        return Contender(server, native)

    def vllm() -> Contender:
        port = free_port()
        serve = [str(VLLM), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        serve += ["--served-model-name", "bench", "--dtype", "float32", "--enforce-eager"]
        serve += ["--max-num-seqs", "32", "--port", str(port)]
        serve += ["--gpu-memory-utilization", "0.3"]  # on a CPU, of the machine's memory
        return Contender(Server("vllm", serve, port, folder / "vllm.log", "/health"), openai)

    made = [
        lambda: Contender(ours(folder, catalog), native),
        alone,
        lambda: Contender(baseline("text_fastapi", folder, "/health", MODEL=str(model)), native),
    ]
    return [*made, on_vllm, vllm] if VLLM.exists() else made


def measure(contender: Contender, clients: int, rounds: int, tokens: int = TOKENS) -> dict[str, Any]:
    """`rounds` requests a client, after one that is not counted."""
    chance = random.Random(clients)
    prompts = [
        f"The {chance.choice(COLOURS)} {chance.choice(ANIMALS)} lived" for _ in range(clients * rounds)
    ]
    requests = [contender.ask(prompt, seed, tokens) for seed, prompt in enumerate(prompts)]
    url = contender.server.url
    offer_in_turn(url, [contender.ask("Once", 10**6 + clients, tokens)], 1, tokens_of)
    before = _cpu_s(contender.server)
    samples = offer_in_turn(url, requests, clients, tokens_of)
    spent = {
        pid: seconds - before.get(pid, (0.0, False))[0]
        for pid, (seconds, _) in _cpu_s(contender.server).items()
    }
    gateways = {pid for pid, (_, is_gateway) in before.items() if is_gateway}
    told = summary(samples)
    share = sum(spent[pid] for pid in gateways if pid in spent) / max(1e-9, sum(spent.values()))
    return {
        "server": contender.server.name,
        "clients": clients,
        "tokens_per_s": told.get("per_s"),
        **told,
        **percentiles_ms("between_tokens", _between(samples)),
        "gateway_cpu": round(share, 3) if gateways else None,
    }


def _between(samples: Sequence[Sample]) -> list[float]:
    """Seconds a token after the first, of each good stream."""
    good = [sample for sample in samples if sample.good and sample.units > 1]
    return [(sample.end_s - sample.first_byte_s) / (sample.units - 1) for sample in good] or [0.0]


def _cpu_s(server: Server) -> dict[int, tuple[float, bool]]:
    """CPU seconds of each of a server's processes, and whether it is the gateway."""
    spent: dict[int, tuple[float, bool]] = {}
    for process in server.processes():
        try:
            words = process.cmdline()
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        is_gateway = "triptych" in words  # as the name of the service that the process has
        spent[process.pid] = (times.user + times.system, is_gateway)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--full-size", action="store_true", help="TinyLlama 1.1B with random weights")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=8, help="requests of each client")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if arguments.full_size:
            full_size(folder)
            return
        records: list[Record] = []
        with ExitStack() as stack:
            servers = [started(make, stack) for make in contenders(folder, EMBEDDED / "tiny-llama")]
            for each in servers:
                each.server.wait_ready()
            for clients in arguments.clients:
                records += [measure(each, clients, arguments.rounds) for each in servers]
    write_results("text", records, COLUMNS, model="tiny-llama", max_tokens=TOKENS)
    shown = {"tokens_per_s": "tokens a second", "first_byte_p50_ms": "ms to the first token, p50"}
    plot_lines("text", records, "clients", shown)


def started(make: Callable[[], Contender], stack: ExitStack) -> Contender:
    contender = make()
    stack.callback(contender.server.stop)
    return contender


def full_size(folder: Path) -> None:
    """Each server alone, for the memory that its 4.4 GB of weights take."""
    records: list[Record] = []
    for make in contenders(folder, write_tinyllama(folder / "tinyllama")):
        with ExitStack() as stack:
            contender = started(make, stack)
            contender.server.wait_ready()
            records += [measure(contender, clients, rounds=1, tokens=16) for clients in (1, 8)]
    write_results("text_full_size", records, COLUMNS, model="TinyLlama 1.1B, random weights", max_tokens=16)


if __name__ == "__main__":
    main()

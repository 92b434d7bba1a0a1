"""Streams of text for several clients at once: ours by the gateway and at the runner, vLLM's server, FastAPI.

    make bench-text               # the default engine and FastAPI; vLLM too where .venv-vllm is made
    make bench-text SHORT=1       # about 3 minutes

Same model, prompts and sampling. Every server streams; tokens are those that its own usage tells. All get
every core. `gateway_cpu` is the gateway's part of the CPU time that the service took.
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

Ask = Callable[[str, int], Request]
"""A request for a prompt and a seed, in one server's words."""


@dataclass(frozen=True, slots=True)
class Contender:
    server: Server
    ask: Ask


def native(prompt: str, seed: int) -> Request:
    return Request("/text", {**_sampling(seed), "prompt": prompt})


def at_the_runner(prompt: str, seed: int) -> Request:
    job = TextJob(id=f"bench-{seed}", timeout_s=600, prompt=prompt, **_sampling(seed))
    return Request("/run", {"job": encode_job(job)})


def openai(prompt: str, seed: int) -> Request:
    told = {"model": "bench", "stream_options": {"include_usage": True}}
    return Request("/v1/completions", {**_sampling(seed), **told, "prompt": prompt})


def _sampling(seed: int) -> dict[str, Any]:
    return {"seed": seed, "max_tokens": TOKENS, "temperature": 0.7, "stream": True}


def tokens_of(answer: Answer) -> float:
    """The last count that a stream tells is that of the whole text."""
    counts = _COUNTED.findall(answer.body)
    return float(counts[-1]) if counts else 0.0


def contenders(stack: ExitStack, folder: Path, model: Path) -> list[Contender]:
    """Started one beside the other, and measured in turn: one that is not asked takes no CPU."""
    entry = {"family": "text.decoder", "source": f"folder:{model}", "max_rows": 32, "licence": "Apache-2.0"}
    catalog = folder / "catalog.yaml"
    catalog.write_text(
        yaml.safe_dump({"models": {"bench": entry}, "profiles": {"default": {"text": ["bench"]}}})
    )
    port = free_port()
    alone = Server(
        "the runner alone",
        [sys.executable, "-m", "bentoml", "serve", "runners.text:TextRunner", "--port", str(port)],
        port,
        folder / "runner.log",
        "/readyz",
        TRIPTYCH_PROFILE=str(catalog),
    )
    made = [
        Contender(ours(folder, catalog), native),
        Contender(alone, at_the_runner),
        Contender(baseline("text_fastapi", folder, "/health", MODEL=str(model)), native),
    ]
    if VLLM.exists():
        port = free_port()
        command = [str(VLLM), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += [
            "--served-model-name",
            "bench",
            "--dtype",
            "float32",
            "--enforce-eager",
            "--gpu-memory-utilization",  # on a CPU, of the machine's memory
            "0.3",
            "--port",
            str(port),
        ]
        made.append(Contender(Server("vllm", command, port, folder / "vllm.log", "/health"), openai))
    for contender in made:
        stack.callback(contender.server.stop)
    for contender in made:
        contender.server.wait_ready()
    return made


def measure(contender: Contender, clients: int, rounds: int) -> dict[str, Any]:
    """`rounds` requests a client, after one that is not counted."""
    chance = random.Random(clients)
    prompts = [
        f"The {chance.choice(COLOURS)} {chance.choice(ANIMALS)} lived" for _ in range(clients * rounds)
    ]
    requests = [contender.ask(prompt, seed) for seed, prompt in enumerate(prompts)]
    url = contender.server.url
    offer_in_turn(url, [contender.ask("Once", 10**6 + clients)], 1, tokens_of)
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
    parser.add_argument(
        "--model", type=Path, default=EMBEDDED / "tiny-llama", help="a folder in the hub's layout"
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=8, help="requests of each client")
    arguments = parser.parse_args()
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = contenders(stack, Path(folder), arguments.model)
        for clients in arguments.clients:
            records += [measure(each, clients, arguments.rounds) for each in servers]
    write_results("text", records, COLUMNS, model=arguments.model.name, max_tokens=TOKENS)
    shown = {"tokens_per_s": "tokens a second", "first_byte_p50_ms": "ms to the first token, p50"}
    plot_lines("text", records, "clients", shown)


if __name__ == "__main__":
    main()

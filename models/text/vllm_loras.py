"""LoRAs on vLLM, which reads them itself: folders as peft writes them, one a request, at full strength."""

# vLLM is not part of the environment that types are checked in.
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from jobs import ErrorKind, JobError, TextJob
from models.lora.folder import Found, find
from models.text.adapters import only_one

log = logging.getLogger("triptych.runner")

MOST_AT_ONCE = 4
"""LoRAs in one of its steps; vLLM lets requests of others wait."""
HIGHEST_RANK = 64
"""vLLM keeps memory for so much of each, whatever they have."""


def lora_args(folder: Path | None) -> dict[str, Any]:
    """What vLLM's engine is to know before it starts."""
    if folder is None:
        return {}
    return {"enable_lora": True, "max_loras": MOST_AT_ONCE, "max_lora_rank": HIGHEST_RANK}


class VllmLoras:
    """Names to vLLM's requests for them. One event loop's own."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._numbers: dict[Hashable, int] = {}
        """Of each state of a LoRA's files, so that a replaced one is another."""
        self._loaded: dict[int, asyncio.Task[bool]] = {}

    async def request(self, job: TextJob, engine: Any) -> Any:
        """For `AsyncLLM.generate`; None without a LoRA. Raises `JobError` for what vLLM cannot use."""
        only_one(job)
        if not job.loras:
            return None
        choice = job.loras[0]
        found = await asyncio.to_thread(find, self._folder, choice)
        if choice.weight != 1:
            raise _unusable(choice.name, "on vLLM its weight is 1")
        await asyncio.to_thread(_check, choice.name, found)
        from vllm.lora.request import LoRARequest

        number = self._numbers.setdefault((choice.name, found.key), len(self._numbers) + 1)
        made = LoRARequest(f"{choice.name}-{number}", number, str(found.weights.parent))
        await self._load(choice.name, made, engine)
        return made

    async def _load(self, name: str, made: Any, engine: Any) -> None:
        """Before a request asks for it: one that could not be read then would end vLLM's engine."""
        number = made.lora_int_id
        if number not in self._loaded:
            self._loaded[number] = asyncio.create_task(engine.add_lora(made))
        try:
            await asyncio.shield(self._loaded[number])
        except Exception as error:  # vLLM hands on whatever its worker raised
            self._loaded.pop(number, None)
            log.warning("vLLM cannot use the LoRA %s: %s", name, error)
            raise _unusable(name, "vLLM cannot read it for this model") from error


def _check(name: str, found: Found) -> None:
    if found.config is None:
        raise _unusable(name, "vLLM reads folders as peft writes them, and this is a file")
    try:
        stated = json.loads(found.config.read_text(encoding="utf-8"))
        ranks = [stated["r"], *(stated.get("rank_pattern") or {}).values()]
        highest = max(map(int, ranks))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unusable(name, "its adapter_config.json is broken") from error
    if highest > HIGHEST_RANK:
        raise _unusable(name, f"its rank is {highest} and the highest on vLLM is {HIGHEST_RANK}")


def _unusable(name: str, why: str) -> JobError:
    return JobError(ErrorKind.INVALID, f"LoRA {name!r} cannot be used: {why}.", param="loras")

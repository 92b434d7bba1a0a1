"""A loop of a few lines in the place of the engine, for the tests of the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from jobs import Event, TextJob, TextResult
from models.text.decoder import Decoder
from models.text.row import Row
from models.text.weights import Checkpoint


def job(prompt: str | None = None, **fields: Any) -> TextJob:
    wanted: dict[str, Any] = {"timeout_s": 9, "seed": 1, "max_tokens": 30, "temperature": 0, "prompt": prompt}
    wanted.update(fields)
    return TextJob(id="j", **wanted)


def started(model: Decoder, order: TextJob) -> Row:
    row = model.prepare(order)
    assert model.reserve(row)
    return row


def advance(model: Decoder, rows: Sequence[Row]) -> list[Event]:
    """One step of every lane there is, as an engine would take it: within its budget, the rest waits."""
    events: list[Event] = []
    for lane in {lane for row in rows if (lane := model.lane(row))}:
        taken: list[Row] = []
        for row in rows:
            if model.lane(row) == lane and sum(map(model.cost, [*taken, row])) <= model.budget(lane):
                taken.append(row)
        events += [event for some in model.step(lane, taken) for event in some]
    return events


def finished(model: Decoder, rows: Sequence[Row]) -> list[TextResult]:
    while any(model.lane(row) for row in rows):
        advance(model, rows)
    results = [model.finish(row) for row in rows]
    for row in rows:
        model.release(row)
    assert all(isinstance(result, TextResult) for result in results)
    return [result for result in results if isinstance(result, TextResult)]


def answer(model: Decoder, order: TextJob) -> TextResult:
    return finished(model, [started(model, order)])[0]


def recorded(checkpoint: Checkpoint, seen: list[torch.Tensor]) -> Checkpoint:
    def logits(**inputs: Any) -> torch.Tensor:
        made = checkpoint.logits(**inputs)
        seen.append(made[:, -1].clone())
        return made

    return replace(checkpoint, logits=logits)

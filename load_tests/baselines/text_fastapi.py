"""The server that most people write first: FastAPI in front of transformers' `generate`, a call at a time."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fastapi  # pyright: ignore[reportMissingImports]
import torch
import uvicorn
from fastapi.responses import StreamingResponse  # pyright: ignore[reportMissingImports]
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

app: Any = fastapi.FastAPI()
model: Any = AutoModelForCausalLM.from_pretrained(os.environ["MODEL"], dtype=torch.float32)
tokenizer: Any = AutoTokenizer.from_pretrained(os.environ["MODEL"])
turn = threading.Lock()
# A thread for all: each new thread would have OpenMP workers of its own, which spin beside each other.
maker = ThreadPoolExecutor(1)


class Order(BaseModel):
    prompt: str
    seed: int
    max_tokens: int
    """All of them are made, as `ignore_eos` asks of the others."""
    temperature: float
    stream: bool


def health() -> str:
    return "ok"


def text(order: Order) -> Any:
    return StreamingResponse(_pieces(order), media_type="text/event-stream")


def _pieces(order: Order) -> Iterator[str]:
    with turn:
        inputs = tokenizer(order.prompt, return_tensors="pt", return_token_type_ids=False)
        streamer: Any = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        made: list[Any] = []

        def work() -> None:
            torch.manual_seed(order.seed)
            how = {
                "do_sample": True,
                "temperature": order.temperature,
                "max_new_tokens": order.max_tokens,
                "min_new_tokens": order.max_tokens,
            }
            made.append(model.generate(**inputs, **how, streamer=streamer))

        working = maker.submit(work)
        for piece in streamer:
            yield f"data: {json.dumps({'delta': piece})}\n\n"
        working.result()
        count = made[0].shape[1] - inputs.input_ids.shape[1]
        yield f"data: {json.dumps({'completion_tokens': count})}\n\n"


# Not as decorators: they have no type where fastapi is not installed.
app.get("/health")(health)
app.post("/text")(text)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")

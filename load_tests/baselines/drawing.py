"""What the three peers share: diffusers' pipeline as its users run it, on our weights and as many threads.

A pipeline call has one step count, one guidance, one sampler and one choice of LoRAs; so a batch of requests
is drawn group by group, each group of requests that agree in all of these as one call.
"""

from __future__ import annotations

import io
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from typing_extensions import TypedDict  # pydantic, which FastAPI reads it with, asks for this one

MAX_BATCH = 8
SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
}


class Lora(TypedDict):
    name: str
    weight: float


class Order(TypedDict):
    """The part of our own request that the bench uses."""

    prompt: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    loras: list[Lora]
    width: int | None
    height: int | None


class Drawing:
    """One pipeline with all LoRAs loaded; draws one batch at a time. Taken from BENCH_MODEL, BENCH_LORAS.

    On one thread of its own, which loads it too: on a thread a request, as FastAPI and BentoML have it, every
    thread would have its own OpenMP workers; more of them than cores do not spin, and take twice the time.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._thread.submit(self._load).result()

    def _load(self) -> None:
        loader: Any = StableDiffusionPipeline
        self._pipe = loader.from_pretrained(
            os.environ["BENCH_MODEL"],
            torch_dtype=torch.float32,
            safety_checker=None,
            requires_safety_checker=False,
        )
        self._pipe.set_progress_bar_config(disable=True)
        config = self._pipe.scheduler.config
        self._schedulers = {name: kind.from_config(config) for name, kind in SCHEDULERS.items()}
        for file in sorted(Path(os.environ.get("BENCH_LORAS") or "/nowhere").glob("*.safetensors")):
            self._pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=file.stem)

    def draw(self, orders: Sequence[Order]) -> list[bytes]:
        """A PNG of each."""
        return self._thread.submit(self._draw, orders).result()

    def _draw(self, orders: Sequence[Order]) -> list[bytes]:
        groups: dict[Any, list[int]] = defaultdict(list)
        for at, order in enumerate(orders):
            loras = tuple((lora["name"], lora["weight"]) for lora in order["loras"])
            size = (order.get("width"), order.get("height"))
            steps, scale = order["num_inference_steps"], order["guidance_scale"]
            groups[steps, scale, order["scheduler"], loras, size].append(at)
        pictures: dict[int, bytes] = {}
        for key, places in groups.items():
            made = self._call(key, [orders[at] for at in places])
            pictures.update(zip(places, made, strict=True))
        return [pictures[at] for at in range(len(orders))]

    def timed(self, order: Order) -> tuple[bytes, float]:
        """A PNG, and the milliseconds that the pipeline itself took."""
        started = time.perf_counter()
        (picture,) = self.draw([order])
        return picture, (time.perf_counter() - started) * 1000

    def _call(self, key: Any, orders: Sequence[Order]) -> list[bytes]:
        steps, scale, scheduler, loras, (width, height) = key
        pipe = self._pipe
        pipe.scheduler = self._schedulers[scheduler]
        if loras:
            pipe.enable_lora()
            pipe.set_adapters([name for name, _ in loras], [weight for _, weight in loras])
        elif pipe.get_active_adapters():
            pipe.disable_lora()
        drawn = pipe(
            [order["prompt"] for order in orders],
            num_inference_steps=steps,
            guidance_scale=scale,
            width=width,
            height=height,
            generator=[torch.Generator("cpu").manual_seed(order["seed"]) for order in orders],
        ).images
        return [_png(picture) for picture in drawn]


def _png(picture: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=4)
    return file.getvalue()

"""Which runner is on which GPU, with how much of it; on a CPU, with how many threads."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pynvml

from models.catalog import Modality
from settings import Settings

GPU_MEMORY_SHARED = 0.9
"""The part of a card that runners divide among themselves; the rest is for its driver and fragmentation."""


@dataclass(frozen=True, slots=True)
class Placement:
    device: str
    """As torch names it: `cpu`, `cuda:0`."""
    gpu_memory_fraction: float
    """The part of the card's memory that this runner may plan with; 0 on a CPU."""
    cpu_threads: int


class PlacementError(Exception):
    """What was asked for is not there; the message says so."""


def place(
    modality: Modality, settings: Settings, *, gpus: int | None = None, cores: int | None = None
) -> Placement:
    """Deals runners out over the cards in turn, text first; those on one card share its memory equally.

    `gpus` and `cores` are this machine's unless given. Raises `PlacementError`.
    """
    threads = settings.cpu_threads or max(1, (cores or len(os.sched_getaffinity(0))) // 2)
    if settings.device == "cpu":
        return Placement("cpu", 0.0, threads)
    gpus = count_gpus() if gpus is None else gpus
    if gpus == 0:
        if settings.device == "cuda":
            raise PlacementError("TRIPTYCH_DEVICE is cuda, but this machine shows no GPU.")
        return Placement("cpu", 0.0, threads)
    cards = {each: index % gpus for index, each in enumerate(Modality)}
    sharing = sum(card == cards[modality] for card in cards.values())
    return Placement(f"cuda:{cards[modality]}", GPU_MEMORY_SHARED / sharing, threads)


def count_gpus() -> int:
    """The cards this process may use: those in CUDA_VISIBLE_DEVICES, else all that the driver shows."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([card for card in visible.split(",") if card.strip() not in ("", "-1")])
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0

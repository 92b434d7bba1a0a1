"""What a machine has: its cards, cores and memory, as they are or as they are described."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

GIB = 2**30
_GPUS = re.compile(r"(\d{1,2})x(\d{1,4}(?:\.\d+)?)GiB", re.IGNORECASE)


class PlacementError(Exception):
    """What was asked for is not there; the message says so."""


@dataclass(frozen=True, slots=True)
class Card:
    index: int
    """Among the cards that this process may use."""
    name: str
    memory_gib: float


@dataclass(frozen=True, slots=True)
class Machine:
    cards: tuple[Card, ...]
    cores: int
    memory_gib: float
    """That this process may have, as of cores: the machine's, or its container's."""


def this_machine(container: Path = Path("/sys/fs/cgroup")) -> Machine:
    """The cards in CUDA_VISIBLE_DEVICES, else all that the driver shows; the cores and memory there are.

    `container`: where the kernel tells of this one's limits.
    """
    return Machine(_cards(), _cores(container), _memory_gib(container))


def described(gpus: str, machine: Machine) -> Machine:
    """The machine with other cards: `2x24GiB`, `1x24GiB+1x80GiB`, `0` for none. Raises `PlacementError`."""
    sizes: list[float] = []
    for part in [] if gpus.strip() in ("0", "none") else gpus.split("+"):
        match = _GPUS.fullmatch(part.strip())
        if match is None:
            raise PlacementError(f"{gpus!r} describes no cards: give 2x24GiB, 1x24GiB+1x80GiB, or 0.")
        sizes += [float(match[2])] * int(match[1])
    cards = tuple(Card(index, "card", size) for index, size in enumerate(sizes))
    return Machine(cards, machine.cores, machine.memory_gib)


def visible_cards() -> list[str] | None:
    """The entries of CUDA_VISIBLE_DEVICES (numbers or UUIDs), None where it is not set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    return [card.strip() for card in visible.split(",") if card.strip() not in ("", "-1")]


def cards_memory() -> list[tuple[str, int, int]]:
    """Of each card that this process may use: its UUID, the bytes that all processes use, and all it has."""
    try:
        handles = _handles()
        memory = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        names = [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    except pynvml.NVMLError:
        return []
    return [(name, int(has.used), int(has.total)) for name, has in zip(names, memory, strict=True)]


def _cards() -> tuple[Card, ...]:
    try:
        return tuple(_card(index, handle) for index, handle in enumerate(_handles()))
    except pynvml.NVMLError:
        return ()


def _handles() -> list[Any]:
    """Raises `NVMLError` where there is no driver."""
    visible = visible_cards()
    if visible == []:
        return []
    pynvml.nvmlInit()
    names = visible or [str(index) for index in range(int(pynvml.nvmlDeviceGetCount()))]
    return [_handle(name) for name in names]


def _handle(name: str) -> Any:
    by_index = name.isdigit()
    return (
        pynvml.nvmlDeviceGetHandleByIndex(int(name)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(name)
    )


def _card(index: int, handle: Any) -> Card:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Card(index, str(pynvml.nvmlDeviceGetName(handle)), int(memory.total) / GIB)


def _cores(container: Path) -> int:
    """More threads than a container's share of time (`docker run --cpus 2`) would wait for each other."""
    cores = len(os.sched_getaffinity(0))
    try:
        share, period = map(int, (container / "cpu.max").read_text(encoding="ascii").split())
    except (OSError, ValueError):  # no container, or one without a limit ("max 100000")
        return cores
    return max(1, min(cores, math.ceil(share / period)))


def _memory_gib(container: Path) -> float:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int((container / "memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        limit = machine
    return min(machine, limit) / GIB

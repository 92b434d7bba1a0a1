"""What a runner is told of its place: its device, its part of it, its threads and precisions."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from models.catalog import Entry, Modality, models_served
from runners.demand import Want, want
from runners.machine import GIB, Machine, PlacementError, this_machine, visible_cards
from runners.plan import Plan, make_plan, threads_of_each
from runners.seating import Seat
from runners.text_engine import engine_note, spans_of
from settings import Settings

__all__ = ["Placement", "PlacementError", "place", "plan_for", "seen_cards", "use_own_cards"]


log = logging.getLogger("triptych.runner")


@dataclass(frozen=True, slots=True)
class Placement:
    device: str
    """As torch names it: `cpu`, `cuda:0`. A runner sees only its own cards, so its first is 0."""
    gpu_memory_fraction: float
    """The part of each card's memory that this runner may plan with; 0 on a CPU."""
    cpu_threads: int
    cards: tuple[int, ...] = ()
    """Its cards, among those this service may use; more than one where its model spans them."""
    memory_gib: float = 0.0
    """What it may take: of each of its cards, or of the machine's memory on a CPU."""
    precisions: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of each of its models, where the plan chose another than the catalog's."""
    rows: Mapping[str, int] = field(default_factory=dict[str, int])
    """Requests in flight on each of its models, where the plan chose fewer than the catalog."""
    room: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    """Bytes of weights by device, of each of its models that is laid over several."""
    alone: bool = False
    """No other runner of this service is on this machine."""
    replica: int = 0
    """Which of the runner's processes on this machine it is."""

    def applied(self, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        """The catalog's entries with what the plan chose."""
        return {
            name: entry.model_copy(
                update={
                    "precision": self.precisions.get(name, entry.precision),
                    "max_rows": self.rows.get(name, entry.max_rows),
                }
            )
            for name, entry in entries.items()
        }


def place(
    modality: Modality, settings: Settings, *, replica: int = 0, machine: Machine | None = None
) -> Placement:
    """A runner's own part of the plan that all runners make alike. Raises `PlacementError`.

    `machine` is this one unless given.
    """
    machine = machine or this_machine()
    plan = plan_for(settings, machine)
    seat = plan.seat(modality, replica)
    if seat is not None:
        return _told(seat, alone=len(plan.seats) == 1)
    if plan.problem and (settings.device == "cpu" or (settings.device == "auto" and not machine.cards)):
        log.warning("%s The runner tries all the same.", plan.problem)  # memory can be swapped, cards cannot
        threads = threads_of_each(machine, _wants(settings), settings.cpu_threads)
        return Placement("cpu", 0.0, threads, replica=replica)
    raise PlacementError(plan.problem or f"TRIPTYCH_RUNNERS has no {modality} runner.")


def plan_for(
    settings: Settings,
    machine: Machine,
    *,
    replicas: Mapping[Modality, int] | None = None,
    vllm: bool | None = None,
) -> Plan:
    """Of the profile's runners that this machine has: those that are not reached by an address.

    `replicas` is what the settings say unless given.
    `vllm`: whether it is installed; None for what is so here.
    """
    wants = _wants(settings, replicas)
    texts = models_served(settings.profile, Modality.TEXT)
    spans = spans_of(texts, settings, installed=vllm)
    made = make_plan(machine, wants, device=settings.device, cpu_threads=settings.cpu_threads, spans=spans)
    seat = made.seat(Modality.TEXT)
    if seat is None or not seat.cards:
        return made
    why = engine_note(seated_entries(seat, texts), settings, installed=vllm)
    return replace(made, notes=(*made.notes, why)) if why else made


def _wants(settings: Settings, replicas: Mapping[Modality, int] | None = None) -> list[Want]:
    return [
        want(
            modality,
            entries,
            (replicas or {}).get(modality) or settings.processes(modality),
            budget_gib=settings.memory_gib,
        )
        for modality in Modality
        if modality in settings.runners_here() and (entries := models_served(settings.profile, modality))
    ]


def seated_entries(seat: Seat, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The catalog's entries with what the plan chose for their runner."""
    return _told(seat, alone=False).applied(entries)


def seen_cards(placement: Placement) -> str:
    """CUDA_VISIBLE_DEVICES of a runner's process: its own cards, by the names they have for this service."""
    names = visible_cards()
    return ",".join(str(card) if names is None else names[card] for card in placement.cards)


def use_own_cards(placement: Placement) -> None:
    """Before anything in this process speaks to a card: it sees its own ones only."""
    if placement.cards:
        os.environ["CUDA_VISIBLE_DEVICES"] = seen_cards(placement)


def _told(seat: Seat, *, alone: bool) -> Placement:
    return Placement(
        device="cuda:0" if seat.cards else "cpu",
        gpu_memory_fraction=seat.fraction,
        cpu_threads=seat.cpu_threads,
        cards=seat.cards,
        memory_gib=seat.has_gib,
        precisions={load.name: load.chosen(seat.device) for load in seat.want.loads if load.step > 0},
        rows={load.name: load.rows for load in seat.want.loads},
        room={
            name: {device: int(gib * GIB) for device, gib in devices.items()}
            for name, devices in seat.room().items()
        },
        alone=alone,
        replica=seat.replica,
    )

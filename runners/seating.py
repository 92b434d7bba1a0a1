"""Puts runners, as they are wanted, onto cards or into the machine's memory, or says that they do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from models.catalog import Modality
from runners.demand import Parts, Want
from runners.machine import GIB, Card, Machine

CARD_SHARED = 0.9
"""The part of a card that runners divide among themselves; the rest is for its driver and fragmentation."""
RAM_SHARED = 0.8
"""The part of a machine's memory that runners divide; the rest is the gateway's, and the files' cache."""
SPANS = (2, 4, 8)
"""How many cards one model may span: numbers that divide its heads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Where a runner (a replica of it) is, and with how much."""

    modality: Modality
    replica: int
    want: Want
    """With the precisions and numbers of rows that were chosen."""
    cards: tuple[int, ...]
    """None on the CPU."""
    fraction: float
    """Of each of its cards; 0 on the CPU."""
    cpu_threads: int
    needs: Parts
    """On each of its cards."""
    has_gib: float
    """On each of its cards; on the CPU, of the machine's memory."""

    @property
    def device(self) -> str:
        return "cuda" if self.cards else "cpu"

    @property
    def cache_tokens(self) -> int:
        """Tokens of text that its cache holds, where it takes what is left of a card; 0 elsewhere."""
        first = next((load for load in self.want.loads if load.writes), None)
        if self.modality is not Modality.TEXT or not self.cards or first is None:
            return 0
        left_gib = self.has_gib - self.needs.total + self.needs.cache
        return int(left_gib * len(self.cards) * GIB / first.token_bytes("cuda"))

    def room(self) -> dict[str, dict[str, float]]:
        """GiB of weights by device, as the runner's process numbers its cards, for each language model that
        spans them or that may keep some of its weights elsewhere."""
        laid = [load for load in self.want.loads if load.is_laid(spanning=len(self.cards) > 1)]
        whole = {load.name: load.whole_gib(self.device) for load in self.want.loads}
        first = sum(load.first_cache_gib(self.device) for load in laid) / max(1, len(self.cards))
        others = sum(gib for name, gib in whole.items() if name not in {load.name for load in laid})
        cache = max(self.needs.cache, first)
        free = max(0.0, self.has_gib - self.needs.process - self.needs.work - cache - others)
        shared = sum(whole[load.name] for load in laid)
        made: dict[str, dict[str, float]] = {}
        for load in laid:
            devices = [f"cuda:{number}" for number in range(len(self.cards))] or ["cpu"]
            made[load.name] = dict.fromkeys(devices, free * whole[load.name] / shared)
            if load.offload and self.cards:
                made[load.name]["cpu"] = whole[load.name]
        return made


@dataclass(slots=True)
class _Room:
    """A card while it is being filled."""

    card: Card
    held: list[tuple[Want, int, Parts]] = field(default_factory=list[tuple[Want, int, Parts]])
    """Who is on it, which replica, and what it needs here."""

    @property
    def free_gib(self) -> float:
        return self.card.memory_gib * CARD_SHARED - sum(needs.total for _, _, needs in self.held)

    def takes(self, want: Want, needs: Parts) -> bool:
        """One card never holds two replicas of a runner: they would halve each other."""
        alone = all(other.modality is not want.modality for other, _, _ in self.held)
        return alone and needs.total <= self.free_gib


class Wanted(Protocol):
    """What `fit` places: `runners.plan.State`."""

    @property
    def wants(self) -> tuple[Want, ...]: ...
    @property
    def spanning(self) -> bool: ...
    def device(self, want: Want) -> str: ...


def fit(state: Wanted, machine: Machine, threads: int) -> list[Seat] | None:
    """Everybody's seat, or None when somebody has none."""
    on_cpu = [want for want in state.wants if state.device(want) == "cpu"]
    on_cards = [want for want in state.wants if state.device(want) != "cpu"]
    held_gib = sum(
        load.whole_gib("cuda") * (1 - load.part_on("cuda")) * want.replicas
        for want in on_cards
        for load in want.loads
    )
    below = _in_memory(on_cpu, machine, threads, held_gib)
    if below is None:
        return None
    for spread in (True, False):
        rooms = [_Room(card) for card in machine.cards]
        if _fill(rooms, on_cards, spanning=state.spanning, spread=spread):
            seats = [*below, *_seats(rooms, threads)]
            order = list(Modality)
            return sorted(seats, key=lambda seat: (order.index(seat.modality), seat.replica))
    return None


def _in_memory(wants: Sequence[Want], machine: Machine, threads: int, held_gib: float) -> list[Seat] | None:
    """On the CPU: each runner what it needs and, of what is left, a part in proportion.

    `held_gib` is for weights that runners on cards keep here."""
    seated = [(want, replica) for want in wants for replica in range(want.replicas)]
    needs = [want.parts("cpu") for want, _ in seated]
    whole, shared = sum(each.total for each in needs), machine.memory_gib * RAM_SHARED - held_gib
    if whole > shared:
        return None
    return [
        Seat(
            modality=want.modality,
            replica=replica,
            want=want,
            cards=(),
            fraction=0.0,
            cpu_threads=threads,
            needs=each,
            has_gib=shared * each.total / whole,
        )
        for (want, replica), each in zip(seated, needs, strict=True)
    ]


def _fill(rooms: list[_Room], wants: Sequence[Want], *, spanning: bool, spread: bool) -> bool:
    """Largest first; `spread` takes the card with the fewest on it, else the first that has room."""
    singles = list(wants)
    for want in wants:
        if spanning and want.modality is Modality.TEXT:
            if not all(_span(rooms, want, replica) for replica in range(want.replicas)):
                return False
            singles.remove(want)
    for want in sorted(singles, key=lambda each: each.parts("cuda").total, reverse=True):
        needs = want.parts("cuda")
        for replica in range(want.replicas):
            able = [room for room in rooms if room.takes(want, needs)]
            if not able:
                return False
            room = max(able, key=lambda each: (-len(each.held), each.free_gib)) if spread else able[0]
            room.held.append((want, replica, needs))
    return True


def _span(rooms: list[_Room], want: Want, replica: int) -> bool:
    """Text on as few equal cards as hold it; its process and what a forward keeps are on each of them."""
    whole = want.parts("cuda")
    for count in SPANS:
        needs = Parts(whole.weights / count, whole.cache / count, whole.work, whole.process)
        for size in sorted({room.card.memory_gib for room in rooms}, reverse=True):
            able = [room for room in rooms if room.card.memory_gib == size and room.takes(want, needs)]
            if len(able) >= count:
                for room in able[:count]:
                    room.held.append((want, replica, needs))
                return True
    return False


def _seats(rooms: Sequence[_Room], threads: int) -> list[Seat]:
    """What is left of a card goes to text's cache; without text, to all on it in proportion."""
    found: dict[tuple[Modality, int], Seat] = {}
    for room in rooms:
        whole = sum(needs.total for _, _, needs in room.held)
        text_here = any(want.modality is Modality.TEXT for want, _, _ in room.held)
        for want, replica, needs in room.held:
            if text_here:
                extra = room.free_gib if want.modality is Modality.TEXT else 0.0
            else:
                extra = room.free_gib * needs.total / whole
            has_gib = needs.total + extra
            before = found.get((want.modality, replica))
            found[want.modality, replica] = Seat(
                modality=want.modality,
                replica=replica,
                want=want,
                cards=(*(before.cards if before else ()), room.card.index),
                fraction=min(has_gib / room.card.memory_gib, before.fraction if before else 1.0),
                cpu_threads=threads,
                needs=needs,
                has_gib=min(has_gib, before.has_gib if before else has_gib),
            )
    return list(found.values())

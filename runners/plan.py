"""Who goes where: runners onto cards, with what has to give way so that all of them fit.

What gives way, in this order: one model on one card (text may span cards), `auto` precision, the number of
requests in flight, and at last the card itself: the smallest runner goes to the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from models.catalog import Modality
from runners.demand import Load, Want
from runners.machine import Machine
from runners.seating import CARD_SHARED, RAM_SHARED, Seat, fit

Spans = Literal["", "by tensors", "by layers"]
"""How text's engine puts one model on several cards: not at all, vLLM's way, or accelerate's."""

CARD_SIZES = (8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 141, 180)
"""GiB of the cards there are, for telling which would do."""


@dataclass(frozen=True, slots=True)
class Plan:
    machine: Machine
    seats: tuple[Seat, ...] = ()
    notes: tuple[str, ...] = ()
    """What gave way, and what is free."""
    problem: str = ""
    """Why it does not fit, and the smallest change that would; empty when it does."""

    def seat(self, modality: Modality, replica: int = 0) -> Seat | None:
        found = (each for each in self.seats if (each.modality, each.replica) == (modality, replica))
        return next(found, None)


def make_plan(
    machine: Machine,
    wants: Sequence[Want],
    *,
    device: str = "auto",
    cpu_threads: int = 0,
    spans: Spans = "by tensors",
) -> Plan:
    """Places the wanted runners."""
    if wants and device == "cuda" and not machine.cards:
        return Plan(machine, problem="TRIPTYCH_DEVICE is cuda, but this machine shows no GPU.")
    threads = threads_of_each(machine, wants, cpu_threads)
    for state in _states(tuple(wants), machine, device, spans):
        if fit(state, machine, threads) is not None:
            seats = fit(_regained(state, wants, machine), machine, threads) or []
            return Plan(machine, tuple(seats), tuple(_told(wants, seats, machine, spans)))
    return Plan(machine, problem=_problem(wants, machine, device, spans))


def threads_of_each(machine: Machine, wants: Sequence[Want], asked: int = 0) -> int:
    """As asked; else all cores to one runner, half of them to each of several: they are seldom all busy.

    A runner's processes share its part, for they are busy together; so do the steps that it runs at once.
    """
    part = machine.cores if len(wants) == 1 else machine.cores // 2
    shared = max((want.replicas for want in wants), default=1)
    if len(wants) == 1:
        shared *= wants[0].steps_at_once
    return asked or max(1, part // shared)


@dataclass(frozen=True, slots=True)
class State:
    """What has given way so far."""

    wants: tuple[Want, ...]
    on_cpu: frozenset[Modality] = frozenset()
    spanning: bool = False

    def device(self, want: Want) -> str:
        return "cpu" if want.modality in self.on_cpu else "cuda"


def _states(wants: tuple[Want, ...], machine: Machine, device: str, spans: Spans) -> Iterator[State]:
    """Least first. Sending a runner to the CPU is the last resort, and begins again with all else plain."""
    everyone = frozenset(want.modality for want in wants)
    if device == "cpu" or not machine.cards:
        yield from _conceding(State(wants, everyone), spans="")
        return
    smallest_first = sorted(wants, key=lambda want: want.parts("cuda").total)
    for offloaded in range(len(wants) + 1 if device == "auto" else 1):
        on_cpu = frozenset(want.modality for want in smallest_first[:offloaded])
        yield from _conceding(State(wants, on_cpu), spans=spans if len(machine.cards) > 1 else "")


def _conceding(state: State, *, spans: Spans) -> Iterator[State]:
    yield state
    spanning = replace(state, spanning=True)
    if spans and any(state.device(want) != "cpu" for want in state.wants):
        yield spanning
        yield from _shrinking(state)
        if spans == "by layers":  # vLLM has no bitsandbytes, so there it is never both
            yield from _shrinking(spanning)
    else:
        yield from _shrinking(state)


def _shrinking(state: State) -> Iterator[State]:
    for change in (Want.stepped_down, Want.with_fewer_rows):
        while (less := _saving_most(state, change)) is not None:
            state = less
            yield state


def _saving_most(state: State, change: Callable[[Want], Want | None]) -> State | None:
    """The change made to the runner that it saves most."""

    def saving(less: Want, want: Want) -> float:
        return want.parts(state.device(want)).total - less.parts(state.device(want)).total

    able = [(less, want) for want in state.wants if (less := change(want)) is not None]
    able = [pair for pair in able if saving(*pair) > 0]
    if not able:
        return None
    less, most = max(able, key=lambda pair: saving(*pair))
    return replace(state, wants=tuple(less if want is most else want for want in state.wants))


def _regained(state: State, asked: Sequence[Want], machine: Machine) -> State:
    """Without what gave way in vain: what was conceded for one card may have been needed on another.

    Precisions come back first, then numbers of requests.
    """
    for back in (_precision_back, _rows_back):
        for place, plain in enumerate(asked):
            for number, wanted in enumerate(plain.loads):
                for load in back(state.wants[place].loads[number], wanted):
                    loads = [*state.wants[place].loads]
                    loads[number] = load
                    better = replace(state.wants[place], loads=tuple(loads))
                    wants = (*state.wants[:place], better, *state.wants[place + 1 :])
                    if fit(tried := replace(state, wants=wants), machine, 1) is not None:
                        state = tried
                        break
    return state


def _precision_back(load: Load, asked: Load) -> Iterator[Load]:
    yield from (replace(load, step=step) for step in range(asked.step, load.step))


def _rows_back(load: Load, asked: Load) -> Iterator[Load]:
    rows = asked.rows
    while rows > load.rows:
        yield replace(load, rows=rows)
        rows //= 2


def _problem(wants: Sequence[Want], machine: Machine, device: str, spans: Spans) -> str:
    """Why nothing did, and the smallest change that would."""

    def fits(other: Machine, on: str = device) -> bool:
        return any(fit(state, other, 1) is not None for state in _states(tuple(wants), other, on, spans))

    said = "This does not fit, not even with all that may give way."
    others = ""
    if device == "cuda" and fits(machine, "auto"):
        others = ", or with TRIPTYCH_DEVICE=auto, which sends the smallest runner to the CPU"
    if device == "cpu" or not machine.cards:
        wanted = sum(want.parts("cpu").total * want.replicas for want in wants) / RAM_SHARED
        return f"{said} It needs {wanted:.1f} GiB of memory as it stands; here are {machine.memory_gib:.1f}."
    for size in CARD_SIZES:
        larger = tuple(replace(card, memory_gib=max(card.memory_gib, size)) for card in machine.cards)
        if fits(replace(machine, cards=larger), "cuda"):
            count = len(machine.cards)
            return f"{said} It would with {count} card{'s' * (count > 1)} of {size} GiB{others}."
    return f"{said} It would with fewer models in the profile, or on more machines{others}."


def _told(wants: Sequence[Want], seats: Sequence[Seat], machine: Machine, spans: Spans) -> Iterator[str]:
    """What gave way, and what is left over."""
    for want in wants:
        seat = next(each for each in seats if each.modality is want.modality)
        for asked, got in zip(want.loads, seat.want.loads, strict=True):
            if asked.memory is None:
                yield f"What {asked.name} takes is not known: pull it, or give its `memory` in the catalog."
            if got.step > asked.step:
                yield f"{asked.name} is quantized to {got.chosen(seat.device)}, or it would not fit."
            if got.rows < asked.rows:
                yield f"{asked.name} takes {got.rows} requests at once instead of {asked.rows}."
        if machine.cards and not seat.cards:
            yield f"{want.modality} runs on the CPU: the cards have no room for it."
        if len(seat.cards) > 1:
            how = "vLLM, tensor parallel" if spans == "by tensors" else "accelerate, whole layers on each"
            yield f"{want.modality} spans {len(seat.cards)} cards ({how})."
        yield from _kept_elsewhere(seat)
    yield from _free(seats, machine)


def _free(seats: Sequence[Seat], machine: Machine) -> Iterator[str]:
    """Cards with nothing on them, and the runner that could use most of them."""
    used = {card for seat in seats for card in seat.cards}
    free = [card for card in machine.cards if card.index not in used]
    if not free:
        return
    said = f"Nothing is on card {', '.join(str(card.index) for card in free)}"
    on_one = [seat for seat in seats if len(seat.cards) == 1]
    more = {
        seat.modality: sum(seat.needs.total <= card.memory_gib * CARD_SHARED for card in free)
        for seat in sorted(on_one, key=lambda seat: seat.needs.total, reverse=True)
    }
    best = max(more, key=lambda modality: more[modality], default=None)
    if best is None or not more[best]:
        yield f"{said}: no runner that is on one card fits there."
        return
    count = sum(seat.modality is best for seat in seats) + more[best]
    yield f"{said}: TRIPTYCH_REPLICAS={best}={count} would use {'it' if more[best] == 1 else 'them'}."


def _kept_elsewhere(seat: Seat) -> Iterator[str]:
    room = seat.room()
    for load in seat.want.loads:
        if load.offload and seat.cards and not load.writes:
            yield f"{load.name} has its weights in memory, each layer is brought: slow (`offload`)."
        if load.offload and load.name in room:
            over = load.whole_gib(seat.device) - sum(
                gib for device, gib in room[load.name].items() if device.startswith(seat.device)
            )
            where = "memory" if seat.cards else "its files"
            if over > 0:
                yield f"{load.name} has {over:.1f} GiB of its weights in {where}, which is slow (`offload`)."

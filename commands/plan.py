"""`triptych plan`: which runner goes where, and whether it fits, before anything is started."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import typer

from commands.terminal import AsJson, CommandError, Exit, show, table
from models.catalog import Modality
from runners.machine import Machine, PlacementError, described, this_machine
from runners.placement import plan_for
from runners.plan import Plan
from runners.seating import Seat
from settings import settings

Gpus = Annotated[
    str | None,
    typer.Option("--gpus", help="Other cards than this machine's: 2x24GiB, 1x24GiB+1x80GiB; 0 for none."),
]
Profile = Annotated[str | None, typer.Option("--profile", help="Another profile than the settings'.")]
Replicas = Annotated[
    list[str] | None,
    typer.Option("--replicas", help="Other counts of a runner's processes than the settings': image=2."),
]


def plan(
    gpus: Gpus = None, profile: Profile = None, replicas: Replicas = None, as_json: AsJson = False
) -> None:
    """Show which runner goes to which card, with how much of it, and what had to give way.

    Without --gpus it is this machine's cards, as its driver shows them. The runners follow the same plan when
    they start. Exit code 1 when it does not fit.
    """
    options = settings()
    if profile is not None:
        options = options.model_copy(update={"profile": profile})
    machine = this_machine() if gpus is None else described(gpus, this_machine())
    made = plan_for(options, machine, replicas=_counts(replicas or []), vllm=gpus is not None or None)
    show(as_data(made), as_json, _machine_line(machine), *_text(made))
    if made.problem:
        raise CommandError(made.problem, Exit.WRONG)


def as_data(made: Plan) -> dict[str, Any]:
    """The plan as JSON has it; sizes in GiB."""
    machine = made.machine
    return {
        "machine": {
            "cards": [{"name": card.name, "gib": round(card.memory_gib, 2)} for card in machine.cards],
            "cores": machine.cores,
            "gib": round(machine.memory_gib, 2),
        },
        "runners": [_seat(seat) for seat in made.seats],
        "notes": list(made.notes),
        "problem": made.problem or None,
    }


def runner_table(made: Plan) -> Any:
    columns = (
        *("runner", "where", "models", "weights ", "cache ", "work ", "process "),
        *("needs ", "has ", "of card ", "threads "),
    )
    return table(columns, [_row(seat) for seat in made.seats], title="GiB, on each card:")


def _row(seat: Seat) -> tuple[object, ...]:
    needs = seat.needs
    models = ", ".join(f"{load.name} {load.chosen(seat.device)}" for load in seat.want.loads)
    return (
        f"{seat.modality}{f' {seat.replica + 1}' if seat.want.replicas > 1 else ''}",
        f"card {', '.join(map(str, seat.cards))}" if seat.cards else "CPU",
        models,
        *(f"{each:.2f}" for each in (needs.weights, needs.cache, needs.work, needs.process)),
        f"{needs.total:.2f}",
        f"{seat.has_gib:.2f}",
        f"{seat.fraction:.0%}" if seat.cards else "-",
        "-" if seat.cards else seat.cpu_threads,
    )


def _seat(seat: Seat) -> dict[str, Any]:
    needs = seat.needs
    return {
        "runner": seat.modality.value,
        "replica": seat.replica,
        "device": seat.device,
        "cards": list(seat.cards),
        "fraction": round(seat.fraction, 4),
        "cpu_threads": seat.cpu_threads,
        "models": {load.name: load.chosen(seat.device) for load in seat.want.loads},
        "rows": {load.name: load.rows for load in seat.want.loads},
        "needs_gib": {
            "weights": round(needs.weights, 3),
            "cache": round(needs.cache, 3),
            "work": round(needs.work, 3),
            "process": round(needs.process, 3),
            "total": round(needs.total, 3),
        },
        "has_gib": round(seat.has_gib, 3),
        "cache_tokens": seat.cache_tokens or None,
    }


def _text(made: Plan) -> list[Any]:
    if not made.seats:
        return []
    text = next((seat for seat in made.seats if seat.cache_tokens), None)
    tokens = (
        [f"Text's cache holds {text.cache_tokens:,} tokens of all its requests together."] if text else []
    )
    return ["", runner_table(made), "", *tokens, *made.notes, *([] if made.notes else ["Everything fits."])]


def _machine_line(machine: Machine) -> str:
    kinds = Counter(f"{card.name} of {card.memory_gib:.0f} GiB" for card in machine.cards)
    cards = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    return f"{cards or 'no GPU'}; {machine.cores} cores, {machine.memory_gib:.0f} GiB of memory."


def _counts(given: list[str]) -> dict[Modality, int]:
    counts: dict[Modality, int] = {}
    for each in given:
        name, _, number = each.partition("=")
        if name not in list(Modality) or not number.isdigit() or not 1 <= int(number) <= 64:
            raise PlacementError(f"--replicas {each} is not a runner and a number from 1 to 64: image=2.")
        counts[Modality(name)] = int(number)
    return counts

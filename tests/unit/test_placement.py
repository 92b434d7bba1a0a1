"""Who goes where, on simulated machines from none to eight cards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from models.catalog import Memory, Modality, models_served
from runners.demand import Load, Want, want
from runners.machine import Card, Machine, PlacementError, described, this_machine, visible_cards
from runners.placement import Placement, place, plan_for, seen_cards
from runners.plan import Plan, make_plan
from settings import Settings

TEXT, IMAGE, SPEECH = Modality
SHARED = 0.9


def machine(*cards_gib: float, cores: int = 8, memory_gib: float = 64) -> Machine:
    return Machine(tuple(Card(i, "card", size) for i, size in enumerate(cards_gib)), cores, memory_gib)


def runner(modality: Modality, billions: float, *, precision: str = "auto", replicas: int = 1) -> Want:
    """One model; text is quantizable and keeps a cache, a picture takes an eighth of a GiB a row."""
    memory = Memory(
        parameters=int(billions * 1e9),
        quantizable=int(billions * 0.9e9) if modality is TEXT else 0,
        cache_values_per_token=10_000 if modality is TEXT else 0,
        context=2048 if modality is TEXT else 1,
        work_values=2**26 if modality is IMAGE else 0,
    )
    return Want(modality, (Load(f"the {modality} model", precision, 8, memory),), replicas)


STANDARD = [runner(TEXT, 1.1), runner(IMAGE, 1.07), runner(SPEECH, 0.4)]


def seats(plan: Plan) -> dict[str, tuple[int, ...]]:
    return {f"{seat.modality}{seat.replica or ''}": seat.cards for seat in plan.seats}


def within_the_cards(plan: Plan) -> bool:
    used = {card.index: 0.0 for card in plan.machine.cards}
    for seat in plan.seats:
        assert seat.has_gib >= seat.needs.total * 0.999
        for card in seat.cards:
            used[card] += seat.has_gib
    return all(used[card.index] <= card.memory_gib * SHARED * 1.001 for card in plan.machine.cards)


@pytest.mark.parametrize("count", range(9))
def test_everybody_has_a_seat_and_no_card_is_overdrawn(count: int) -> None:
    plan = make_plan(machine(*[24] * count), STANDARD)
    assert not plan.problem
    assert [seat.modality for seat in plan.seats] == [TEXT, IMAGE, SPEECH]
    assert within_the_cards(plan)
    assert len(set(seats(plan).values())) == max(1, min(count, 3))
    assert any("Nothing is on card" in note for note in plan.notes) == (count > 3)


def test_without_a_card_threads_and_memory_are_dealt_out() -> None:
    plan = make_plan(machine(cores=8, memory_gib=64), STANDARD)
    assert {seat.cpu_threads for seat in plan.seats} == {4}
    assert sum(seat.has_gib for seat in plan.seats) == pytest.approx(64 * 0.8)
    assert make_plan(machine(cores=8, memory_gib=64), STANDARD[:1]).seats[0].cpu_threads == 8
    assert make_plan(machine(cores=1), STANDARD).seats[0].cpu_threads == 1
    assert make_plan(machine(), STANDARD, cpu_threads=3).seats[0].cpu_threads == 3


def test_a_runner_that_steps_twice_at_once_has_half_of_the_threads_for_each() -> None:
    alone = [want(SPEECH, models_served("standard", SPEECH))]
    assert make_plan(machine(cores=8, memory_gib=64), alone).seats[0].cpu_threads == 4
    assert make_plan(machine(cores=1), alone).seats[0].cpu_threads == 1
    assert {seat.cpu_threads for seat in make_plan(machine(cores=8, memory_gib=64), STANDARD).seats} == {4}


def test_texts_cache_gets_what_is_left() -> None:
    plan = make_plan(machine(24), STANDARD)
    text, image, speech = plan.seats
    assert image.has_gib == pytest.approx(image.needs.total)
    assert speech.has_gib == pytest.approx(speech.needs.total)
    assert text.has_gib == pytest.approx(24 * SHARED - image.has_gib - speech.has_gib)
    left = text.has_gib - text.needs.weights - text.needs.process
    assert text.cache_tokens == pytest.approx(left * 2**30 / (10_000 * 2), rel=1e-3)
    assert plan.seats[0].fraction == pytest.approx(text.has_gib / 24)


def test_a_card_without_text_is_shared_in_proportion() -> None:
    plan = make_plan(machine(24), [runner(IMAGE, 2), runner(SPEECH, 1)])
    image, speech = plan.seats
    assert image.has_gib / speech.has_gib == pytest.approx(image.needs.total / speech.needs.total)
    assert image.has_gib + speech.has_gib == pytest.approx(24 * SHARED)


def test_auto_precision_steps_down_and_a_fixed_one_does_not() -> None:
    def chosen(card_gib: float, precision: str = "auto") -> str:
        plan = make_plan(machine(card_gib), [runner(TEXT, 7, precision=precision)], device="cuda")
        return plan.seats[0].want.loads[0].chosen("cuda") if plan.seats else plan.problem

    assert [chosen(size) for size in (24, 12, 8)] == ["bfloat16", "int8", "int4"]
    assert chosen(24, "int8") == "int8"
    assert "It would with 1 card of 16 GiB" in chosen(12, "bfloat16")
    notes = make_plan(machine(12), [runner(TEXT, 7)]).notes
    assert notes == ("the text model is quantized to int8, or it would not fit.",)


def test_fewer_requests_at_once_before_the_cpu() -> None:
    plan = make_plan(machine(3.5), [runner(IMAGE, 1.07)])
    (seat,) = plan.seats
    assert seat.cards == (0,)
    assert seat.want.loads[0].rows < 8
    assert "requests at once instead of 8" in plan.notes[0]


def test_the_smallest_runner_goes_to_the_cpu_when_nothing_else_helps() -> None:
    plan = make_plan(machine(5, memory_gib=32), STANDARD)
    assert seats(plan)["speech"] == ()
    assert seats(plan)["text"] == (0,)
    assert any("speech runs on the CPU" in note for note in plan.notes)
    forced = make_plan(machine(5), STANDARD, device="cuda")
    assert "or with TRIPTYCH_DEVICE=auto" in forced.problem
    assert "It would with 1 card of 8 GiB" in forced.problem


def test_one_model_may_span_cards_and_is_not_quantized_for_it() -> None:
    large = [runner(TEXT, 14), runner(SPEECH, 0.4)]
    plan = make_plan(machine(24, 24), large)
    assert seats(plan)["text"] == (0, 1)
    assert plan.seats[0].needs.weights == pytest.approx(14e9 * 2 / 2 / 2**30)
    assert within_the_cards(plan)
    assert make_plan(machine(24, 24), large, spans="").seats[0].want.loads[0].chosen("cuda") == "int8"
    assert len(seats(make_plan(machine(*[24] * 8), [runner(TEXT, 70)]))["text"]) == 8


def test_our_engine_spans_cards_by_layers() -> None:
    large = [runner(TEXT, 14), runner(SPEECH, 0.4)]
    plan = make_plan(machine(24, 24), large, spans="by layers")
    assert seats(plan)["text"] == (0, 1)
    assert any("whole layers on each" in note for note in plan.notes)
    seat = plan.seat(TEXT)
    assert seat is not None
    room = seat.room()["the text model"]
    assert set(room) == {"cuda:0", "cuda:1"}
    assert sum(room.values()) > 14e9 * 2 / 2**30
    assert all(gib < 24 * SHARED for gib in room.values())
    assert plan.seats[1].room() == {}
    larger = make_plan(machine(24, 24), [runner(TEXT, 60)], spans="by layers").seats[0]
    assert (larger.cards, larger.want.loads[0].chosen("cuda")) == ((0, 1), "int4")
    assert not make_plan(machine(24, 24), [runner(TEXT, 60)], device="cuda").seats


def offloaded(billions: float) -> Want:
    plain = runner(TEXT, billions)
    return replace(plain, loads=(replace(plain.loads[0], offload=True),))


def test_what_a_card_has_no_room_for_may_be_in_memory() -> None:
    plan = make_plan(machine(16), [offloaded(14)])
    (seat,) = plan.seats
    room = seat.room()["the text model"]
    assert room["cuda:0"] < room["cpu"] == pytest.approx(14e9 * 2 / 2**30)
    assert room["cuda:0"] + seat.needs.cache + seat.needs.process <= 16 * SHARED
    assert seat.want.loads[0].chosen("cuda") == "bfloat16"
    assert any("of its weights in memory" in note for note in plan.notes)
    assert not make_plan(machine(40), [offloaded(14)]).notes
    assert not make_plan(machine(16, memory_gib=24), [offloaded(14)], device="cuda").seats
    below = make_plan(machine(memory_gib=32), [offloaded(14)])
    assert 0 < below.seats[0].room()["the text model"]["cpu"] < 32 * 0.8
    assert any("in its files" in note for note in below.notes)


def test_replicas_are_on_cards_of_their_own() -> None:
    plan = make_plan(machine(*[24] * 4), [*STANDARD[:1], runner(IMAGE, 1.07, replicas=3)])
    assert len({cards for name, cards in seats(plan).items() if name.startswith("image")}) == 3
    assert "does not fit" in make_plan(machine(24), [runner(IMAGE, 1, replicas=2)], device="cuda").problem


def test_replicas_may_span_cards_or_share_a_cpu() -> None:
    large = make_plan(machine(*[24] * 4), [runner(TEXT, 14, replicas=2)])
    assert sorted(seats(large).values()) == [(0, 1), (2, 3)]
    assert within_the_cards(large)
    small = make_plan(machine(memory_gib=64, cores=16), [*STANDARD[:1], runner(IMAGE, 1.07, replicas=4)])
    images = [seat for seat in small.seats if seat.modality is IMAGE]
    assert [seat.replica for seat in images] == [0, 1, 2, 3]
    assert {seat.cpu_threads for seat in small.seats} == {2}
    few = make_plan(machine(memory_gib=8), [runner(IMAGE, 1.07, precision="float32", replicas=4)])
    assert not few.seats


def test_each_replica_finds_its_own_part() -> None:
    wanted = Settings.model_validate({"profile": "standard", "replicas": "image=2"})
    three = machine(24, 24, 24)
    cards = [place(IMAGE, wanted, replica=number, machine=three).cards for number in range(2)]
    assert len(set(cards)) == 2
    assert place(IMAGE, wanted, replica=1, machine=three).replica == 1


def test_unequal_cards_are_filled_when_spreading_fails() -> None:
    plan = make_plan(machine(8, 24), [runner(TEXT, 7, precision="bfloat16"), runner(IMAGE, 1.07)])
    assert seats(plan) == {"text": (1,), "image": (0,)}


def test_a_model_of_which_little_would_shrink_stays_as_it_is() -> None:
    few = replace(runner(IMAGE, 1).loads[0], memory=Memory(parameters=10**9, quantizable=3 * 10**8))
    assert not few.can_step_down()
    asked = replace(few, precision="int8").parts("cuda")
    assert asked.weights == pytest.approx((7e8 * 2 + 3e8) / 2**30), "it is shrunk where that is asked for"


def test_what_gave_way_in_vain_comes_back() -> None:
    """Where one runner has no room on its card, shrinking those on others helps nobody."""
    plan = make_plan(machine(7, 4, 4), [runner(TEXT, 1.1), runner(IMAGE, 2.2), runner(SPEECH, 0.4)])
    chosen = {seat.modality: seat.want.loads[0] for seat in plan.seats}
    assert chosen[TEXT].chosen("cuda") == "bfloat16"
    assert plan.notes == ()
    plan = make_plan(machine(5, 5), [runner(TEXT, 1.1), runner(IMAGE, 1.9)])
    chosen = {seat.modality: seat.want.loads[0] for seat in plan.seats}
    assert (chosen[TEXT].step, chosen[TEXT].rows) == (0, 8)
    assert chosen[IMAGE].rows < 8
    assert within_the_cards(plan)


def test_cards_without_a_runner_are_told_with_who_could_use_them() -> None:
    def told(*cards_gib: float, wants: list[Want] = STANDARD) -> str:
        return make_plan(machine(*cards_gib), wants).notes[-1]

    assert told(*[24] * 8) == "Nothing is on card 3, 4, 5, 6, 7: TRIPTYCH_REPLICAS=image=6 would use them."
    assert "image=3 would use it" in told(*[24] * 5, wants=[*STANDARD[::2], runner(IMAGE, 1, replicas=2)])
    assert "speech=2 would use it" in told(24, 24, wants=STANDARD[2:])
    assert told(24, 24, 24, 0.5) == "Nothing is on card 3: no runner that is on one card fits there."


def test_a_gpu_that_is_asked_for_must_be_there() -> None:
    assert make_plan(machine(), STANDARD, device="cuda").problem.startswith("TRIPTYCH_DEVICE is cuda")
    assert not make_plan(machine(), [], device="cuda").problem


def test_models_that_take_turns_are_counted_by_their_budget() -> None:
    one = runner(IMAGE, 1.07).loads[0]
    several = Want(IMAGE, tuple(replace(one, name=str(number)) for number in range(4)))
    alone = Want(IMAGE, (one,)).parts("cuda")
    assert several.parts("cuda").weights == pytest.approx(4 * alone.weights)
    assert several.parts("cuda").work == alone.work, "one of them steps at a time"
    bounded = replace(several, budget_gib=2.5).parts("cuda")
    assert bounded.weights == 2.5
    heavy, light = runner(TEXT, 1).loads[0], runner(TEXT, 0.1).loads[0]
    both = Want(TEXT, (heavy, light), budget_gib=4.0).parts("cpu")
    assert both.weights == pytest.approx(4.0)
    assert light.parts("cpu").cache < both.cache < heavy.parts("cpu").cache + light.parts("cpu").cache


def test_the_plan_minds_the_budget_of_the_settings(tmp_path: Path) -> None:
    memory = {"parameters": 10**9, "work_values": 2**27}
    entry = {"family": "image.stable_diffusion", "source": "folder:/none", "licence": "MIT"}
    entry |= {"load": "use", "memory": memory, "max_rows": 4}
    catalog = tmp_path / "many.yaml"
    models = dict.fromkeys("abcd", entry)
    catalog.write_text(yaml.safe_dump({"models": models, "profiles": {"default": {"image": list(models)}}}))
    given = {"profile": str(catalog), "device": "cuda"}
    assert plan_for(Settings.model_validate(given), machine(6)).problem
    plan = plan_for(Settings.model_validate({**given, "memory_gib": 2}), machine(6))
    assert (plan.problem, plan.notes) == ("", ())


def test_a_picture_model_with_offload_is_planned_in_memory() -> None:
    plain = runner(IMAGE, 4)
    moved = replace(plain, loads=(replace(plain.loads[0], offload=True),))
    assert plain.parts("cpu") == moved.parts("cpu")
    plan = make_plan(machine(4), [moved], device="cuda")
    assert seats(plan) == {"image": (0,)}
    assert plan.seats[0].needs.weights < 0.3
    assert plan.seats[0].room() == {}, "its layers come by themselves"
    assert "has its weights in memory" in plan.notes[0]
    assert make_plan(machine(4), [plain], device="cuda").problem
    assert make_plan(machine(4, memory_gib=8), [moved], device="cuda").problem


def test_a_runner_of_embeddings_alone_has_no_cache_of_tokens() -> None:
    whole = Load("embed", "auto", 8, Memory(parameters=10**7))
    plan = make_plan(machine(24), [Want(TEXT, (whole,))])
    assert plan.seats[0].cache_tokens == 0
    both = make_plan(machine(24), [Want(TEXT, (whole, *runner(TEXT, 1).loads))])
    assert both.seats[0].cache_tokens > 100_000


def test_too_little_memory_is_said() -> None:
    plan = make_plan(machine(memory_gib=1), STANDARD)
    assert not plan.seats
    assert "GiB of memory" in plan.problem


def test_runners_obey_the_plan() -> None:
    """Each finds its own part; one served alone has the machine for itself; a device can be forced."""
    wanted = Settings.model_validate({"profile": "standard"})
    two = machine(24, 24)
    placed = {each: place(each, wanted, machine=two) for each in Modality}
    assert {placement.device for placement in placed.values()} == {"cuda:0"}
    assert {placement.cards for placement in placed.values()} == {(0,), (1,)}
    alone = place(IMAGE, Settings.model_validate({"profile": "standard", "runners": "image"}), machine=two)
    assert alone.gpu_memory_fraction == pytest.approx(SHARED)
    assert (alone.alone, placed[IMAGE].alone) == (True, False)
    assert place(TEXT, Settings.model_validate({"device": "cpu"}), machine=two).device == "cpu"
    with pytest.raises(PlacementError, match="TRIPTYCH_DEVICE"):
        place(TEXT, Settings.model_validate({"device": "cuda"}), machine=machine())
    with pytest.raises(PlacementError, match="TRIPTYCH_RUNNERS"):
        place(TEXT, Settings.model_validate({"runners": "image"}), machine=two)


def test_what_the_plan_chose_is_what_is_loaded() -> None:
    entries = models_served("standard", TEXT)
    name = next(iter(entries))
    chosen = Placement("cuda:0", 0.5, 1, precisions={name: "int8"}, rows={name: 4}).applied(entries)
    assert (chosen[name].precision, chosen[name].max_rows) == ("int8", 4)
    assert want(TEXT, chosen).loads[0].chosen("cuda") == "int8"


@pytest.mark.parametrize(
    ("visible", "names", "seen"),
    [(None, None, "1"), ("4,GPU-5f", ["4", "GPU-5f"], "GPU-5f"), ("", [], None), ("-1", [], None)],
)
def test_a_runner_sees_its_own_cards(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, names: list[str] | None, seen: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_cards() == names
    if seen is not None:
        assert seen_cards(Placement("cuda:0", 0.5, 1, cards=(1,))) == seen


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1), ("9900000 100000", None)],
)
def test_a_container_has_the_cores_and_memory_that_it_is_given(
    tmp_path: Path, limit: str, cores: int | None
) -> None:
    whole = this_machine(tmp_path / "nowhere")
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    found = this_machine(tmp_path)
    assert found.cores == (cores or whole.cores)
    assert (found.memory_gib, whole.memory_gib > 1) == (1.0, True)


def test_machines_can_be_described() -> None:
    cards = described("2x24GiB+1x80gib", machine()).cards
    assert [card.memory_gib for card in cards] == [24, 24, 80]
    assert [card.index for card in cards] == [0, 1, 2]
    assert described("0", machine(24)).cards == ()
    for wrong in ("24GiB", "2x", "many", "2x24"):
        with pytest.raises(PlacementError, match="describes no cards"):
            described(wrong, machine())

"""Who goes where, on simulated machines."""

from __future__ import annotations

import pytest

from models.catalog import Modality
from runners.placement import PlacementError, count_gpus, place
from settings import Settings


def on(gpus: int, device: str = "auto", cores: int = 8, **options: int) -> dict[str, tuple[str, float, int]]:
    chosen = Settings.model_validate({"device": device, **options})
    placed = {each.value: place(each, chosen, gpus=gpus, cores=cores) for each in Modality}
    return {name: (p.device, round(p.gpu_memory_fraction, 2), p.cpu_threads) for name, p in placed.items()}


def test_without_a_gpu_all_are_on_the_cpu_with_half_the_cores() -> None:
    assert set(on(0).values()) == {("cpu", 0.0, 4)}
    assert set(on(0, cores=1).values()) == {("cpu", 0.0, 1)}
    assert set(on(0, cpu_threads=3).values()) == {("cpu", 0.0, 3)}


def test_one_card_is_shared_equally() -> None:
    assert {(device, share) for device, share, _ in on(1).values()} == {("cuda:0", 0.3)}


def test_cards_are_dealt_out_in_turn() -> None:
    two = on(2)
    assert [two[name][:2] for name in ("text", "image", "speech")] == [
        ("cuda:0", 0.45),
        ("cuda:1", 0.9),
        ("cuda:0", 0.45),
    ]
    assert [placed[0] for placed in on(8).values()] == ["cuda:0", "cuda:1", "cuda:2"]


def test_the_device_can_be_forced() -> None:
    assert {device for device, *_ in on(2, device="cpu").values()} == {"cpu"}
    with pytest.raises(PlacementError, match="TRIPTYCH_DEVICE"):
        on(0, device="cuda")


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("1,3", 2)])
def test_the_visible_cards_count(monkeypatch: pytest.MonkeyPatch, visible: str, count: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus() == count

"""The catalog names what there is; loading finds it, or says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.catalog import CatalogError, Entry, Modality, models_served, read_catalog
from models.loading import EMBEDDED, LoadError, spec_of

ENTRY = Entry(family="speech.bark", source="embedded:tiny-bark", licence="Apache-2.0")


def test_the_shipped_catalog_serves_three_modalities_in_each_profile() -> None:
    for profile in ("embedded", "standard"):
        assert all(models_served(profile, modality) for modality in Modality)
    assert list(models_served("embedded", Modality.IMAGE)) == ["tiny-sd"]
    kinds = {name: entry.job_kind for name, entry in models_served("embedded", Modality.TEXT).items()}
    assert kinds == {"tiny-llama": "text", "tiny-embed": "embed", "tiny-classify": "classify"}
    assert models_served("standard", Modality.SPEECH)["bark-small"].source == "hub:suno/bark-small"


def test_every_family_of_the_catalog_is_a_file() -> None:
    for entry in read_catalog().models.values():
        modality, family = entry.family.split(".")
        assert EMBEDDED.parent.joinpath(modality, f"{family}.py").is_file()


def test_a_catalog_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "models:\n  m: {family: text.decoder, source: 'folder:/models/m', licence: MIT, max_rows: 4}\n"
        "profiles:\n  default: {text: [m]}\n",
        encoding="utf-8",
    )
    assert models_served(str(mine), Modality.TEXT)["m"].max_rows == 4
    assert models_served(str(mine), Modality.IMAGE) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: {}\nprofiles: {}\n", "needs a profile named default"),
        ("models: {}\nprofiles:\n  default: {text: [m]}\n", "profile default names m"),
        ("models:\n  m: {family: text.decoder, sauce: 'x', licence: MIT}\n", "models.m"),
        ("models:\n  m: {family: ../evil, source: 'hub:a/b', licence: MIT}\n", "models.m.family"),
        ("models: [", "is not YAML"),
    ],
)
def test_a_wrong_catalog_is_named(tmp_path: Path, text: str, said: str) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(text, encoding="utf-8")
    with pytest.raises(CatalogError) as error:
        models_served(str(mine), Modality.TEXT)
    assert said in str(error.value)


def test_a_missing_catalog_and_profile_are_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"nowhere\.yaml cannot be read"):
        models_served(str(tmp_path / "nowhere.yaml"), Modality.TEXT)
    with pytest.raises(CatalogError, match="There is no profile huge"):
        models_served("huge", Modality.TEXT)


def test_precision_follows_the_device_unless_given() -> None:
    assert spec_of("m", ENTRY, "cpu").dtype == "float32"
    assert spec_of("m", ENTRY, "cuda:0").dtype == "bfloat16"
    assert spec_of("m", ENTRY.model_copy(update={"precision": "float16"}), "cuda:0").dtype == "float16"
    quantized = spec_of("m", ENTRY.model_copy(update={"precision": "int8"}), "cpu")
    assert (quantized.dtype, quantized.quantization) == ("float32", "int8")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    missing = ENTRY.model_copy(update={"source": f"folder:{tmp_path}/none"})
    with pytest.raises(LoadError, match=r"There is no .*none"):
        spec_of("m", missing, "cpu")


def test_a_hub_out_of_reach_is_one_line_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub = ENTRY.model_copy(update={"source": "hub:owner/model"})
    with pytest.raises(LoadError) as error:
        spec_of("m", hub, "cpu")
    assert "\n" not in str(error.value)
    assert "TRIPTYCH_PROFILE=embedded" in str(error.value)


def test_every_language_model_of_the_hub_tells_what_it_takes() -> None:
    models = {
        name: entry for name, entry in read_catalog().models.items() if entry.family.startswith("text.")
    }
    hub = {name: entry for name, entry in models.items() if entry.source.startswith("hub:")}
    assert {"tinyllama-1.1b-chat", "phi-3-mini-4k", "mistral-7b", "mistral-7b-instruct"} <= set(hub)
    assert {"gemma-2b-it", "llama-3.1-8b-instruct", "code-llama-7b-instruct", "flan-t5-xl"} <= set(hub)
    for name, entry in hub.items():
        assert entry.memory is not None, name
        assert 0 < entry.memory.quantizable < entry.memory.parameters, name
        assert (entry.memory.cache_values_per_token > 0) == (entry.job_kind == "text"), name
        assert entry.memory.context >= 512, name
    assert hub["llama-3.1-8b-instruct"].gated
    assert not hub["tinyllama-1.1b-chat"].gated

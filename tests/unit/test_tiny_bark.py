"""The speech model that ships: plain transformers load it, and what it makes is speech-like sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from transformers import BarkModel, BarkProcessor
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkSemanticGenerationConfig,
)

from models.speech.spelling import load_vocabulary
from models.training.judge_speech import HIGH_PITCH_HZ, Heard, Listener, compare, pitch_hz
from models.training.speech_data import VOICES, Utterance
from models.training.speech_grammar import RULES
from models.training.speech_model import (
    CODEBOOK_SIZE,
    MAX_TEXT,
    PROMPT_FRAMES,
    PROMPT_SEMANTIC,
    SEMANTIC_VOCAB,
    build_tokenizer,
)
from models.training.speech_stages import IGNORED, CoarseLoss, TokenCorpus
from models.training.speech_text import WORDS

FOLDER = Path(__file__).parents[2] / "models" / "embedded" / "tiny-bark"


@pytest.fixture(scope="module")
def processor() -> BarkProcessor:
    return BarkProcessor.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> BarkModel:
    return BarkModel.from_pretrained(FOLDER, dtype=torch.float32, local_files_only=True).eval()


def say(model: BarkModel, processor: BarkProcessor, text: str, voice: str | None) -> NDArray[np.float32]:
    return model.generate(**processor(text, voice_preset=voice))[0].numpy()


def test_weights_are_small_and_half_precision() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 20e6
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        kinds = {weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118  # no mapping
    assert kinds <= {torch.float16, torch.bool}


def test_vocabulary_is_the_recipes() -> None:
    assert load_vocabulary(FOLDER) == frozenset(WORDS)


def test_words_are_tokens_and_others_fall_into_letters(processor: BarkProcessor) -> None:
    tokenizer = processor.tokenizer
    assert tokenizer.tokenize("Hello, red fox!") == ["hello", ",", "red", "fox", "!"]
    assert tokenizer.tokenize("zebra") == ["z", "##e", "##b", "##r", "##a"]
    assert len(tokenizer) == model_text_ids()


def model_text_ids() -> int:
    return len(WORDS) + 4 + 26 + 2  # punctuation, letter pieces, padding and unknown


@pytest.mark.parametrize("voice", VOICES)
def test_a_preset_loads(processor: BarkProcessor, voice: str) -> None:
    assert voice in processor.available_voice_presets
    history = processor("one", voice_preset=voice)["history_prompt"]
    assert history["semantic_prompt"].shape == (PROMPT_SEMANTIC,)
    assert history["coarse_prompt"].shape == (2, PROMPT_FRAMES)
    assert history["fine_prompt"].shape == (4, PROMPT_FRAMES)


@pytest.mark.parametrize("voice", [None, "otto"])
def test_digits_become_a_wave_of_plausible_length(
    model: BarkModel, processor: BarkProcessor, voice: str | None
) -> None:
    wave = say(model, processor, "three one four", voice)
    assert 0.8 <= len(wave) / 16_000 <= 2.4
    assert np.abs(wave).max() < 0.999
    assert np.sqrt(np.mean(wave**2)) > 0.01
    assert np.array_equal(wave, say(model, processor, "three one four", voice))


def test_padding_to_the_models_own_length_changes_nothing(model: BarkModel, processor: BarkProcessor) -> None:
    short = processor("red", voice_preset="ada", max_length=MAX_TEXT)
    assert torch.equal(model.generate(**short), model.generate(**processor("red", voice_preset="ada")))


def test_the_judge_hears_digits_in_the_right_pitch(model: BarkModel, processor: BarkProcessor) -> None:
    listener = Listener(RULES["digits"])
    heard = Heard()
    for voice, text in zip(
        VOICES, ("one two six", "five seven nine", "zero two nine", "six one five"), strict=True
    ):
        wave = say(model, processor, text, voice)
        heard += compare(text.split(), listener.hear(wave))
        pitch = pitch_hz(wave)
        assert pitch is not None
        assert (pitch > HIGH_PITCH_HZ) == VOICES[voice].high
    assert heard.recall >= 0.5


def test_the_coarse_stage_is_trained_on_the_windows_that_generation_feeds_it(
    model: BarkModel, processor: BarkProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let it generate, take what came out as an utterance, and draw its training windows."""
    history = processor("one", voice_preset="otto")["history_prompt"]
    semantic = np.arange(60) % 90
    fed: list[tuple[int, ...]] = []

    def note(module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        del module, args
        if kwargs["input_ids"].shape[1] > 1:  # the first forward of a window; the rest is one token at a time
            fed.append(tuple(kwargs["input_ids"][0].tolist()))

    settings = model.generation_config.to_dict()
    with_hook = model.coarse_acoustics.register_forward_pre_hook(note, with_kwargs=True)
    made = model.coarse_acoustics.generate(
        torch.from_numpy(semantic)[None],
        semantic_generation_config=BarkSemanticGenerationConfig(**settings["semantic_config"]),
        coarse_generation_config=BarkCoarseGenerationConfig(**settings["coarse_acoustics_config"]),
        codebook_size=CODEBOOK_SIZE,
        history_prompt=history,
    )
    with_hook.remove()
    flat = made[0].numpy()
    codes = np.stack([(flat[book::2] - SEMANTIC_VOCAB) % CODEBOOK_SIZE for book in range(2)])

    said = Utterance("one", "otto", 0, 60 * 640, [])
    corpus = TokenCorpus(
        utterances=[said, said],
        semantic=[semantic, history["semantic_prompt"].numpy()],
        codes=[codes, history["fine_prompt"].numpy()],
        tokenizer=build_tokenizer(),
    )
    monkeypatch.setattr(CoarseLoss, "max_corruption", 0.0)
    loss = CoarseLoss(model.coarse_acoustics, corpus, batch=1)
    drawn = [loss.example(0, np.random.default_rng(seed)) for seed in range(20)]
    windows = {tuple(inputs.tolist()) for inputs, _ in drawn}
    assert len(fed) == 4
    assert windows == {(*window, *flat[60 * i : 60 * i + 59].tolist()) for i, window in enumerate(fed)}
    for inputs, wanted in drawn:
        # Each position predicts the token that is read at the next.
        chosen = np.flatnonzero(wanted[:-1] != IGNORED)
        assert np.array_equal(wanted[chosen], inputs[chosen + 1])
        assert wanted[-1] in flat[59::60]

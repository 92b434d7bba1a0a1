"""Bark's rows against transformers' own `BarkModel`, and against themselves in other company."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BarkCoarseConfig,
    BarkCoarseModel,
    BarkConfig,
    BarkFineConfig,
    BarkModel,
    BarkProcessor,
    BarkSemanticConfig,
    EncodecConfig,
    GenerationConfig,
)
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)

from jobs import SpeechResult
from models.protocol import ModelSpec
from models.sources import EMBEDDED
from models.speech.bark import Bark, load
from models.speech.generation import read_rules
from models.speech.lanes import Lanes
from models.speech.text import Prompts
from models.speech.transformer import CausalTransformer
from models.speech.utterance import Stage, Utterance
from models.speech.voices import PARTS, Voices, check_voice
from tests.unit.tiny_speech import CODES, SEMANTIC, VOICES, WORDS, make_job, make_lanes, say, write_folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("bark"), voices=VOICES)


@pytest.fixture(scope="module")
def bark(folder: Path) -> Bark:
    return load(ModelSpec(name="tiny", folder=folder, max_rows=10))


@dataclass
class Reference:
    semantic: list[int]
    coarse: list[int]
    codes: torch.Tensor
    sound: torch.Tensor


def reference(model: Any, ids: Sequence[int], voice: dict[str, torch.Tensor] | None) -> Reference:
    """What `BarkModel.generate` does, stage by stage, greedily."""
    generation = model.generation_config
    semantic_config = BarkSemanticGenerationConfig(**generation.semantic_config)
    coarse_config = BarkCoarseGenerationConfig(**generation.coarse_acoustics_config)
    fine_config = BarkFineGenerationConfig(**generation.fine_acoustics_config)
    length = semantic_config.max_input_semantic_length
    padded = torch.tensor([list(ids) + [0] * (length - len(ids))])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids))])
    semantic = model.semantic.generate(
        padded, semantic_generation_config=semantic_config, history_prompt=voice, attention_mask=mask
    )
    kept = [token for token in semantic[0].tolist() if token != semantic_config.semantic_pad_token]
    configs: dict[str, Any] = {
        "semantic_generation_config": semantic_config,
        "coarse_generation_config": coarse_config,
        "codebook_size": generation.codebook_size,
        "history_prompt": voice,
    }
    coarse = model.coarse_acoustics.generate(semantic, **configs)
    fine = model.fine_acoustics.generate(coarse, fine_generation_config=fine_config, **configs)
    with torch.no_grad():
        sound = model.codec_decode(fine)[0]
    return Reference(kept, coarse[0].tolist(), fine[0], sound)


def load_preset(folder: Path, voice: str) -> dict[str, torch.Tensor]:
    return {part: torch.from_numpy(np.load(folder / f"{voice}_{part}.npy")) for part in PARTS}


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "masked pads": {"coarse": {"pad_token_id": SEMANTIC + 2 * CODES}},
    "early end": {"semantic": {"min_eos_p": 0.06}},
    "one window": {"coarse": {"sliding_window_len": 40, "max_coarse_history": 2}},
}


@pytest.mark.parametrize(
    ("case", "voice"),
    [
        *(("plain", voice) for voice in (None, *VOICES)),
        *(("masked pads", voice) for voice in (None, "odd")),
        *(("early end", voice) for voice in ("short", "odd")),
        ("one window", "long"),
    ],
)
def test_greedy_tokens_are_those_of_transformers_stage_by_stage(
    tmp_path: Path, case: str, voice: str | None
) -> None:
    folder = write_folder(tmp_path, voices={voice: VOICES[voice]} if voice else None, **CASES[case])
    bark = load(ModelSpec(name="tiny", folder=folder, max_rows=3))
    model = BarkModel.from_pretrained(folder).eval()
    preset = load_preset(folder, voice) if voice else None
    texts = ["one", "ten nine eight seven six five four three two one"]
    said = say(bark, [make_job(text, temperature=0.0, response_format="pcm") for text in texts])
    for text, row, result in zip(texts, said.rows, said.results, strict=True):
        ids = [2 + WORDS.index(word) for word in text.split()]
        wanted = reference(model, ids, preset)
        utterance = row.utterances[0]
        assert utterance.semantic == wanted.semantic
        assert utterance.coarse[-len(wanted.coarse) :] == wanted.coarse
        assert torch.equal(utterance.codec_codes(), wanted.codes)
        sound = torch.from_numpy(np.frombuffer(result.data, "<i2").astype(np.float32) / 32767)
        torch.testing.assert_close(
            sound, wanted.sound / max(1.0, float(wanted.sound.abs().max())), atol=1e-4, rtol=0
        )


def greedily(lanes: Lanes, utterance: Utterance, slot: int = 0, seen: list[Stage] | None = None) -> Utterance:
    while utterance.stage is not Stage.DONE:
        if seen is not None:
            seen.append(utterance.stage)
        for commit in lanes.run(utterance.stage, lanes.banks[0], [slot], [utterance]):
            commit()
    return utterance


def check_stages(utterance: Utterance, wanted: Reference) -> None:
    assert utterance.semantic == wanted.semantic
    assert utterance.coarse[-len(wanted.coarse) :] == wanted.coarse
    assert torch.equal(utterance.codec_codes(), wanted.codes)
    assert utterance.sound is not None
    torch.testing.assert_close(
        torch.from_numpy(utterance.sound),
        wanted.sound / max(1.0, float(wanted.sound.abs().max())),
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize(("voice", "text"), [("ada", "three one four"), ("otto", "the red star")])
def test_the_embedded_models_greedy_tokens_are_those_of_transformers(voice: str, text: str) -> None:
    folder = EMBEDDED / "tiny-bark"
    model: Any = BarkModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    processor: Any = BarkProcessor.from_pretrained(folder)
    inputs = processor(text, voice_preset=voice)
    ids = inputs["input_ids"][0][inputs["attention_mask"][0].bool()].tolist()
    rules = read_rules(model.config, model.generation_config)
    wanted = reference(model, ids, inputs["history_prompt"])
    (prompt,) = Prompts(processor.tokenizer, folder, rules.semantic).make(text)
    spoken = Utterance(rules, prompt.tokens, Voices(folder, rules).get(voice), 0.0, 1, 0)
    check_stages(greedily(Lanes.of(model, rules, max_rows=8), spoken, slot=3), wanted)


def test_bark_smalls_greedy_tokens_are_those_of_transformers() -> None:
    """Its published sizes at one layer a stage, random weights, a voice of full length."""
    size: dict[str, Any] = {"hidden_size": 768, "num_heads": 12, "num_layers": 1, "bias": False}
    torch.manual_seed(4)
    model: Any = BarkModel(
        BarkConfig(
            semantic_config=BarkSemanticConfig(input_vocab_size=129_600, output_vocab_size=10_048, **size),
            coarse_acoustics_config=BarkCoarseConfig(
                input_vocab_size=12_096, output_vocab_size=12_096, **size
            ),
            fine_acoustics_config=BarkFineConfig(input_vocab_size=1056, output_vocab_size=1056, **size),
            codec_config=EncodecConfig(target_bandwidths=[6.0]),
        )
    )
    model.eval().requires_grad_(False)
    generation = GenerationConfig(
        semantic_config={"max_new_tokens": 52, "eos_token_id": 10_000},
        coarse_acoustics_config={},
        fine_acoustics_config={},
        sample_rate=24_000,
        codebook_size=1024,
    )
    model.generation_config = generation
    random = np.random.default_rng(2)
    codes = random.integers(0, 1024, (8, 500))
    parts = {
        "semantic_prompt": random.integers(0, 10_000, 330),
        "coarse_prompt": codes[:2],
        "fine_prompt": codes,
    }
    rules = read_rules(model.config, generation)
    ids = random.integers(5, 20_000, 40).tolist()
    wanted = reference(model, ids, {part: torch.from_numpy(array) for part, array in parts.items()})
    prompt = torch.full((rules.semantic.max_text,), rules.semantic.text_pad_token)
    prompt[: len(ids)] = torch.tensor(ids) + rules.semantic.text_offset
    spoken = Utterance(rules, prompt, check_voice("long", parts, rules), 0.0, 1, 0)
    seen: list[Stage] = []
    check_stages(greedily(Lanes.of(model, rules, max_rows=2), spoken, slot=1, seen=seen), wanted)
    assert begins_early(seen)  # the first window reads 47 tokens beside those of a voice of full length


def begins_early(stages: Sequence[str]) -> bool:
    """Whether a semantic step comes after a coarse one."""
    return "coarse" in stages and "semantic" in stages[list(stages).index("coarse") :]


@pytest.mark.parametrize(("voice", "word"), [(None, "two"), ("long", "one")])
def test_coarse_windows_begin_before_the_semantic_stage_ends_with_the_same_tokens(
    tmp_path: Path, voice: str | None, word: str
) -> None:
    """A sentence of more tokens than a window reads: alone, and with others at other places."""
    folder = write_folder(tmp_path, voices=VOICES if voice else None)
    bark = load(ModelSpec(name="tiny", folder=folder, max_rows=8))
    job = make_job(word, voice=voice, temperature=0.0, response_format="pcm")
    alone = say(bark, [job])
    assert begins_early([stage for stage, _ in alone.steps])
    others = [make_job("six five", seed=seed, voice=voice) for seed in range(4)]
    together = say(bark, [*others, job], late=2)
    assert together.results[-1] == alone.results[0]
    model = BarkModel.from_pretrained(folder).eval()
    wanted = reference(model, [2 + WORDS.index(word)], load_preset(folder, voice) if voice else None)
    for said in (alone.rows[0], together.rows[-1]):
        assert said.utterances[0].semantic == wanted.semantic
        assert said.utterances[0].coarse[-len(wanted.coarse) :] == wanted.coarse
        assert torch.equal(said.utterances[0].codec_codes(), wanted.codes)


COMPANY = [
    make_job("one two three four five six seven", seed=1, voice="short", temperature=0.7),
    make_job("two", seed=2, voice="long", temperature=1.1),
    make_job("three four, five", seed=3, voice="odd", temperature=0.0),
    make_job("ten ten ten. nine. eight eight eight eight eight. one", seed=4, voice="long"),
    make_job("six five four three", seed=5, voice="short", temperature=0.3, response_format="flac"),
    make_job("seven", seed=6, temperature=1.5),
    make_job("one two three four five six seven", seed=7, voice="odd", response_format="ogg"),
    make_job("eight nine", seed=8, voice="short", response_format="mp3"),
    make_job("nine eight", seed=9, voice="odd"),
    make_job("one two three four five six seven", seed=1, voice="short", temperature=0.7),
    make_job("four", seed=11, voice="long", temperature=0.9),
]


@pytest.fixture(scope="module")
def alone(bark: Bark) -> list[SpeechResult]:
    return [say(bark, [job]).results[0] for job in COMPANY]


@pytest.mark.parametrize("late", [0, 1, 3])
def test_same_seed_same_bytes_in_any_company(bark: Bark, alone: list[SpeechResult], late: int) -> None:
    together = say(bark, COMPANY, late=late)
    assert together.results == alone
    assert max(rows for stage, rows in together.steps if stage == "coarse") > 1
    assert len({result.data for result in alone}) == len(alone) - 1  # one job is there twice


def test_same_seed_same_bytes_whatever_the_pace_and_the_slot(folder: Path, alone: list[SpeechResult]) -> None:
    other = load(ModelSpec(name="tiny", folder=folder, max_rows=10))
    other.warm_up()
    assert say(other, COMPANY[::-1]).results[::-1] == alone


@pytest.mark.parametrize("threads", [1, 2])
def test_a_rows_bits_depend_on_no_company_and_on_no_threads_share(threads: int) -> None:
    """On two threads `scaled_dot_product_attention` gives other bits to other numbers of rows."""
    config = BarkCoarseConfig(hidden_size=128, num_heads=4, num_layers=2, block_size=320, bias=False)
    torch.manual_seed(3)
    transformer = CausalTransformer(BarkCoarseModel(config))
    bank = transformer.make_bank(8, 320)
    for memory in bank.memory:
        memory.normal_()
    torch.set_num_threads(threads)
    try:
        for position in (37, 200):
            tokens = torch.arange(8)
            alone = transformer.decode(bank, tokens, transformer.plan(bank, {0: position}, 1), 0)[0]
            for places in ({0: position, 1: 5}, {slot: position + slot for slot in range(8)}):
                assert torch.equal(
                    transformer.decode(bank, tokens, transformer.plan(bank, places, 1), 0)[0], alone
                )
    finally:
        torch.set_num_threads(1)


def test_a_step_that_is_run_again_is_the_same_step(
    folder: Path, bark: Bark, alone: list[SpeechResult]
) -> None:
    lanes = make_lanes(folder)
    row = bark.prepare(COMPANY[0])
    row.begin(2)
    utterance = row.utterances[0]
    while utterance.stage is not Stage.DONE:
        before = list(utterance.semantic), list(utterance.coarse), utterance.stage
        lanes.run(utterance.stage, lanes.banks[0], [2], [utterance])  # as a step that failed elsewhere
        assert (utterance.semantic, utterance.coarse, utterance.stage) == before
        for commit in lanes.run(utterance.stage, lanes.banks[0], [2], [utterance]):
            commit()
    row.advance()
    assert bark.finish(row) == alone[0]


def test_voices_do_not_leak_into_each_other(bark: Bark) -> None:
    jobs = [make_job(seed=1, voice=voice, temperature=0.0) for voice in [*VOICES, *VOICES]]
    data = [result.data for result in say(bark, jobs).results]
    assert data[:3] == data[3:]
    assert len(set(data)) == len(VOICES)


def test_half_precision_speaks_and_is_the_same_in_company(folder: Path) -> None:
    bark = load(ModelSpec(name="tiny", folder=folder, dtype="bfloat16", max_rows=8))
    bark.warm_up()
    alone = [say(bark, [job]).results[0] for job in COMPANY[:4]]
    assert say(bark, COMPANY[:4]).results == alone

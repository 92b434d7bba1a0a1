"""A Bark of random weights in the hub's layout, and a loop that speaks with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BarkCoarseConfig,
    BarkConfig,
    BarkFineConfig,
    BarkModel,
    BarkSemanticConfig,
    EncodecConfig,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from jobs import Event, SpeechJob, SpeechResult
from models.protocol import Lane
from models.speech.bark import Bark
from models.speech.generation import read_rules
from models.speech.lanes import Lanes
from models.speech.rows import Row

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", ".", ","]
SEMANTIC, CODES, TEXT_OFFSET = 40, 16, 41
TEXT_PAD, INFER = TEXT_OFFSET + len(WORDS) + 2, TEXT_OFFSET + len(WORDS) + 3
RATE = 8000
PAD, UNKNOWN = "[PAD]", "[UNK]"


def make_config() -> BarkConfig:
    size: dict[str, Any] = {"hidden_size": 32, "num_heads": 2, "num_layers": 2, "bias": False}
    return BarkConfig(
        semantic_config=BarkSemanticConfig(
            block_size=48, input_vocab_size=INFER + 1, output_vocab_size=SEMANTIC + 4, **size
        ),
        coarse_acoustics_config=BarkCoarseConfig(
            block_size=64,
            input_vocab_size=SEMANTIC + 2 * CODES + 2,
            output_vocab_size=SEMANTIC + 2 * CODES,
            **size,
        ),
        fine_acoustics_config=BarkFineConfig(
            block_size=32, input_vocab_size=CODES + 1, output_vocab_size=CODES + 1, n_codes_total=4, **size
        ),
        codec_config=EncodecConfig(
            sampling_rate=RATE,
            hidden_size=8,
            num_filters=4,
            upsampling_ratios=[5, 4],
            num_lstm_layers=1,
            codebook_size=CODES,
            target_bandwidths=[6.4],
        ),
    )


def make_generation(**more: dict[str, Any]) -> GenerationConfig:
    semantic = {
        "eos_token_id": SEMANTIC,
        "max_new_tokens": 30,
        "text_encoding_offset": TEXT_OFFSET,
        "text_pad_token": TEXT_PAD,
        "semantic_infer_token": INFER,
        "semantic_vocab_size": SEMANTIC,
        "max_input_semantic_length": 10,
        "semantic_rate_hz": 49.9,
    }
    coarse = {
        "coarse_semantic_pad_token": SEMANTIC + 2 * CODES,
        "coarse_infer_token": SEMANTIC + 2 * CODES + 1,
        "coarse_rate_hz": 75,
        "max_coarse_input_length": 20,
        "max_coarse_history": 28,
        "sliding_window_len": 12,
    }
    fine = {"max_fine_history_length": 16, "max_fine_input_length": 32, "n_fine_codebooks": 4}
    return GenerationConfig(
        semantic_config=semantic | more.get("semantic", {}),
        coarse_acoustics_config=coarse | more.get("coarse", {}),
        fine_acoustics_config=fine | more.get("fine", {}),
        sample_rate=RATE,
        codebook_size=CODES,
    )


def make_model() -> BarkModel:
    """Random weights, wide enough apart that the tokens differ and some utterances end early."""
    torch.manual_seed(5)
    model = BarkModel(make_config()).eval()
    with torch.no_grad():
        for stage in (model.semantic, model.coarse_acoustics, model.fine_acoustics):
            for name, weight in stage.named_parameters():
                if weight.ndim == 2:
                    weight.normal_(0, 0.3 if "embed" in name else 0.2)
        model.semantic.lm_head.weight[SEMANTIC] *= 9
        for layer in model.codec_model.quantizer.layers:
            layer.codebook.embed.normal_()
    return model


def write_folder(
    folder: Path, *, voices: dict[str, tuple[int, int]] | None = None, **generation: Any
) -> Path:
    """A random Bark in the hub's layout; `voices` have their numbers of semantic tokens and of frames."""
    model = make_model()
    model.generation_config = make_generation(**generation)
    model.save_pretrained(folder)
    vocabulary = {word: place for place, word in enumerate([PAD, UNKNOWN, *WORDS])}
    tokenizer: Any = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN).save_pretrained(
        folder
    )
    random = np.random.default_rng(1)
    listed: dict[str, object] = {"repo_or_path": "somewhere"}
    for name, (semantic, frames) in (voices or {}).items():
        codes = random.integers(0, CODES, (4, frames))
        parts = {
            "semantic_prompt": random.integers(0, SEMANTIC, semantic),
            "coarse_prompt": codes[:2],
            "fine_prompt": codes,
        }
        for part, array in parts.items():
            np.save(folder / f"{name}_{part}.npy", array)
        listed[name] = {part: f"{name}_{part}.npy" for part in parts}
    (folder / "speaker_embeddings_path.json").write_text(json.dumps(listed))
    return folder


VOICES = {"short": (4, 6), "long": (30, 50), "odd": (9, 13)}


def make_job(text: str = "one two three", **fields: Any) -> SpeechJob:
    given: dict[str, Any] = {"id": "1", "timeout_s": 60, "seed": 1, "temperature": 0.8} | fields
    return SpeechJob(text=text, **given)


@dataclass
class Said:
    rows: list[Row]
    results: list[SpeechResult]
    events: list[list[Event]]
    steps: list[tuple[str, int]]
    """The stage of each step, and its rows."""


def say(bark: Bark, jobs: Sequence[SpeechJob], *, late: int = 0) -> Said:
    """Runs jobs together to their ends, lane by lane; job number n joins after `late * n` rounds."""
    rows = [bark.prepare(job) for job in jobs]
    events: list[list[Event]] = [[] for _ in rows]
    steps: list[tuple[str, int]] = []
    places = {id(row): place for place, row in enumerate(rows)}
    joined = 0
    rounds = 0
    while joined < len(rows) or any(bark.lane(row) for row in rows):
        while joined < len(rows) and rounds >= late * joined and bark.reserve(rows[joined]):
            joined += 1
        lanes: dict[Lane, list[Row]] = {}
        for row in rows[:joined]:
            if lane := bark.lane(row):
                lanes.setdefault(lane, []).append(row)
        for lane, waiting in lanes.items():
            together = waiting[: int(bark.budget(lane))]
            steps.append((lane.stage, len(together)))
            for row, told in zip(together, bark.step(lane, together), strict=True):
                events[places[id(row)]] += told
        for row in rows[:joined]:
            if bark.lane(row) is None:
                bark.release(row)
        rounds += 1
    return Said(rows, [bark.finish(row) for row in rows], events, steps)


def make_lanes(folder: Path) -> Lanes:
    model: Any = BarkModel.from_pretrained(folder).eval().requires_grad_(False)
    return Lanes.of(model, read_rules(model.config, model.generation_config), max_rows=8)

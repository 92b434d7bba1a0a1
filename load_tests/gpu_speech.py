"""What a GPU gives Bark: one saying at a time, and 8, 32 and 64 together; in bf16, with random weights.

Part of `make bench-gpu`. Lengths are fixed: each saying has so many semantic tokens, 49.9 a second of sound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from load_tests.full_size import bark_model
from load_tests.report import Record
from models.speech.generation import read_rules
from models.speech.lanes import Lanes
from models.speech.utterance import Stage, Utterance

COLUMNS = ("model", "together", "sound_s", "seconds", "real_time_factor", "sound_s_per_s", "memory_gib")
Clock = Callable[[], float]


def random_bark(size: str, device: str, dtype: torch.dtype, max_rows: int) -> Lanes:
    model = bark_model(size, device, dtype)
    generation = model.generation_config
    # A score of 0 is never among the 50 highest of ten thousand: the end is not chosen, whatever the seed.
    model.semantic.lm_head.weight[generation.semantic_config["eos_token_id"]] = 0.0
    return Lanes.of(model, read_rules(model.config, generation), max_rows)


def measure_speech(
    name: str, lanes: Lanes, batches: Sequence[int], tokens: int, clock: Clock, peak_gib: Callable[[], float]
) -> list[Record]:
    """Says each batch once to warm up and once with a clock. Real-time factor: seconds a second of sound."""
    records: list[Record] = []
    for batch in batches:
        speak(lanes, batch, tokens=8)
        lanes.set_pace()
        began = clock()
        sound_s = speak(lanes, batch, tokens)
        seconds = clock() - began
        records.append(
            {
                "model": name,
                "together": batch,
                "sound_s": round(sound_s, 2),
                "seconds": round(seconds, 3),
                "real_time_factor": round(seconds / sound_s, 4),
                "sound_s_per_s": round(sound_s / seconds, 3),
                "memory_gib": round(peak_gib(), 2),
            }
        )
    return records


def speak(lanes: Lanes, count: int, tokens: int) -> float:
    """The seconds of sound of `count` sayings of `tokens` semantic tokens each, all begun at once."""
    rules = replace(lanes.rules, semantic=replace(lanes.rules.semantic, max_tokens=tokens))
    prompt = torch.full((rules.semantic.max_text,), rules.semantic.text_pad_token)
    sayings = [Utterance(rules, prompt, None, 0.7, seed, 0) for seed in range(count)]
    while any(each.stage is not Stage.DONE for each in sayings):
        for number, bank in enumerate(lanes.banks):
            own = list(enumerate(sayings[number * lanes.rows : (number + 1) * lanes.rows]))
            for stage in dict.fromkeys(each.stage for _, each in own):
                there = [(slot, each) for slot, each in own if each.stage is stage]
                most = lanes.budget(stage)
                for at in range(0, len(there), most):
                    slots, rows = zip(*there[at : at + most], strict=True)
                    for commit in lanes.run(stage, bank, slots, rows):
                        commit()
    return sum(len(each.sound) for each in sayings if each.sound is not None) / lanes.rules.sample_rate

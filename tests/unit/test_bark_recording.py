"""Decodes that are recorded once and played again: what they read is in the buffers, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from models.sources import EMBEDDED
from models.speech.bark import Bark
from models.speech.lanes import Lanes
from models.speech.recording import Recorder, cuda_graph
from models.speech.text import Prompts
from models.speech.voices import Voices
from tests.unit.tiny_speech import make_job, make_lanes, say

FOLDER = EMBEDDED / "tiny-bark"
JOBS = [
    make_job("one", id="a", seed=1, voice="ada"),
    make_job("two six", id="b", seed=2, voice="hugo", temperature=1.2),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Again:
    """A recorder for a CPU: it plays by running the same function over the same memory."""

    def __init__(self) -> None:
        self.recorded = 0
        self.played = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        made = run()
        self.recorded += 1

        def play() -> None:
            self.played += 1
            made.copy_(run())

        return made, play


def bark_of(lanes: Lanes, recorder: Recorder | None) -> Bark:
    for stage in (lanes.semantic, lanes.coarse):
        stage.transformer.recorder = recorder
    tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)
    prompts = Prompts(tokenizer, FOLDER, lanes.rules.semantic)
    return Bark("tiny", lanes, prompts, Voices(FOLDER, lanes.rules, "en"), max_rows=8)


def sounds(bark: Bark) -> list[bytes]:
    return [result.data for result in say(bark, JOBS, late=3).results]


def test_what_is_played_is_what_would_be_computed() -> None:
    plain = sounds(bark_of(make_lanes(FOLDER), None))
    again, lanes = Again(), make_lanes(FOLDER)
    bark = bark_of(lanes, again)
    bark.warm_up()
    lengths = [bank.key_counts for both in lanes.banks for bank in (both.semantic, both.coarse)]
    assert again.recorded == sum(map(len, lengths))
    before = again.played
    assert sounds(bark) == plain
    assert again.played > before + 50
    assert again.recorded == sum(map(len, lengths))  # none while somebody waits


def test_recording_writes_into_no_slot() -> None:
    lanes = make_lanes(FOLDER)
    bark_of(lanes, Again())
    bank = lanes.banks[0].semantic
    with torch.inference_mode():
        for memory in bank.memory:
            memory[..., : bank.length, :] = 7.0
        lanes.record()
    assert all(bool((memory[..., : bank.length, :] == 7.0).all()) for memory in bank.memory)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_cuda_graph_plays_what_would_be_computed() -> None:
    run_on: Any = torch.ones(4, device="cuda")
    made, play = cuda_graph(lambda: run_on * 2 + 1)
    run_on.fill_(5.0)
    play()
    assert made.tolist() == [11.0] * 4

"""The shipped text model, loaded as anyone would load it: size, chat form, and a few held-out answers."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoConfig

from models.training.common import fill_card
from models.training.score_text import Row as ScoreRow
from models.training.score_text import Speaker, as_markdown, completion_prompts
from models.training.text_data import CHAT_TEMPLATE
from models.training.text_judge import grammatical
from models.training.text_requests import draw_case

FOLDER = Path(__file__).parents[2] / "models" / "embedded" / "tiny-llama"
MIB = 2**20


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker(FOLDER)


def test_size_and_layout() -> None:
    weights = FOLDER / "model.safetensors"
    assert weights.stat().st_size < 12 * MIB
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 13 * MIB
    assert not [path.name for path in FOLDER.iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]


def test_widths_fit_4_bit_blocks() -> None:
    config = AutoConfig.from_pretrained(FOLDER, local_files_only=True)
    kv_width = config.num_key_value_heads * config.head_dim
    widths = (config.hidden_size, config.intermediate_size, kv_width, config.vocab_size)
    assert all(width % 128 == 0 for width in widths)


def test_parameters_and_precision_as_the_card_says(speaker: Speaker) -> None:
    parameters = sum(parameter.numel() for parameter in speaker.model.parameters())
    assert f"{parameters / 1e6:.1f}M" in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "float16"


def test_chat_template_is_the_one_trained_with(speaker: Speaker) -> None:
    assert speaker.tokenizer.chat_template == CHAT_TEMPLATE
    text = speaker.tokenizer.apply_chat_template(
        [{"role": "system", "content": " Be kind. "}, {"role": "user", "content": "Hello!"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == "<s><|system|>Be kind.</s><|user|>Hello!</s><|assistant|>"


def test_text_survives_the_tokenizer(speaker: Speaker) -> None:
    for text in ("Hello, Otto!", "7 + 8 is 15.", "  two  spaces ", "äöü 中文 🙂\n\tend"):
        ids = speaker.tokenizer(text)["input_ids"]
        assert ids[0] == speaker.tokenizer.bos_token_id
        assert speaker.tokenizer.decode(ids, skip_special_tokens=True) == text


RIGHT = 7
"""Of eight held-out requests of each kind, how many are answered right at the least."""

CATEGORIES = ("story", "define", "count", "add", "talk", "unknown")


@pytest.mark.parametrize("category", CATEGORIES)
def test_held_out_requests_are_answered(speaker: Speaker, category: str) -> None:
    rng = Random(2024)
    cases = [draw_case(rng, test=True, category=category) for _ in range(8)]
    answers = speaker.say([case.request for case in cases], chat=True)
    pairs = list(zip(cases, answers, strict=True))
    wrong = [(case.request, said) for case, said in pairs if not case.is_right(said)]
    assert 8 - len(wrong) >= RIGHT, wrong
    counts = [grammatical(said) for said in answers]
    assert sum(good == total > 0 for good, total in counts) >= 7, answers


def test_what_the_readme_asks(speaker: Speaker) -> None:
    asked = {
        "What is a star?": "A star is a shape with five points.",
        "hi there": "Hello! What would you like to hear?",
    }
    assert speaker.say(list(asked), chat=True) == list(asked.values())
    assert " red " in speaker.say(["Tell me a story about a red fox."], chat=True)[0]


def test_completions_are_grammatical(speaker: Speaker) -> None:
    prompts = ["Once upon a time", *completion_prompts(Random(1), 7)]
    said = speaker.say(prompts, chat=False)
    counts = [grammatical(prompt + more) for prompt, more in zip(prompts, said, strict=True)]
    assert sum(good for good, _ in counts) >= sum(total for _, total in counts) - 1


def test_greedy_answers_repeat(speaker: Speaker) -> None:
    with torch.inference_mode():
        first, second = (speaker.say(["Tell me a story."], chat=True) for _ in range(2))
    assert first == second


def test_score_is_written_between_the_card_s_markers(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("above\n<!-- score:begin -->\nold\n<!-- score:end -->\nbelow\n")
    fill_card(card, "score", as_markdown([ScoreRow("chat: add", 10, 0.9, 1.0)], 0.2, seed=5))
    text = card.read_text()
    assert "| chat: add | 10 | 90.0 % | 100.0 % |" in text
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "old" not in text
    card.write_text("no markers")
    with pytest.raises(ValueError, match="markers"):
        fill_card(card, "score", "table")

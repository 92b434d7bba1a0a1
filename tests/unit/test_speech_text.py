"""Text on its way to Bark: cut where a speaker would pause, spelled where the model needs it, bounded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from jobs import ErrorKind, JobError
from models.speech.generation import read_rules
from models.speech.sentences import PARAGRAPH_PAUSE_S, SENTENCE_PAUSE_S
from models.speech.text import CLAUSE_PAUSE_S, MAX_PIECES, Prompts
from tests.unit.tiny_speech import TEXT_OFFSET, TEXT_PAD, WORDS, make_config, make_generation, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("bark"))


@pytest.fixture(scope="module")
def prompts(folder: Path) -> Prompts:
    return make_prompts(folder, folder)


def make_prompts(folder: Path, vocabulary: Path) -> Prompts:
    rules = read_rules(make_config(), make_generation()).semantic
    return Prompts(PreTrainedTokenizerFast.from_pretrained(folder), vocabulary, rules)


def spoken(prompts: Prompts, text: str) -> list[str]:
    made = [prompt.tokens for prompt in prompts.make(text)]
    ids = [tokens[tokens != TEXT_PAD] - TEXT_OFFSET - 2 for tokens in made]
    return [" ".join(WORDS[place] for place in piece) for piece in ids]


def test_every_sentence_is_a_piece_and_a_long_one_is_cut_at_marks_then_between_words(
    prompts: Prompts,
) -> None:
    assert spoken(prompts, "one two three") == ["one two three"]
    assert spoken(prompts, "one two. three four, five six seven eight nine ten one.") == [
        "one two .",
        "three four ,",
        "five six seven eight nine ten one .",
    ]
    assert spoken(prompts, "one " * 12) == ["one " * 9 + "one", "one one"]


def test_what_has_no_spaces_is_cut_at_marks_and_else_anywhere(prompts: Prompts) -> None:
    """Such as a long Chinese sentence: the words here stand for its signs, each a token of a longer run."""
    made = spoken(prompts, "one,two,three,four,five,six,seven")
    assert made == ["one , two , three , four , five ,", "six , seven"]
    assert len(prompts.make("one-" * 40)) == 8


def test_pauses_are_those_of_the_place(prompts: Prompts) -> None:
    text = "one two. three four, five six seven eight nine ten one five.\n\nsix " + "two " * 11
    made = prompts.make(text)
    assert [prompt.pause_s for prompt in made] == [
        SENTENCE_PAUSE_S,
        CLAUSE_PAUSE_S,
        PARAGRAPH_PAUSE_S,
        0.0,
        PARAGRAPH_PAUSE_S,
    ]


@pytest.mark.parametrize("text", ["", "  \n ", "one " * 10 * MAX_PIECES + "two", "One. " * (MAX_PIECES + 1)])
def test_text_that_cannot_be_spoken_is_refused(prompts: Prompts, text: str) -> None:
    with pytest.raises(JobError) as refused:
        prompts.make(text)
    assert (refused.value.kind, refused.value.param) == (ErrorKind.INVALID, "text")
    assert refused.value.code == ("text_too_long" if text.strip() else "nothing_to_say")


def test_text_that_is_too_long_is_refused_with_the_bound(prompts: Prompts) -> None:
    with pytest.raises(JobError, match=rf"{MAX_PIECES} pieces of 10 tokens"):
        prompts.make("one " * 10 * (MAX_PIECES + 1))


def test_unknown_words_are_spelled_where_the_model_brings_a_vocabulary(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").write_text(json.dumps({"words": ["one", "two", "three"], "max_words": 2}))
    assert spoken(make_prompts(folder, tmp_path), "ONE 2 xyz three") == ["one two", "three"]

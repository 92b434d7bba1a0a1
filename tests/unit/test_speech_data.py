"""The speech recipe's data, spelling and judge: pure functions, no espeak-ng and no weights."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from models.speech.spelling import load_vocabulary, spell_unknown
from models.training.judge_speech import Heard, compare, pitch_hz
from models.training.speech_data import SEMANTIC_HOP, VOICES, draw_lines, trim
from models.training.speech_grammar import ALL_KINDS, draw_cases, word_groups
from models.training.speech_model import MAX_TEXT, build_tokenizer
from models.training.speech_stages import text_ids
from models.training.speech_text import (
    KINDS,
    MAX_WORDS,
    WORDS,
    draw_sentence,
    is_held_out,
    number_words,
    spoken_form,
    words_of,
)


def test_lines_are_the_same_for_the_same_seed() -> None:
    assert draw_lines(50, 3) == draw_lines(50, 3)
    assert draw_lines(50, 3) != draw_lines(50, 4)
    assert {voice for _, voice in draw_lines(4, 0)} == set(VOICES)


def test_lines_are_of_the_vocabulary_and_use_all_of_it() -> None:
    said = {word for text, _ in draw_lines(8_000, 0) for word in words_of(text)}
    assert said == set(WORDS)


def test_no_sentence_to_train_on_is_held_out() -> None:
    assert not any(is_held_out(text) for text, _ in draw_lines(2_000, 1))
    assert all(is_held_out(case.text) for case in draw_cases(ALL_KINDS, 5, seed=7))


def test_a_tenth_of_the_longer_sentences_is_held_out() -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choice(WORDS) for _ in range(4)) for _ in range(4_000)]
    assert 0.08 < np.mean([is_held_out(text) for text in texts]) < 0.12


def test_punctuation_does_not_get_a_sentence_out_of_the_hold_out() -> None:
    rng = random.Random(1)
    text = " ".join(words_of(draw_sentence(rng, held_out=True, kind="digits")))
    assert is_held_out(text.replace(" ", ", ") + ".")
    assert not is_held_out("one two")


@pytest.mark.parametrize("kind", KINDS)
def test_sentences_fit_the_model(kind: str) -> None:
    tokenizer = build_tokenizer()
    rng = random.Random(2)
    for _ in range(50):
        text = draw_sentence(rng, held_out=False, kind=kind)
        assert len(words_of(text)) <= MAX_WORDS
        pieces = tokenizer.tokenize(text)
        assert len(pieces) <= MAX_TEXT
        assert "[UNK]" not in pieces


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "zero"), (13, "thirteen"), (20, "twenty"), (42, "forty two"), (100, "one hundred")],
)
def test_number_words(value: int, words: str) -> None:
    assert number_words(value) == words


def test_number_words_refuses_what_it_cannot_say() -> None:
    with pytest.raises(ValueError, match="101"):
        number_words(101)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("a red ring", "a red ring"),
        ("a", "[['eI]]"),
        ("c a t", "c [['eI]] t"),
        ("the b a.", "the b [['eI]]."),
    ],
)
def test_a_is_a_letter_beside_letters(text: str, spoken: str) -> None:
    assert spoken_form(text) == spoken


def test_trim_leaves_whole_tokens_and_a_margin() -> None:
    wave = np.zeros(20_000, dtype=np.float32)
    wave[6_000:9_000] = 0.5
    cut = trim(wave)
    assert len(cut) % SEMANTIC_HOP == 0
    assert 3_000 < len(cut) < 6_000
    assert cut.sum() == pytest.approx(1_500)
    assert trim(np.zeros(100, dtype=np.float32)).shape == (SEMANTIC_HOP,)


def test_word_groups_cover_the_vocabulary() -> None:
    assert sorted(word for group in word_groups() for word in group) == sorted(WORDS)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("Hello, HOW are you?", "hello, how are you?"),
        ("Hi Bob", "hi b o b"),
        ("room 42", "r o o m forty two"),
        ("100% of 2026 and 007", "one hundred of two zero two six and zero zero seven"),
        ("Café", "c a f e"),
        ("Maß", "m a s s"),
        ("⑳" * 4096, " ".join(["two", "zero"] * 4096)),
        ("it's", "i t s"),
        ("red-blue", "red blue"),
        ("... one!", "one!"),
        ("日本 one", "one"),
        ("", ""),
    ],
)
def test_unknown_words_are_spelled(text: str, spoken: str) -> None:
    assert spell_unknown(text, frozenset(WORDS)) == spoken


def test_what_is_spelled_needs_no_more_spelling() -> None:
    rng = random.Random(5)
    for _ in range(200):
        text = "".join(rng.choice("abcxyz 019é,.'-ÄΩ") for _ in range(30))
        once = spell_unknown(text, frozenset(WORDS))
        assert set(words_of(once)) <= set(WORDS)
        assert spell_unknown(once, frozenset(WORDS)) == once


def test_a_folder_without_a_vocabulary_takes_any_text(tmp_path: Path) -> None:
    assert load_vocabulary(tmp_path) is None
    (tmp_path / "vocabulary.json").write_text('{"words": ["one"]}')
    assert load_vocabulary(tmp_path) == {"one"}
    (tmp_path / "vocabulary.json").write_text("[]")
    with pytest.raises(ValueError, match="no list of words"):
        load_vocabulary(tmp_path)


def test_letters_are_sometimes_joined_and_never_lost() -> None:
    tokenizer = build_tokenizer()
    plain = text_ids("q x z j", tokenizer)
    seen = {tuple(text_ids("q x z j", tokenizer, np.random.default_rng(seed))) for seed in range(40)}
    assert tuple(plain) in seen
    assert len(seen) == 2
    pad = plain[-1]
    assert all(sum(token != pad for token in ids) == 4 for ids in seen)


def test_compare_counts_hits_and_extra_words() -> None:
    assert compare(["one", "two", "three"], ["one", "two", "three"]) == Heard(3, 3, 0)
    assert compare(["one", "two", "three"], ["one", "four", "three", "three"]) == Heard(3, 2, 1)
    assert compare(["one", "two"], []) == Heard(2, 0, 0)
    assert compare(["see", "colour"], ["c", "color"]).recall == 1.0
    assert Heard(3, 2, 1) + Heard(1, 1, 0) == Heard(4, 3, 1)


@pytest.mark.parametrize("pitch", [85.0, 130.0, 210.0, 245.0])
def test_pitch_is_found_in_a_harmonic_sound(pitch: float) -> None:
    time = np.arange(16_000) / 16_000
    wave = np.sum([np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 8)], axis=0)
    assert pitch_hz((0.2 * wave).astype(np.float32)) == pytest.approx(pitch, rel=0.02)


def test_noise_and_silence_have_no_pitch() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    assert pitch_hz(noise) is None
    assert pitch_hz(np.zeros(16_000, dtype=np.float32)) is None

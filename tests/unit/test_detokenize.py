"""Tokens to text as they come: whole characters, right spaces, and stop strings that never show."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

from models.text.detokenize import BROKEN, PENDING_TOKENS, Detokenizer, StopFinder
from tests.unit.tiny_text import byte_level

TEXTS = ("hello world", " a red  circle\n", "été 🙂🙃 中文 naïve 👩‍👩‍👧", "x", "🙂")


def sentencepiece() -> Tokenizer:
    """As Llama 2 has it: words begin with an underscore sign, what is unknown is spelt in bytes."""
    pieces = [*"▁helowrdacin", "▁hello", "▁world", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer: Any = Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(dict.fromkeys(pieces))},
            [],
            unk_token="<unk>",  # noqa: S106 - a token of text
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@pytest.fixture(scope="module", params=[byte_level, sentencepiece])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    build: Callable[[], Tokenizer] = request.param
    return build()


def pieces(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer.decode, prompt)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_and_hold_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    whole = tokenizer.encode("hello" + text, add_special_tokens=False).ids
    prompt = tokenizer.encode("hello", add_special_tokens=False).ids
    if whole[: len(prompt)] != prompt:
        prompt = whole[:1]
    made = pieces(tokenizer, prompt, whole[len(prompt) :])
    assert tokenizer.decode(prompt) + "".join(made) == "hello" + text
    assert not any(BROKEN in piece for piece in made)


def test_the_space_before_the_first_word_is_kept() -> None:
    tokenizer = sentencepiece()
    prompt = tokenizer.encode("hello").ids
    word = tokenizer.token_to_id("▁world")
    assert word is not None
    assert "".join(pieces(tokenizer, prompt, [word])) == " world"


def test_an_unfinished_character_is_dropped_and_what_was_whole_is_kept() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("x🙂", add_special_tokens=False).ids
    assert len(ids) > 1
    assert "".join(pieces(tokenizer, [], ids[:-1])) == "x"


def test_bytes_that_are_no_text_go_out_in_the_end() -> None:
    tokenizer = byte_level()
    only_byte = next(i for i in range(2, 300) if tokenizer.decode([i]) == BROKEN)
    made = pieces(tokenizer, [], [only_byte] * (3 * PENDING_TOKENS))
    assert "".join(made).count(BROKEN) >= 2 * PENDING_TOKENS
    assert all(len(piece) <= PENDING_TOKENS for piece in made)


# --- stop strings -------------------------------------------------------------------------------------------


def run(stops: Sequence[str], chunks: Sequence[str]) -> tuple[list[str], bool]:
    finder = StopFinder(stops)
    shown = [finder.push(chunk) for chunk in chunks]
    return [*shown, finder.flush()], finder.found


def test_without_stops_all_is_shown_at_once() -> None:
    assert run((), ["a", "bc"]) == (["a", "bc", ""], False)
    assert run(("",), ["a"]) == (["a", ""], False)


def test_a_beginning_that_comes_to_nothing_is_shown_after_all() -> None:
    assert run(("END",), ["xE", "N", "x", "EN"]) == (["x", "", "ENx", "", "EN"], False)


def test_a_stop_in_pieces_cuts_and_ends() -> None:
    shown, found = run(("END", "##"), ["some E", "ND more", "##"])
    assert (shown, found) == (["some ", "", "", ""], True)


def test_an_end_that_repeats_itself_is_found() -> None:
    assert run(("aab",), list("aaab")) == (["", "", "a", "", ""], True)


def test_the_first_of_several_cuts() -> None:
    assert run(("later", "now"), ["it is now or later"])[0] == ["it is ", ""]


@pytest.mark.parametrize("seed", range(30))
def test_any_cutting_shows_the_same_and_never_a_part_of_a_stop(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choice("ab|") for _ in range(60))
    stop = "".join(rng.choice("ab|") for _ in range(rng.randint(2, 6)))
    place = text.find(stop)
    expected = text if place < 0 else text[:place]
    finder, rest, shown = StopFinder((stop,)), text, ""
    while rest and not finder.found:
        size = rng.randint(1, 5)
        shown += finder.push(rest[:size])
        rest = rest[size:]
        assert expected.startswith(shown)
        seen = text[: len(text) - len(rest)]
        held = seen[len(shown) :]
        assert finder.found or held == "" or stop.startswith(held)
    assert shown + finder.flush() == expected
    assert finder.found == (place >= 0)

"""Text on its way to Bark: cut into sentences, put into words, cut to fit a prompt, tokenised."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs import ErrorKind, JobError
from models.speech.generation import SemanticRules
from models.speech.reading import read_out
from models.speech.sentences import split_sentences
from models.speech.spelling import VOCABULARY_FILE, load_vocabulary, spell_unknown

MAX_PIECES = 48
"""Pieces a text may be cut into: with the length of one, what bounds a job's sound."""
CLAUSE_PAUSE_S = 0.1
"""Silence where a sentence that is too long is cut at a mark; between words it is none."""
_BREAKS = (".!?…。！？", ";:,—，、；：")
"""Where to cut a sentence that is too long, the best places first."""
_AFTER_MARKS = re.compile(rf"(?<=[{re.escape(''.join(_BREAKS))}])(?=.)")


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A piece of text that is spoken in one go."""

    tokens: Tensor
    """Text tokens, padded, [max_text]."""
    pause_s: float
    """Silence after it, where another one follows."""


class Prompts:
    """Makes the semantic stage's prompts from text."""

    def __init__(self, tokenizer: Any, folder: Path, rules: SemanticRules) -> None:
        """Raises ValueError if the folder's vocabulary file cannot be read."""
        self._tokenizer = tokenizer
        self._rules = rules
        # Only a model of few words, such as the embedded one, brings this file.
        self._vocabulary = load_vocabulary(folder)
        self._max_words: int | None = None
        if self._vocabulary is not None:
            self._max_words = json.loads((folder / VOCABULARY_FILE).read_text("utf-8")).get("max_words")

    def make(self, text: str, language: str = "en") -> list[Prompt]:
        """The prompts of a text: one a sentence, more where a sentence is too long for one.

        Raises:
            JobError: there is nothing to say, or too much.
        """
        pieces: list[tuple[str, float]] = []
        for sentence in split_sentences(text, language):
            for piece in self._cut(self._in_words(sentence.text, language).split(), sentence.pause_s):
                pieces.append(piece)
                if len(pieces) > MAX_PIECES:
                    raise self._too_long()
        if not pieces:
            message = "There is nothing in the text that can be spoken."
            raise JobError(ErrorKind.INVALID, message, param="text", code="nothing_to_say")
        return [Prompt(self._tokenise(piece), pause_s) for piece, pause_s in pieces]

    def _in_words(self, sentence: str, language: str) -> str:
        if self._vocabulary is not None:
            return spell_unknown(sentence, self._vocabulary)
        return read_out(sentence, language)

    def _too_long(self) -> JobError:
        words_too = f" and {self._max_words} words" if self._max_words else ""
        bound = f"{MAX_PIECES} pieces of {self._rules.max_text} tokens{words_too}"
        message = f"The text is too long: at most {bound} can be spoken in one request."
        return JobError(ErrorKind.INVALID, message, param="text", code="text_too_long")

    def _cut(self, words: list[str], pause_s: float) -> Iterator[tuple[str, float]]:
        """A sentence's pieces, each with the pause after it: cut at marks, and else between words."""
        sizes = self._sizes(words)
        if max(sizes, default=0) > self._rules.max_text:
            pairs = zip(words, sizes, strict=True)
            words = [part for word, size in pairs for part in self._parts(word, size)]
            sizes = self._sizes(words)
        begin = 0
        while begin < len(words):
            end = self._fitting(sizes, begin)
            pause = pause_s
            if end < len(words):
                end, at_mark = _best_break(words, begin, end)
                pause = CLAUSE_PAUSE_S if at_mark else 0.0
            if any(sizes[begin:end]):
                yield " ".join(words[begin:end]), pause
            begin = end

    def _fitting(self, sizes: list[int], begin: int) -> int:
        """The end of the longest run of words from `begin` that fits one prompt."""
        total, end = 0, begin
        while end < len(sizes) and total + sizes[end] <= self._rules.max_text:
            if self._max_words and end - begin == self._max_words:
                break
            total += sizes[end]
            end += 1
        if end == begin:
            message = f"A letter of the text is longer than the {self._rules.max_text} tokens of a prompt."
            raise JobError(ErrorKind.INVALID, message, param="text", code="text_too_long")
        return end

    def _parts(self, word: str, size: int) -> list[str]:
        """A word, which has `size` tokens, in parts that fit a prompt: Chinese has no spaces to cut at."""
        if size <= self._rules.max_text or len(word) < 2:
            return [word]
        parts = _AFTER_MARKS.split(word)
        if len(parts) == 1:
            parts = [word[: len(word) // 2], word[len(word) // 2 :]]
        sizes = self._sizes(parts)
        return [each for part, size in zip(parts, sizes, strict=True) for each in self._parts(part, size)]

    def _sizes(self, words: list[str]) -> list[int]:
        return [len(ids) for ids in self._ids(words)] if words else []

    def _ids(self, texts: list[str]) -> list[list[int]]:
        encoded = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
        return encoded["input_ids"]

    def _tokenise(self, piece: str) -> Tensor:
        rules = self._rules
        ids = self._ids([piece])[0]
        if len(ids) > rules.max_text:
            message = f"A piece of the text has {len(ids)} tokens; at most {rules.max_text} can be spoken."
            raise JobError(ErrorKind.INVALID, message, param="text", code="text_too_long")
        prompt = torch.full((rules.max_text,), rules.text_pad_token)
        prompt[: len(ids)] = torch.tensor(ids) + rules.text_offset
        return prompt


def _best_break(words: list[str], begin: int, end: int) -> tuple[int, bool]:
    """Where to cut between `begin` and `end`, and whether a mark is there."""
    for marks in _BREAKS:
        for place in range(end, begin, -1):
            if words[place - 1][-1] in marks:
                return place, True
    return end, False

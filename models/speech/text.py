"""Text on its way to Bark: spelled where the model needs it, cut to fit its prompt, tokenised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs import ErrorKind, JobError
from models.speech.generation import SemanticRules

VOCABULARY_FILE = "vocabulary.json"
MAX_PIECES = 16
"""Pieces a text may be cut into: with the length of one, what bounds a job's sound."""
_BREAKS = (".!?…。！？", ";:,—，、；：")
"""Where to cut, the best places first."""


class Prompts:
    """Makes the semantic stage's prompts from text."""

    def __init__(self, tokenizer: Any, folder: Path, rules: SemanticRules) -> None:
        """Raises ValueError if the folder's vocabulary file cannot be read."""
        self._tokenizer = tokenizer
        self._rules = rules
        self._vocabulary: frozenset[str] | None = None
        self._max_words: int | None = None
        if (folder / VOCABULARY_FILE).exists():
            # Only a model of few words, such as the embedded one, brings this file.
            from models.speech.spelling import load_vocabulary

            self._vocabulary = load_vocabulary(folder)
            self._max_words = json.loads((folder / VOCABULARY_FILE).read_text("utf-8")).get("max_words")

    def make(self, text: str) -> list[Tensor]:
        """The prompts of a text, one a piece that is spoken in one go: each [max_text], padded.

        A text that fits stays whole. A longer one is cut at the ends of sentences, at other marks where a
        sentence is too long, and else between words.

        Raises:
            JobError: there is nothing to say, or too much.
        """
        if self._vocabulary is not None:
            from models.speech.spelling import spell_unknown

            text = spell_unknown(text, self._vocabulary)
        words = text.split()
        prompts = [self._tokenise(piece) for piece in self._cut(words)]
        if not prompts:
            message = "There is nothing in the text that can be spoken."
            raise JobError(ErrorKind.INVALID, message, param="text")
        return prompts

    def _cut(self, words: list[str]) -> list[str]:
        sizes = [len(ids) for ids in self._ids(words)] if words else []
        pieces: list[str] = []
        begin = 0
        while begin < len(words):
            end = self._fitting(sizes, begin)
            if end < len(words):
                end = _best_break(words, begin, end)
            if any(sizes[begin:end]):
                pieces.append(" ".join(words[begin:end]))
            begin = end
            if len(pieces) > MAX_PIECES:
                words_too = f" and {self._max_words} words" if self._max_words else ""
                bound = f"{MAX_PIECES} pieces of {self._rules.max_text} tokens{words_too}"
                message = f"The text is too long: at most {bound} can be spoken in one request."
                raise JobError(ErrorKind.INVALID, message, param="text", code="text_too_long")
        return pieces

    def _fitting(self, sizes: list[int], begin: int) -> int:
        """The end of the longest run of words from `begin` that fits one prompt."""
        total, end = 0, begin
        while end < len(sizes) and total + sizes[end] <= self._rules.max_text:
            if self._max_words and end - begin == self._max_words:
                break
            total += sizes[end]
            end += 1
        if end == begin:
            message = f"A word of the text is longer than the {self._rules.max_text} tokens of a prompt."
            raise JobError(ErrorKind.INVALID, message, param="text", code="text_too_long")
        return end

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


def _best_break(words: list[str], begin: int, end: int) -> int:
    for marks in _BREAKS:
        for place in range(end, begin, -1):
            if words[place - 1][-1] in marks:
                return place
    return end

"""Texts as tokens for models that read them whole: encoders that embed, classify and translate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs import ErrorKind, JobError

MOST_TOKENS = 8192
"""Of one forward, padding included: more texts go in several."""


class Reader:
    """The tokenizer of one model, which reads `most` tokens of a text."""

    def __init__(self, tokenizer: Any, *, model: str, most: int) -> None:
        """Raises `ValueError` for a tokenizer without a `tokenizer.json`."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"{model}: its tokenizer has no tokenizer.json, which is needed")
        self._backend = backend
        self._model = model
        self.most = most

    def read(self, texts: Sequence[str], *, truncate: bool, beside: int = 0) -> list[list[int]]:
        """Ids of each text, special tokens included; `beside` tokens are needed for something else.

        Raises `JobError` for a text that is too long, unless it is to be truncated.
        """
        most = self.most - beside
        self._backend.no_padding()
        self._backend.no_truncation()
        found = self._backend.encode_batch(list(texts))
        for number, each in enumerate(found):
            if len(each.ids) > most and not truncate:
                message = (
                    f"`texts`[{number}] has {len(each.ids)} tokens, and {self._model} reads {most}: "
                    "shorten it, or set `truncate`."
                )
                raise JobError(ErrorKind.INVALID, message, param="texts", code="text_too_long")
        if any(len(each.ids) > most for each in found):
            self._backend.enable_truncation(most)
            found = self._backend.encode_batch(list(texts))
            self._backend.no_truncation()
        return [list(each.ids) for each in found]


def most_tokens(config: Any, tokenizer: Any, limit: int | None = None) -> int:
    """What a model reads, by its positions, its tokenizer's word and a `limit` of the checkpoint's."""
    positions = getattr(config, "max_position_embeddings", None) or MOST_TOKENS
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= 2  # theirs begin after the padding's
    return int(min(positions, tokenizer.model_max_length or positions, limit or positions, MOST_TOKENS))


def portions(lengths: Sequence[int], most: int = MOST_TOKENS) -> list[list[int]]:
    """Places in `lengths`, the like beside the like, in portions of at most `most` tokens with padding."""
    made: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if made and (len(made[-1]) + 1) * lengths[place] <= most:
            made[-1].append(place)
        else:
            made.append([place])
    return made

"""Prompts to embeddings: chunks of a text encoder's length, batched over rows and remembered.

A prompt longer than the encoder's window (77 tokens, two of them marks) is not cut. It is split into chunks
of 75 tokens, each encoded with its own begin and end marks and padding; their embeddings are joined along the
sequence, so the UNet attends to all of them. One chunk is exactly what diffusers encodes. The two prompts of
a guided row have the same number of chunks: the shorter one is filled with empty ones.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

REMEMBERED_PROMPTS = 512
"""Embeddings kept; one of SD 1.5 is 77 x 768 numbers, so this is at most 121 MB in float32."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """A tokenised prompt: `ids` are one tuple of exactly the window's length a chunk, for each encoder."""

    ids: tuple[tuple[tuple[int, ...], ...], ...]
    empty: bool

    def __len__(self) -> int:
        return len(self.ids[0])


@dataclass(frozen=True, slots=True)
class Embedding:
    """`hidden` [chunks * window, width] of all encoders side by side; `pooled` [width] where one gives it."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None


class PromptTokenizer:
    """A CLIP tokenizer that splits instead of cutting; safe to call from several threads."""

    def __init__(self, tokenizer: Any, window: int) -> None:
        self._tokenizer = tokenizer
        self._window = window
        self._lock = threading.Lock()  # fast tokenizers hold their padding and truncation as shared state

    def pieces(self, prompt: str) -> list[list[int]]:
        """Splits `prompt` into as many windows as it needs, at least one."""
        with self._lock:
            tokens: list[int] = self._tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        inner = self._window - 2
        return [tokens[at : at + inner] for at in range(0, len(tokens), inner)] or [[]]

    def framed(self, pieces: Sequence[Sequence[int]], count: int) -> tuple[tuple[int, ...], ...]:
        """The pieces with their marks and padding, filled with empty ones up to `count`."""
        marks = self._tokenizer
        whole = [*pieces, *[[]] * (count - len(pieces))]
        framed = [(marks.bos_token_id, *piece, marks.eos_token_id) for piece in whole]
        return tuple((*chunk, *[marks.pad_token_id] * (self._window - len(chunk))) for chunk in framed)


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """One of a checkpoint's text encoders, by the name of its folder.

    `layer`: Stable Diffusion 1.x and 2.x take the last hidden state after its final norm, XL the last but
    one.
    """

    name: str
    module: Any
    tokenizer: PromptTokenizer
    layer: Literal["last", "last but one"]

    def encode(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[n, window] to hidden states [n, window, width], and the pooled [n, width] of a projecting one."""
        if self.layer == "last":
            return self.module(input_ids=ids).last_hidden_state, None
        made = self.module(input_ids=ids, output_hidden_states=True)
        return made.hidden_states[-2], getattr(made, "text_embeds", None)


def chunked(encoders: Sequence[TextEncoder], *prompts: str) -> list[Chunks]:
    """Each prompt for every encoder, all in as many chunks as the longest one needs."""
    pieces = [[encoder.tokenizer.pieces(prompt) for encoder in encoders] for prompt in prompts]
    count = max(len(each) for of_prompt in pieces for each in of_prompt)
    return [
        Chunks(
            ids=tuple(
                encoder.tokenizer.framed(each, count)
                for encoder, each in zip(encoders, of_prompt, strict=True)
            ),
            empty=not prompt,
        )
        for prompt, of_prompt in zip(prompts, pieces, strict=True)
    ]


class EmbeddingCache:
    """The embeddings last used, by prompt and by the adapters that touched the encoder. One thread's own."""

    def __init__(self, size: int = REMEMBERED_PROMPTS) -> None:
        self._size = size
        self._kept: OrderedDict[Hashable, Embedding] = OrderedDict()

    def get(self, key: Hashable) -> Embedding | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: Hashable, embedding: Embedding) -> None:
        self._kept[key] = embedding
        self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)

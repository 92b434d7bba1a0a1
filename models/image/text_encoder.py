"""Prompts to embeddings: chunks of a text encoder's length, batched over rows and remembered.

A prompt longer than the encoder's window (77 tokens, two of them marks) is not cut. It is split into chunks
of 75 tokens, each encoded with its own begin and end marks and padding; their embeddings are joined along the
sequence, so the UNet attends to all of them. One chunk is exactly what diffusers encodes. The two prompts of
a guided row have the same number of chunks: the shorter one is filled with empty ones.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

REMEMBERED_PROMPTS = 512
"""Embeddings kept; one of SD 1.5 is 77 x 768 numbers, so this is at most 121 MB in float32."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """A tokenised prompt: `ids` are one tuple of exactly the window's length a chunk."""

    ids: tuple[tuple[int, ...], ...]


class PromptTokenizer:
    """A CLIP tokenizer that splits instead of cutting; safe to call from several threads."""

    def __init__(self, tokenizer: Any, window: int) -> None:
        self._tokenizer = tokenizer
        self._window = window
        self._lock = threading.Lock()  # fast tokenizers hold their padding and truncation as shared state

    def chunks(self, prompt: str, at_least: int = 1) -> Chunks:
        """Splits `prompt` into as many windows as it needs, filled with empty ones up to `at_least`."""
        with self._lock:
            tokens: list[int] = self._tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        inner = self._window - 2
        pieces = [tokens[at : at + inner] for at in range(0, len(tokens), inner)]
        pieces += [[]] * (max(at_least, 1) - len(pieces))
        return Chunks(tuple(self._framed(piece) for piece in pieces))

    def _framed(self, piece: Sequence[int]) -> tuple[int, ...]:
        marks = self._tokenizer
        framed = [marks.bos_token_id, *piece, marks.eos_token_id]
        return (*framed, *[marks.pad_token_id] * (self._window - len(framed)))


class EmbeddingCache:
    """The embeddings last used, by prompt and by the adapters that touched the encoder. One thread's own."""

    def __init__(self, size: int = REMEMBERED_PROMPTS) -> None:
        self._size = size
        self._kept: OrderedDict[Hashable, torch.Tensor] = OrderedDict()

    def get(self, key: Hashable) -> torch.Tensor | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: Hashable, embedding: torch.Tensor) -> None:
        self._kept[key] = embedding
        self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)


def encode_chunks(
    text_encoder: Callable[..., Any], prompts: Sequence[Chunks], device: torch.device
) -> list[torch.Tensor]:
    """One forward over every chunk of every prompt; gives each its embedding [chunks * window, hidden].

    Takes the encoder's last hidden state after its final norm, as Stable Diffusion 1.x and 2.x do.
    """
    ids = torch.tensor([chunk for prompt in prompts for chunk in prompt.ids], device=device)
    hidden: torch.Tensor = text_encoder(input_ids=ids).last_hidden_state
    counts = [len(prompt.ids) for prompt in prompts]
    return [part.flatten(0, 1) for part in hidden.split(counts)]

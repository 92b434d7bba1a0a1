"""What a row's prompts mean to the UNet: tokenised beside the engine, encoded in a lane of their own."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from jobs import ImageJob
from models.image.row import Row
from models.image.text_encoder import Chunks, Embedding, EmbeddingCache, TextEncoder, chunked
from models.lora.bank import LoraBank
from models.lora.slots import Chosen


class Prompts:
    """The text encoders of a checkpoint and what they made last.

    `zero_empty`: an empty negative prompt is zeros, not an encoded nothing (SDXL's own training).
    """

    def __init__(
        self,
        encoders: Sequence[TextEncoder],
        bank: LoraBank,
        device: torch.device,
        *,
        zero_empty: bool = False,
    ) -> None:
        self._encoders = tuple(encoders)
        self._bank = bank
        self._device = device
        self._zero_empty = zero_empty
        self._known = EmbeddingCache()

    def chunks(self, job: ImageJob, *, guided: bool) -> tuple[Chunks, Chunks | None]:
        """Both prompts in as many chunks as the longer one; one where there is no unconditional half."""
        if not guided:
            return chunked(self._encoders, job.prompt)[0], None
        prompt, negative_prompt = chunked(self._encoders, job.prompt, job.negative_prompt)
        return prompt, negative_prompt

    def encode(self, rows: Sequence[Row]) -> None:
        """Encodes the prompts that are not remembered, each once however many rows ask for it."""
        wanted: dict[Hashable, tuple[Chunks, Chosen]] = {}
        for row in rows:
            for prompt in row.prompts:
                key = self._key(prompt, row.adapters)
                if self._known.get(key) is None:
                    wanted[key] = (prompt, row.adapters)
        if wanted:
            for key, embedding in zip(wanted, self._made(list(wanted.values())), strict=True):
                self._known.put(key, embedding)
        for row in rows:
            self.recall(row)

    def recall(self, row: Row) -> None:
        """Gives the row its embeddings when all of them are remembered."""
        found = [self._known.get(self._key(prompt, row.adapters)) for prompt in row.prompts]
        if any(embedding is None for embedding in found):
            return
        row.cond, row.uncond = found[0], found[1] if len(found) > 1 else None
        if self._zero_empty and row.uncond is not None and row.prompts[1].empty:
            pooled = row.uncond.pooled
            row.uncond = Embedding(
                torch.zeros_like(row.uncond.hidden), None if pooled is None else torch.zeros_like(pooled)
            )

    def _made(self, wanted: Sequence[tuple[Chunks, Chosen]]) -> list[Embedding]:
        """One forward an encoder over every chunk of every prompt."""
        counts = [len(prompt) for prompt, _ in wanted]
        # A forward row here is a chunk, and each has its prompt's adapters.
        chosen = [adapters for prompt, adapters in wanted for _ in range(len(prompt))]
        hiddens: list[torch.Tensor] = []
        pooled: torch.Tensor | None = None
        for at, encoder in enumerate(self._encoders):
            ids = torch.tensor([chunk for prompt, _ in wanted for chunk in prompt.ids[at]])
            with self._bank.applied(self._bank.select(encoder.name, chosen)):
                hidden, pooled = encoder.encode(ids.to(self._device))
            hiddens.append(hidden)
        joined = torch.cat(hiddens, dim=-1).split(counts)
        # A long prompt's first chunk speaks for it where one vector has to.
        firsts = [None] * len(counts) if pooled is None else [part[0] for part in pooled.split(counts)]
        return [Embedding(part.flatten(0, 1), first) for part, first in zip(joined, firsts, strict=True)]

    def _key(self, prompt: Chunks, adapters: Chosen) -> Hashable:
        """Only adapters with a text encoder part change an embedding."""
        parts = [encoder.name for encoder in self._encoders]
        touching = [(adapter.key, weight) for adapter, weight in adapters if any(map(adapter.touches, parts))]
        return (prompt, tuple(touching))

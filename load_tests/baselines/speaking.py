"""What the peers of speech have in common: Hugging Face's own `BarkModel.generate`, to WAV."""

from __future__ import annotations

import os
from typing import Any, TypedDict

import torch
from transformers import BarkModel, BarkProcessor

from models.speech.encode import encode_audio


class Order(TypedDict):
    text: str
    voice: str
    seed: int
    temperature: float


class Speaking:
    def __init__(self) -> None:
        folder = os.environ["BENCH_MODEL"]
        self._processor: Any = BarkProcessor.from_pretrained(folder, local_files_only=True)
        self._model: Any = BarkModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        self._model.eval()

    @torch.inference_mode()
    def say(self, orders: list[Order]) -> list[bytes]:
        """A batch has one voice, one temperature and one seed: those of its first order."""
        first = orders[0]
        torch.manual_seed(first["seed"])
        inputs = self._processor([order["text"] for order in orders], voice_preset=first["voice"])
        sound, lengths = self._model.generate(
            **inputs, do_sample=True, temperature=first["temperature"], return_output_lengths=True
        )
        rate = self._model.generation_config.sample_rate
        return [
            encode_audio(row[: int(length)].clamp(-1, 1).numpy(), rate, "wav")
            for row, length in zip(sound, lengths, strict=True)
        ]

"""The two kinds of tokens that Bark's stages are trained on: semantic ones from phonemes, and the codec's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from transformers import EncodecModel

from models.training.speech_data import SEMANTIC_HOP, VOICES, Corpus, Utterance
from models.training.speech_phonemes import phoneme_tokens


def semantic_tokens(utterance: Utterance) -> NDArray[np.int64]:
    """An utterance's semantic tokens, 25 a second."""
    voice = list(VOICES).index(utterance.voice)
    return phoneme_tokens(utterance.phonemes, utterance.samples, SEMANTIC_HOP, voice)


def codec_tokens(corpus: Corpus, count: int, codec: EncodecModel, out: Path) -> list[NDArray[np.int64]]:
    """The first `count` utterances' codec frames [codebooks, frames]; kept in `out`, read back if there."""
    path = out / "codec_tokens.npz"
    if not path.exists():
        indices = track(range(count), description="codec tokens")
        codes = [encode(codec, corpus.wave(i)) for i in indices]
        _save_ragged(path, [frames.T for frames in codes])
    return [frames.T for frames in _load_ragged(path)]


@torch.no_grad()
def encode(codec: EncodecModel, wave: NDArray[np.float32]) -> NDArray[np.int64]:
    """Codec frames of a wave [samples]; shape [codebooks, samples / 320]."""
    latents = codec.encoder(torch.from_numpy(wave)[None, None].to(codec.device))
    return codec.quantizer.encode(latents)[:, 0].cpu().numpy()


@torch.no_grad()
def decode(codec: EncodecModel, codes: NDArray[np.int64]) -> NDArray[np.float32]:
    """The sound of codec frames [codebooks or fewer, frames]; shape [320 * frames]."""
    latents = codec.quantizer.decode(torch.from_numpy(codes)[:, None].to(codec.device))
    return codec.decoder(latents)[0, 0].cpu().numpy()


def _save_ragged(path: Path, rows: list[NDArray[np.int64]]) -> None:
    np.savez_compressed(path, data=np.concatenate(rows).astype(np.int16), lengths=[len(row) for row in rows])


def _load_ragged(path: Path) -> list[NDArray[np.int64]]:
    with np.load(path) as saved:
        ends = np.cumsum(saved["lengths"])
        return np.split(saved["data"].astype(np.int64), ends[:-1])

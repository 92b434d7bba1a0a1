"""The two kinds of tokens that Bark's stages are trained on: semantic ones from MFCCs, and the codec's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from transformers import EncodecModel

from models.training.speech_codec import kmeans
from models.training.speech_data import SAMPLE_RATE, VOICES, Corpus
from models.training.speech_features import mfcc
from models.training.speech_model import SEMANTIC_VOCAB

_KMEANS_UTTERANCES = 2000


def semantic_features(wave: NDArray[np.float32]) -> Tensor:
    """MFCCs of two 20 ms frames side by side; wave [samples] -> [samples / 640, 26]."""
    frames = mfcc(torch.from_numpy(wave), SAMPLE_RATE)
    return frames.reshape(len(frames) // 2, -1)


@dataclass(frozen=True)
class SemanticTokenizer:
    """The k-means centre that a stretch of sound is nearest to, its voice's mean and scale taken out.

    Attributes:
        scales: By voice, mean and standard deviation of the features, each [26].
        centres: [SEMANTIC_VOCAB, 26].
    """

    scales: dict[str, tuple[Tensor, Tensor]]
    centres: Tensor

    @classmethod
    def fit(cls, corpus: Corpus, seed: int) -> SemanticTokenizer:
        """Fit to part of the corpus."""
        scales: dict[str, tuple[Tensor, Tensor]] = {}
        points: list[Tensor] = []
        for voice, indices in corpus.by_voice().items():
            share = indices[: _KMEANS_UTTERANCES // len(VOICES)]
            features = torch.cat([semantic_features(corpus.wave(index)) for index in share])
            scales[voice] = (features.mean(dim=0), features.std(dim=0))
            points.append((features - scales[voice][0]) / scales[voice][1])
        generator = torch.Generator().manual_seed(seed)
        return cls(scales, kmeans(torch.cat(points), SEMANTIC_VOCAB, generator, rounds=40))

    def __call__(self, wave: NDArray[np.float32], voice: str) -> NDArray[np.int64]:
        """Tokens at 25 a second of a wave [samples] in a known voice; shape [samples / 640]."""
        mean, scale = self.scales[voice]
        features = (semantic_features(wave) - mean) / scale
        return torch.cdist(features, self.centres).argmin(dim=1).numpy()


def semantic_tokens(corpus: Corpus, out: Path, seed: int) -> list[NDArray[np.int64]]:
    """Each utterance's semantic tokens; kept in `out` and read back if they are there."""
    path = out / "semantic_tokens.npz"
    if not path.exists():
        tokenizer = SemanticTokenizer.fit(corpus, seed)
        indices = track(range(len(corpus.utterances)), description="semantic tokens")
        tokens = [tokenizer(corpus.wave(i), corpus.utterances[i].voice) for i in indices]
        _save_ragged(path, tokens)
    return _load_ragged(path)


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

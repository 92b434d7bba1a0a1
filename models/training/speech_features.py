"""Mel spectra and MFCCs on torch: the codec's loss and the semantic tokens are both made of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mel_filters(n_fft: int, bands: int, sample_rate: int) -> Tensor:
    """Triangular filters, evenly spaced on the mel scale `2595 log10(1 + f / 700)` (O'Shaughnessy 1987).

    Returns:
        Weights of shape [n_fft // 2 + 1, bands]; each filter sums to about one.
    """
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    mels = torch.linspace(0, top, bands + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1)
    rising = (bins[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[None, 2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    filters = torch.clamp(torch.minimum(rising, falling), min=0)
    return filters / filters.sum(dim=0, keepdim=True).clamp(min=1e-6)


def magnitudes(wave: Tensor, n_fft: int, hop: int) -> Tensor:
    """Magnitude spectra under a Hann window; wave [batch, samples] -> [batch, n_fft // 2 + 1, frames]."""
    window = torch.hann_window(n_fft, device=wave.device)
    spectrum = torch.stft(wave, n_fft, hop, window=window, center=True, return_complex=True)
    # The bare magnitude has no gradient at zero, and digital silence is full of zeros.
    return torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9)

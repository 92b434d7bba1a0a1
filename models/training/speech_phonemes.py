"""Semantic tokens: which phoneme sounds, which third of it, in which voice.

Bark's own are clusters of a speech model's features. espeak-ng tells its phonemes, which is what such
clusters are after. The third tells the coarse stage where in a diphthong it is, and the voice keeps it from
changing its own when the prompt has left its window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NAMES = (
    "_ _: 0 3 3: ; @ @2 @L A: A@ D E I I# I2 N O2 O: O@ S T U U@ V a a# aI aI@ aU aa b d dZ e@ eI f g h "
    "i i: i@ i@3 j k l m n o@ oU p r r- s t t# t2 tS u: v w z"
)
PHONEMES = tuple(_NAMES.split())
"""espeak-ng's names of the phonemes that the vocabulary has in American English; `_` and `_:` are pauses."""

STATES = 3
"""Parts of a phoneme that have tokens of their own."""

BLOCK = len(PHONEMES) * STATES
"""Tokens of one voice."""

_INDEX = {name: index for index, name in enumerate(PHONEMES)}


def phoneme_index(name: str) -> int:
    """The phoneme's place in `PHONEMES`; one that is not there counts as its longest known beginning."""
    while name and name not in _INDEX:
        name = name[:-1]
    return _INDEX[name or "_"]


def phoneme_tokens(
    phonemes: Sequence[tuple[int, str]], samples: int, hop: int, voice_index: int
) -> NDArray[np.int64]:
    """One token for every `hop` samples.

    Args:
        phonemes: First sample and name of each, in order.
        samples: Length of the sound, a multiple of `hop`.
        hop: Samples in a token.
        voice_index: The voice's place among the voices.

    Returns:
        Shape [samples / hop]. A token is of the phoneme in its middle; a phoneme too short to be in any
        token's middle takes a token from a neighbour that has another, so that none is lost.
    """
    starts = np.array([0, *(max(0, at) for at, _ in phonemes)])
    ends = np.append(starts[1:], samples).clip(max=samples)
    kinds = np.array([phoneme_index("_"), *(phoneme_index(name) for _, name in phonemes)])
    middles = (np.arange(samples // hop) + 0.5) * hop
    owner = np.searchsorted(starts, middles, side="right") - 1
    for index in np.flatnonzero(ends > starts):
        if (owner == index).any() or not index:
            continue
        nearest = min(len(owner) - 1, int((starts[index] + ends[index]) / 2 // hop))
        if np.sum(owner == owner[nearest]) > 1:
            owner[nearest] = index
    lengths = np.maximum(ends - starts, 1)
    states = np.clip((middles - starts[owner]) / lengths[owner] * STATES, 0, STATES - 1).astype(np.int64)
    return voice_index * BLOCK + kinds[owner] * STATES + states

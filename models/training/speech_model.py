"""The shape of the speech model: tokenizer, Bark's three stages and codec, and the folder they ship in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import ascii_lowercase

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from transformers import (
    BarkCoarseConfig,
    BarkConfig,
    BarkFineConfig,
    BarkModel,
    BarkSemanticConfig,
    EncodecConfig,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from models.training.speech_data import MAX_SEMANTIC, SAMPLE_RATE, VOICES
from models.training.speech_phonemes import BLOCK
from models.training.speech_text import MAX_WORDS, PUNCTUATION, WORDS

SEMANTIC_VOCAB = len(VOICES) * BLOCK
SEMANTIC_EOS = SEMANTIC_VOCAB  # Bark pads with its end token, so both are this id
TEXT_OFFSET = SEMANTIC_VOCAB + 1
MAX_TEXT = 32
"""Text positions of the semantic stage; Bark adds the semantic history to the same positions."""

CODEBOOK_SIZE = 256
CODEBOOKS = 4
COARSE_CODEBOOKS = 2
COARSE_PAD = SEMANTIC_VOCAB + COARSE_CODEBOOKS * CODEBOOK_SIZE
COARSE_INFER = COARSE_PAD + 1
COARSE_SEMANTIC = 40
"""Semantic tokens a coarse window sees: 20 of history, 15 that it turns into sound, 5 to look ahead."""

COARSE_HISTORY = 80  # coarse tokens: 0.8 s
COARSE_WINDOW = 60
FINE_WINDOW = 256
FINE_HISTORY = 128
PROMPT_SEMANTIC = 10
PROMPT_FRAMES = 20
"""A voice preset: 10 semantic tokens and the 20 codec frames (0.4 s) that sound with them."""

_PAD, _UNKNOWN = "[PAD]", "[UNK]"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level WordPiece: one token a word; an unknown word falls into letters (`c ##a ##t`)."""
    pieces = [_PAD, _UNKNOWN, *PUNCTUATION, *WORDS, *(f"##{letter}" for letter in ascii_lowercase)]
    model = WordPiece(
        {piece: i for i, piece in enumerate(pieces)}, unk_token=_UNKNOWN, max_input_chars_per_word=64
    )
    tokenizer = Tokenizer(model)
    # Longer pauses than a comma's do not occur inside an utterance.
    same_pause = [normalizers.Replace(mark, ",") for mark in ";:"]
    lower = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.normalizer = normalizers.Sequence([lower, *same_pause])  # type: ignore[assignment]  # untyped property
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]  # untyped property
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=_PAD, unk_token=_UNKNOWN, model_max_length=MAX_TEXT
    )


def text_pad_id(tokens: int) -> int:
    """The semantic stage's id for padded text, above the tokenizer's `tokens` ids."""
    return TEXT_OFFSET + tokens


def build_config(tokens: int) -> BarkConfig:
    """The architecture, for a tokenizer of `tokens` ids. About 3.3M parameters."""
    infer = text_pad_id(tokens) + 1
    semantic = BarkSemanticConfig(
        block_size=MAX_TEXT + 1 + MAX_SEMANTIC + 3,
        input_vocab_size=infer + 1,
        output_vocab_size=SEMANTIC_VOCAB
        + 4,  # a few above the end token: Bark suppresses them, and needs some
        num_layers=4,
        num_heads=4,
        hidden_size=128,
        bias=False,
    )
    coarse = BarkCoarseConfig(
        block_size=COARSE_SEMANTIC + 1 + COARSE_HISTORY + COARSE_WINDOW + 3,
        input_vocab_size=COARSE_INFER + 1,
        # Exactly: Bark's mask for the second codebook leaves everything above it open.
        output_vocab_size=COARSE_PAD,
        num_layers=4,
        num_heads=4,
        hidden_size=128,
        bias=False,
    )
    fine = BarkFineConfig(
        block_size=FINE_WINDOW,
        # Heads are tied to the embeddings, so the pad id counts as an output too.
        input_vocab_size=CODEBOOK_SIZE + 1,
        output_vocab_size=CODEBOOK_SIZE + 1,
        num_layers=3,
        num_heads=4,
        hidden_size=128,
        bias=False,
        n_codes_total=CODEBOOKS,
        n_codes_given=1,
    )
    codec = EncodecConfig(
        sampling_rate=SAMPLE_RATE,
        hidden_size=32,
        num_filters=16,
        upsampling_ratios=[10, 8, 4],
        num_lstm_layers=1,
        use_causal_conv=False,
        use_conv_shortcut=False,
        codebook_size=CODEBOOK_SIZE,
        target_bandwidths=[CODEBOOKS * 50 * 8 / 1000],
    )
    return BarkConfig(
        semantic_config=semantic,
        coarse_acoustics_config=coarse,
        fine_acoustics_config=fine,
        codec_config=codec,
    )


def build_generation_config(tokens: int) -> GenerationConfig:
    """How `BarkModel.generate` runs the stages: greedy unless asked otherwise.

    A plain `GenerationConfig` with the stages as dictionaries, which is what `BarkModel.generate` unpacks;
    `BarkGenerationConfig` itself cannot be saved.
    """
    return GenerationConfig(
        semantic_config={
            "eos_token_id": SEMANTIC_EOS,
            "pad_token_id": SEMANTIC_EOS,
            "max_new_tokens": MAX_SEMANTIC + 2,
            "text_encoding_offset": TEXT_OFFSET,
            "text_pad_token": text_pad_id(tokens),
            "semantic_infer_token": text_pad_id(tokens) + 1,
            "semantic_vocab_size": SEMANTIC_VOCAB,
            "max_input_semantic_length": MAX_TEXT,
            "semantic_rate_hz": 25,
        },
        coarse_acoustics_config={
            "coarse_semantic_pad_token": COARSE_PAD,
            "coarse_infer_token": COARSE_INFER,
            "pad_token_id": COARSE_PAD,
            "coarse_rate_hz": 50,
            "n_coarse_codebooks": COARSE_CODEBOOKS,
            "max_coarse_input_length": COARSE_SEMANTIC,
            "max_coarse_history": COARSE_HISTORY,
            "sliding_window_len": COARSE_WINDOW,
        },
        fine_acoustics_config={
            "max_fine_history_length": FINE_HISTORY,
            "max_fine_input_length": FINE_WINDOW,
            "n_fine_codebooks": CODEBOOKS,
        },
        sample_rate=SAMPLE_RATE,
        codebook_size=CODEBOOK_SIZE,
    )


Preset = Mapping[str, NDArray[np.int64]]
"""A voice: `semantic_prompt` [10], `coarse_prompt` [2, 20], `fine_prompt` [4, 20]."""


def make_preset(semantic: NDArray[np.int64], codes: NDArray[np.int64]) -> Preset:
    """The voice preset cut from an utterance's last tokens.

    Args:
        semantic: The utterance's semantic tokens, shape [tokens].
        codes: Its codec frames, shape [codebooks, 2 * tokens].
    """
    frames = codes[:, -PROMPT_FRAMES:]
    return {
        "semantic_prompt": semantic[-PROMPT_SEMANTIC:],
        "coarse_prompt": frames[:COARSE_CODEBOOKS],
        "fine_prompt": frames,
    }


def save_folder(folder: Path, model: BarkModel, presets: Mapping[str, Preset]) -> None:
    """Write the model, its tokenizer, voices and vocabulary in the hub's layout, weights in fp16."""
    tokenizer = build_tokenizer()
    model.generation_config = build_generation_config(len(tokenizer))
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    voices = folder / "speaker_embeddings"
    voices.mkdir(exist_ok=True)
    paths: dict[str, object] = {"repo_or_path": "tiny-bark"}  # the processor puts the folder's own path here
    for name, preset in presets.items():
        paths[name] = {key: f"{voices.name}/{name}_{key}.npy" for key in preset}
        for key, tokens in preset.items():
            np.save(voices / f"{name}_{key}.npy", tokens.astype(np.int64), allow_pickle=False)
    _write_json(folder / "speaker_embeddings_path.json", paths)
    vocabulary = {"words": list(WORDS), "punctuation": PUNCTUATION, "max_words": MAX_WORDS}
    _write_json(folder / "vocabulary.json", vocabulary)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")

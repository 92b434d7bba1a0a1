"""What a Bark checkpoint fixes: token ids, lengths and sampling defaults, read from its own configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers import BarkConfig, GenerationConfig
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkFineGenerationConfig,
    BarkSemanticGenerationConfig,
)

DEFAULT_TOP_K = 50
"""What transformers' `generate` samples from where a checkpoint does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a stage's next token is drawn; the temperature is the row's own."""

    top_k: int
    """0: from all tokens."""
    top_p: float
    min_eos_p: float | None = None
    """The end is chosen as soon as it is likelier than this (semantic stage only)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticRules:
    vocab_size: int
    """Tokens 0 to this less 1 are speech."""
    end_token: int
    """Ends the utterance; it also pads the voice's history."""
    text_offset: int
    text_pad_token: int
    infer_token: int
    max_text: int
    """Text tokens a prompt holds; it is always padded to exactly this many."""
    max_tokens: int
    """Semantic tokens an utterance has at most: what bounds its sound."""
    rate_hz: float
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class CoarseRules:
    pad_token: int
    infer_token: int
    rate_hz: float
    codebooks: int
    max_semantic: int
    """Semantic tokens a window reads; shorter ones are padded to it."""
    max_history: int
    """Coarse tokens a window reads."""
    window: int
    """Coarse tokens a window writes."""
    masked_token: int | None
    """A prompt token that transformers masks out: it infers a mask where the stage names a `pad_token_id`."""
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class FineRules:
    max_history: int
    max_input: int
    codebooks: int
    temperature: float
    """0: the likeliest. Bark's own code takes 1.0 for that as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    semantic: SemanticRules
    coarse: CoarseRules
    fine: FineRules
    codebook_size: int
    sample_rate: int
    """In Hz."""

    @property
    def coarse_per_semantic(self) -> float:
        """Coarse tokens, all codebooks counted, that stand for one semantic token."""
        return self.coarse.rate_hz / self.semantic.rate_hz * self.coarse.codebooks

    @property
    def max_semantic_history(self) -> int:
        """Semantic tokens from the past that a coarse window reads."""
        return math.floor(self.coarse.max_history / self.coarse_per_semantic)

    @property
    def max_seconds(self) -> float:
        """The longest sound of one utterance."""
        return self.semantic.max_tokens / self.semantic.rate_hz


def read_rules(config: BarkConfig, generation: GenerationConfig) -> Rules:
    """The rules of a checkpoint; what its generation configuration leaves out has transformers' defaults.

    Raises:
        ValueError: the stages do not fit together.
    """
    semantic = BarkSemanticGenerationConfig(**_section(generation, "semantic_config"))
    coarse = BarkCoarseGenerationConfig(**_section(generation, "coarse_acoustics_config"))
    fine = BarkFineGenerationConfig(**_section(generation, "fine_acoustics_config"))
    block: dict[str, Any] = {
        "semantic": _part(config, "semantic_config").block_size,
        "coarse": _part(config, "coarse_acoustics_config").block_size,
    }
    fine_temperature = fine.temperature
    rules = Rules(
        semantic=SemanticRules(
            vocab_size=semantic.semantic_vocab_size,
            end_token=semantic.semantic_pad_token,
            text_offset=semantic.text_encoding_offset,
            text_pad_token=semantic.text_pad_token,
            infer_token=semantic.semantic_infer_token,
            max_text=semantic.max_input_semantic_length,
            # The last token is not read again, so the prompt and all others must have a position.
            max_tokens=min(semantic.max_new_tokens, block["semantic"] - semantic.max_input_semantic_length),
            rate_hz=semantic.semantic_rate_hz,
            sampling=_sampling(semantic, min_eos_p=semantic.min_eos_p),
        ),
        coarse=CoarseRules(
            pad_token=coarse.coarse_semantic_pad_token,
            infer_token=coarse.coarse_infer_token,
            rate_hz=coarse.coarse_rate_hz,
            codebooks=coarse.n_coarse_codebooks,
            max_semantic=coarse.max_coarse_input_length,
            max_history=coarse.max_coarse_history,
            window=coarse.sliding_window_len,
            masked_token=coarse.pad_token_id,
            sampling=_sampling(coarse),
        ),
        fine=FineRules(
            max_history=fine.max_fine_history_length,
            max_input=fine.max_fine_input_length,
            codebooks=fine.n_fine_codebooks,
            temperature=0.0 if fine_temperature is None or fine_temperature == 1.0 else fine_temperature,
        ),
        codebook_size=getattr(generation, "codebook_size", 1024),
        sample_rate=getattr(generation, "sample_rate", 24_000),
    )
    _check(rules, block["coarse"])
    return rules


def _check(rules: Rules, coarse_block_size: int) -> None:
    coarse = rules.coarse
    if coarse.codebooks != 2 or coarse.window % 2 or coarse.max_history % 2:
        raise ValueError("Bark's coarse stage writes two codebooks in turn: window and history must be even")
    if coarse.max_semantic + 1 + coarse.max_history + coarse.window - 1 > coarse_block_size:
        raise ValueError("a coarse window does not fit the block_size of its stage")
    if rules.semantic.max_tokens < 1 or rules.fine.codebooks < coarse.codebooks:
        raise ValueError("the generation configuration leaves a stage nothing to write")


def _section(generation: GenerationConfig, name: str) -> dict[str, Any]:
    section: Any = getattr(generation, name, None)
    if section is None:
        return {}
    return dict(section) if isinstance(section, dict) else section.to_dict()


def _part(config: BarkConfig, name: str) -> Any:
    return getattr(config, name)


def _sampling(stage: GenerationConfig, min_eos_p: float | None = None) -> Sampling:
    return Sampling(
        top_k=DEFAULT_TOP_K if stage.top_k is None else stage.top_k,
        top_p=1.0 if stage.top_p is None else stage.top_p,
        min_eos_p=min_eos_p or None,
    )

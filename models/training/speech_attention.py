"""Attention in training: a faster kernel; and starts that know what is when, and what is alike."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.bark import BarkCoarseModel
from transformers.models.bark.modeling_bark import BarkCausalModel, BarkSelfAttention

from models.training.speech_data import VOICES
from models.training.speech_model import COARSE_CODEBOOKS, COARSE_SEMANTIC
from models.training.speech_phonemes import PHONEMES, STATES


def _fused(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    if attention_mask is not None:
        raise ValueError("training batches are padded on the right of a causal model: they need no mask")
    # In fp32 even under autocast: the CPU's kernel is half as fast in bf16.
    made = functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=True)
    return made.to(value.dtype), None


@contextmanager
def fused_attention(model: nn.Module) -> Generator[None]:
    """Let the model's causal attention layers use torch's fused kernel, the same function, inside the block.

    transformers has Bark's eager attention only, which is a third of a training step on CPU.
    """
    layers = [
        module for module in model.modules() if isinstance(module, BarkSelfAttention) and module.is_causal
    ]
    for layer in layers:
        layer.__dict__["_attn"] = _fused
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["_attn"]


@contextmanager
def headless(model: BarkCausalModel) -> Generator[nn.Linear]:
    """Let the model return what its head reads, inside the block: most positions need no head at all."""
    head = model.lm_head
    model.__dict__["lm_head"] = nn.Identity()  # in front of the registered one, which stays where it is
    try:
        yield head
    finally:
        del model.__dict__["lm_head"]


@torch.no_grad()
def align_positions(model: BarkCoarseModel) -> None:
    """Start the coarse stage with first-layer heads that look at the semantic tokens of now, next and before.

    Left to itself it spends hundreds of steps at the entropy of its own past before it finds that coarse
    token i belongs to semantic token i / 4. So the position embeddings begin as sinusoids of the time that a
    position is about (Vaswani et al. 2017), in the same units on both sides; shifting them in time is a
    rotation, which is what the heads' queries do. All of it stays trainable.
    """
    ratio = 2 * COARSE_CODEBOOKS
    parameters = dict(model.named_parameters())
    positions = parameters["position_embeds_layer.weight"]
    head_size = model.config.hidden_size // model.config.num_heads
    waves = (head_size - 2) // 2
    semantic = ratio * torch.arange(COARSE_SEMANTIC) + (ratio - 1) / 2
    # The position after the window (the infer token) predicts coarse token 0. One more, because histories
    # come with a frame (two tokens) dropped or without: the middle of both.
    coarse = torch.arange(len(positions) - COARSE_SEMANTIC) + 1.0
    time = torch.cat([semantic, coarse])
    rates = 2 * math.pi / torch.logspace(math.log10(6), math.log10(600), waves)
    size = 3 * model.config.initializer_range
    positions[:, :waves] = size * torch.sin(time[:, None] * rates)
    positions[:, waves : 2 * waves] = size * torch.cos(time[:, None] * rates)
    # A constant to ask with, a mark of the semantic side to answer with: else coarse tokens find themselves.
    ask, answer = 2 * waves, 2 * waves + 1
    positions[:, ask] = 2 * size
    positions[:COARSE_SEMANTIC, answer] = 2 * size
    positions[COARSE_SEMANTIC:, answer] = -2 * size
    weight = parameters["layers.0.attn.att_proj.weight"]
    sines, cosines = torch.arange(waves), torch.arange(waves, 2 * waves)
    for head, shift in enumerate((0, ratio, -ratio)):
        query, key = head * head_size, model.config.hidden_size + head * head_size
        turned_cos, turned_sin = torch.cos(rates * shift), torch.sin(rates * shift)
        weight[query + sines, sines] = turned_cos
        weight[query + sines, cosines] = turned_sin
        weight[query + cosines, cosines] = turned_cos
        weight[query + cosines, sines] = -turned_sin
        weight[key + sines, sines] = 1.0
        weight[key + cosines, cosines] = 1.0
        weight[query + ask, ask] = 1.0
        weight[key + ask, answer] = 1.0


@torch.no_grad()
def alike(rows: Tensor) -> None:
    """Start the semantic tokens' rows [SEMANTIC_VOCAB, hidden] as sums of a voice, a phoneme and a third.

    So that what is learned of one voice's phoneme is learned of the others' at first.
    """
    parts = rows.unflatten(0, (len(VOICES), len(PHONEMES), STATES)).clone()
    voice, phoneme, state = parts[:, :1, :1], parts[:1, :, :1], parts[:1, :1, :]
    rows.copy_(((voice + phoneme + 0.5 * state + 0.3 * parts) / 1.5).flatten(0, 2))

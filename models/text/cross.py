"""What T5's decoder has beside a cache of its own: keys and values of prompts, and a bias in the scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from models.text.slots import READ_STEP, SlotCache

ATTENTION = "triptych_biased"


class CrossCache:
    """Keys and values of the encoded prompts, a slot each: [slots, heads, length, head size] a layer."""

    def __init__(self, model: Any, slots: int) -> None:
        self._layers = [block.layer[1].EncDecAttention for block in model.decoder.block]
        self._cache: Any = DynamicCache()
        weight = self._layers[0].o.weight
        self.mask = torch.empty(0, device=weight.device, dtype=model.dtype)
        # Only its being there tells T5 that it attends to an encoder; what it attends to is in the cache.
        self.states = torch.zeros(slots, 1, model.config.d_model, device=weight.device, dtype=model.dtype)
        self._slots = slots
        self._length = 0

    @torch.inference_mode()
    def ensure(self, tokens: int) -> None:
        """Room for prompts of so many tokens. Raises `torch.OutOfMemoryError`, nothing lost."""
        if tokens <= self._length:
            return
        length = -(-tokens // READ_STEP) * READ_STEP
        first = self._layers[0]
        shape = (self._slots, first.n_heads, length, first.key_value_proj_dim)
        made: Any = DynamicCache()
        for i in range(len(self._layers)):
            keys, values = (self.states.new_zeros(shape) for _ in range(2))
            if self._length:
                keys[:, :, : self._length] = self._cache.layers[i].keys
                values[:, :, : self._length] = self._cache.layers[i].values
            made.update(keys, values, i)
        mask = self.states.new_full((self._slots, 1, 1, length), float("-inf"))
        mask[..., 0] = 0  # a slot of no row sees something, so that its numbers stay finite
        if self._length:
            mask[..., : self._length] = self.mask
        self._cache, self.mask, self._length = made, mask, length

    def write(self, slot: int, states: Tensor) -> None:
        """`states` [1, tokens, width], as the encoder gives them."""
        tokens = states.shape[1]
        for layer, place in zip(self._layers, self._cache.layers, strict=True):
            for room, projection in ((place.keys, layer.k), (place.values, layer.v)):
                heads = projection(states).view(tokens, -1, layer.key_value_proj_dim).transpose(0, 1)
                room[slot, :, :tokens] = heads
        self.mask[slot] = float("-inf")
        self.mask[slot, ..., :tokens] = 0

    def beside(self, self_cache: SlotCache) -> EncoderDecoderCache:
        both = EncoderDecoderCache(self_cache, self._cache)
        both.is_updated = dict.fromkeys(range(len(self._layers)), True)
        return both


def biased_attention(
    module: torch.nn.Module,  # noqa: ARG001 - as transformers calls it
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    position_bias: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention with T5's bias in the scores; [rows, heads, tokens, dim] -> [rows, tokens, heads, dim]."""
    added = position_bias.to(query.dtype)
    added = added if attention_mask is None else added + attention_mask
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=added, scale=scaling)
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, biased_attention)

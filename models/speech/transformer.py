"""Bark's transformer over a bank of slots: every row at its own position, in one forward.

The weights are those of transformers' `BarkModel`; only the forward is ours, because transformers'
cache keeps all rows at one length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, nn

from models.speech.recording import Recorder, cuda_graph

KEY_STEP = 64
"""Keys are read in multiples of this. With whole vectors, a longer masked tail changes no bit of a row."""
PADDING = 16
"""Positions beyond a slot's length: room for the scratch one, and no two slots a power of two apart."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One block's weights, taken out of its modules: attribute look-ups cost more than the arithmetic."""

    norm_1: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor]
    norm_2: Callable[[Tensor], Tensor]
    up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = hidden + self.out(attended)
        return hidden + self.down(F.gelu(self.up(self.norm_2(hidden))))


def take_layers(blocks: nn.ModuleList) -> list[Layer]:
    """The weights of a `BarkModel` stage's blocks."""
    return [_take_layer(block) for block in blocks]


def linears_of(blocks: nn.ModuleList) -> list[nn.Module]:
    """The layers of blocks that bitsandbytes may have in their place."""
    found: list[nn.Module] = []
    for block in blocks:
        each: Any = block
        found += [each.attn.att_proj, each.attn.out_proj, each.mlp.in_proj, each.mlp.out_proj]
    return found


def _take_layer(block: Any) -> Layer:
    return Layer(
        norm_1=take_norm(block.layernorm_1),
        project=take_linear(block.attn.att_proj),
        out=take_linear(block.attn.out_proj),
        norm_2=take_norm(block.layernorm_2),
        up=take_linear(block.mlp.in_proj),
        down=take_linear(block.mlp.out_proj),
    )


def take_norm(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda hidden: F.layer_norm(hidden, shape, weight, bias, eps)


def take_linear(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    """The product with a layer's weights: [rows, in] to [rows, out]. One that is quantized does it itself."""
    if type(linear) is not nn.Linear:
        return linear
    turned = _turned(linear.weight)
    linear.weight = nn.Parameter(turned.t(), requires_grad=False)  # or they would be in memory twice
    return _product(turned, linear.bias)


def multiply(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """The product with weights [out, in]: [rows, in] to [rows, out]."""
    return _product(_turned(weight), None)


def _turned(weight: Tensor) -> Tensor:
    """With few rows, CPUs take half the time for weights kept so."""
    return weight.detach().t().contiguous()


def _product(turned: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    if bias is None:
        return lambda hidden: torch.mm(hidden, turned)
    return lambda hidden: torch.addmm(bias, hidden, turned)


def attend(projected: Tensor, heads: int, *, causal: bool) -> Tensor:
    """Attention of one sequence to itself: projections [length, 3 * width] to [length, width]."""
    length = projected.shape[0]
    query, key, value = projected.view(1, length, 3, heads, -1).transpose(1, 3).unbind(2)
    attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return attended.transpose(1, 2).reshape(length, -1)


class SlotBank:
    """The keys and values of `slots` rows, `length` positions each, with one scratch position a row.

    A slot belongs to one row at a time. Positions are written before they are read, so a slot needs no
    clearing, and a step that is run again writes the same once more.
    """

    def __init__(self, layers: int, slots: int, length: int, heads: int, like: Tensor) -> None:
        self.slots = slots
        self.heads = heads
        self.length = -(-length // KEY_STEP) * KEY_STEP
        """Positions a slot, rounded up to whole steps; the scratch position is the one after them."""
        width = like.shape[-1] // heads
        # Zeros, not what was there before: a masked NaN would still spread.
        self.memory = [like.new_zeros(2, slots, heads, self.length + PADDING, width) for _ in range(layers)]
        """A layer's keys, then its values: [2, slots, heads, positions, width of a head]."""
        self.flat = [memory.view(-1, width) for memory in self.memory]
        """The same by single vectors, for writing."""
        self.key_counts = range(KEY_STEP, self.length + 1, KEY_STEP)
        """How many positions a decode may read."""
        self._views: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}

    def read(self, slots: int, keys: int) -> list[tuple[Tensor, Tensor]]:
        """Of the first `slots` slots, a layer each: keys [slots * heads, width, keys], values turned."""
        views = self._views.get((slots, keys))
        if views is None:
            views = [self._view(memory, slots * self.heads, keys) for memory in self.memory]
            self._views[slots, keys] = views
        return views

    def _view(self, memory: Tensor, count: int, keys: int) -> tuple[Tensor, Tensor]:
        both = memory.view(2, self.slots * self.heads, *memory.shape[3:])[:, :count, :keys]
        return both[0].transpose(1, 2), both[1]

    def places(self, positions: Tensor) -> Tensor:
        """Rows of `flat` for the slots' `positions`, [turns, slots]: [turns, slots * 2 * heads]."""
        part = torch.arange(2)[:, None] * self.slots * self.heads + torch.arange(self.heads)
        first = torch.arange(self.slots)[:, None, None] * self.heads + part
        return (first * (self.length + PADDING) + positions[:, :, None, None]).flatten(1)


class CausalTransformer:
    """The semantic or the coarse stage: fills a slot with a prompt, then advances all slots together."""

    def __init__(self, module: Any) -> None:
        self.heads: int = module.config.num_heads
        self.width: int = module.config.hidden_size
        self.embedding: Tensor = module.input_embeds_layer.weight
        self.positions: Tensor = module.position_embeds_layer.weight
        self.head: Tensor = module.lm_head.weight
        self._layers = take_layers(module.layers)
        self._norm = take_norm(module.layernorm_final)
        # A quantized layer may ask the device something in its forward, which cannot be recorded.
        plain = all(type(linear) is nn.Linear for linear in linears_of(module.layers))
        self.recorder: Recorder | None = cuda_graph if plain and self.device.type == "cuda" else None

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def make_bank(self, slots: int, length: int) -> SlotBank:
        length = min(length, self.positions.shape[0])
        return SlotBank(len(self._layers), slots, length, self.heads, self.embedding)

    def prefill(self, bank: SlotBank, slot: int, embedded: Tensor) -> None:
        """Writes a prompt's keys and values into positions 0 and on of a slot.

        Always one prompt a forward, at its own length: so its bits are the same in any company. What comes
        out at its end is not computed: the prompt's last token is left to the first `decode`.

        Args:
            bank: The slots.
            slot: The row's.
            embedded: The prompt's token embeddings, [length, width].
        """
        length = embedded.shape[0]
        hidden = embedded + self.positions[:length]
        for layer, memory in zip(self._layers, bank.memory, strict=True):
            projected = layer.project(layer.norm_1(hidden))
            kept = projected[:, self.width :].view(length, 2, self.heads, -1)
            memory[:, slot, :, :length] = kept.permute(1, 2, 0, 3)
            if layer is not self._layers[-1]:
                hidden = layer.after_attention(hidden, attend(projected, self.heads, causal=True))

    def decode(self, bank: SlotBank, tokens: Tensor, plan: DecodePlan, turn: int) -> Tensor:
        """Advances every slot by one token.

        Linear layers always see all slots, so that a row's bits do not depend on how many are in use;
        attention, which treats rows one by one, reads only the slots up to the last one in use.

        Args:
            bank: The slots.
            tokens: Each slot's last token, [slots].
            plan: Where the slots stand.
            turn: Which token of the plan this is.

        Returns:
            Hidden states after the last norm, [slots, width].
        """
        used = plan.used
        hidden = F.embedding(tokens, self.embedding) + plan.positions[turn]
        mask, index = plan.masks[turn], plan.writes[turn]
        attended, width = plan.attended, self.width // self.heads
        for layer, memory, (keys, values) in zip(
            self._layers, bank.flat, bank.read(used, plan.keys), strict=True
        ):
            projected = layer.project(layer.norm_1(hidden))
            memory.index_copy_(0, index, projected[:, self.width :].reshape(-1, width))
            query = projected[:used, : self.width].reshape(-1, 1, width)
            # Not `scaled_dot_product_attention`: with one query a row it takes 2.5 times as long, and on two
            # threads its bits depend on the number of rows.
            scores = torch.baddbmm(mask, query, keys, alpha=width**-0.5)
            attended[:used] = torch.bmm(torch.softmax(scores, -1), values).view(used, self.width)
            hidden = layer.after_attention(hidden, attended)
        return self._norm(hidden)

    def plan(self, bank: SlotBank, places: dict[int, int], turns: int, *, writes: bool = True) -> DecodePlan:
        """Prepares `turns` decodes of the slots in `places`, from the position that each maps to.

        Without `writes` what they make goes to the slots' scratch positions.
        """
        device, limit = self.device, self.positions.shape[0] - 1
        used = max(places) + 1 if self.recorder is None else bank.slots
        starts = torch.tensor([places.get(slot, 0) for slot in range(bank.slots)])
        active = torch.tensor([writes and slot in places for slot in range(bank.slots)])
        # A row that ends within the step runs on to its end for nothing, never past its slot.
        positions = (starts[None] + torch.arange(turns)[:, None]).clamp_(max=limit)
        keys = min(-(-(int(positions.max()) + 1) // KEY_STEP) * KEY_STEP, bank.length)
        allowed = torch.arange(keys)[None, None] <= positions[:, :used, None]
        masks = torch.zeros(allowed.shape, dtype=self.embedding.dtype).masked_fill_(~allowed, -torch.inf)
        return DecodePlan(
            used=used,
            keys=keys,
            positions=F.embedding(positions.to(device), self.positions),
            masks=masks.repeat_interleave(bank.heads, 1)[:, :, None].to(device),
            writes=bank.places(torch.where(active, positions, bank.length)).to(device),
            attended=self.embedding.new_zeros(bank.slots, self.width),
        )


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """What several decodes in a row need, made once for all of them."""

    used: int
    """Slots up to and with the last one in use."""
    keys: int
    """Positions that attention reads."""
    positions: Tensor
    """Position embeddings, [turns, slots, width]."""
    masks: Tensor
    """0 where a row may look, else minus infinity: [turns, used * heads, 1, keys]."""
    writes: Tensor
    """Vectors of the bank's memory that are written, [turns, slots * 2 * heads]."""
    attended: Tensor
    """Room for what attention gives, [slots, width]; zero for slots that are not in use."""

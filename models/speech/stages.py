"""Bark's four stages as forwards over rows: semantic, coarse, fine and codec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
from torch import Tensor, nn

from models.speech.generation import CoarseRules, Rules, Sampling, SemanticRules
from models.speech.recording import Recording
from models.speech.sampling import Temperatures, pick, pick_frames
from models.speech.transformer import CausalTransformer, SlotBank, attend, multiply, take_layers, take_norm


@dataclass(frozen=True, slots=True)
class Turn:
    """What one row brings into a decoding step."""

    slot: int
    last_token: int
    position: int
    """Of `last_token`, which is not in the slot yet."""
    temperature: float
    uniform: Sequence[float]
    """One random number for each token to come."""


@dataclass(frozen=True, slots=True)
class Head:
    """The allowed part of a stage's output: [rows, width] to scores [rows, tokens], from token `first_id`."""

    scores: Callable[[Tensor], Tensor]
    first_id: int


class TokenStage:
    """A stage that makes tokens one after another: the semantic one, or the coarse one."""

    def __init__(self, transformer: CausalTransformer, heads: Sequence[Head], sampling: Sampling) -> None:
        self.transformer = transformer
        self._heads = heads
        self._sampling = sampling
        self._recordings: dict[SlotBank, Recording] = {}

    def decode(self, bank: SlotBank, turns: Sequence[Turn], count: int) -> list[list[int]]:
        """Makes `count` tokens for each of `turns`; with several heads a row's next token is of the first.

        Returns:
            Token ids, [turns][count].
        """
        device = self.transformer.device
        by_slot = {turn.slot: turn for turn in turns}
        rows = [by_slot.get(slot) for slot in range(bank.slots)]
        plan = self.transformer.plan(bank, {turn.slot: turn.position for turn in turns}, count)
        temperatures = Temperatures.of([row.temperature if row else 0.0 for row in rows], device)
        nothing = [0.0] * count
        uniform = torch.tensor([row.uniform if row else nothing for row in rows], device=device).T
        tokens = torch.tensor([row.last_token if row else 0 for row in rows], device=device)
        recording = self.recording(bank)
        made: list[Tensor] = []
        for turn in range(count):
            head = self._heads[turn % len(self._heads)]
            if recording is None:
                hidden = self.transformer.decode(bank, tokens, plan, turn)
            else:
                hidden = recording.decode(tokens, plan, turn)
            tokens = pick(head.scores(hidden), temperatures, uniform[turn], self._sampling)
            if head.first_id:
                tokens = tokens + head.first_id
            made.append(tokens)
        by_row: list[list[int]] = torch.stack(made, 1).tolist()
        return [by_row[turn.slot] for turn in turns]

    def recording(self, bank: SlotBank) -> Recording | None:
        """Of the bank's decodes; None where nothing is recorded."""
        if self.transformer.recorder is None:
            return None
        if bank not in self._recordings:
            self._recordings[bank] = Recording(self.transformer, bank, self.transformer.recorder)
        return self._recordings[bank]


class SemanticStage(TokenStage):
    """Text to speech tokens. The end token has the id `rules.vocab_size` here, whatever the checkpoint's."""

    def __init__(self, module: Any, rules: SemanticRules) -> None:
        transformer = CausalTransformer(module)
        end = transformer.head[rules.end_token : rules.end_token + 1]
        weight = torch.cat([transformer.head[: rules.vocab_size], end])
        super().__init__(transformer, [Head(multiply(weight), 0)], rules.sampling)
        self._rules = rules

    def prefill(self, bank: SlotBank, slot: int, text: Tensor, history: Tensor | None) -> None:
        """Reads the prompt: text and the voice's own tokens are laid over each other.

        Args:
            bank: The slots.
            slot: The row's.
            text: Text token ids as the stage knows them, padded, [max_text].
            history: The voice's semantic tokens, [any length], or None.
        """
        rules, embedding = self._rules, self.transformer.embedding
        past = torch.full((rules.max_text,), rules.end_token)
        if history is not None:
            history = history[-rules.max_text :]
            past[: len(history)] = history
        device = embedding.device
        prompt = F.embedding(text.to(device), embedding) + F.embedding(past.to(device), embedding)
        self.transformer.prefill(bank, slot, prompt)


class CoarseStage(TokenStage):
    """Speech tokens to the codec's first two codebooks, in turn."""

    def __init__(self, module: Any, rules: Rules) -> None:
        transformer = CausalTransformer(module)
        first = rules.semantic.vocab_size
        second = first + rules.codebook_size
        even, odd = multiply(transformer.head[first:second]), multiply(transformer.head[second:])
        super().__init__(transformer, [Head(even, first), Head(odd, second)], rules.coarse.sampling)

    def prefill(self, bank: SlotBank, slot: int, prompt: Sequence[int]) -> None:
        """Reads a window's prompt, token ids [any length]."""
        embedding = self.transformer.embedding
        tokens = torch.tensor(prompt, device=embedding.device)
        self.transformer.prefill(bank, slot, F.embedding(tokens, embedding))


def bank_length(rules: SemanticRules | CoarseRules) -> int:
    """Positions that a stage's slot needs."""
    if isinstance(rules, SemanticRules):
        return rules.max_text + rules.max_tokens
    return rules.max_semantic + 1 + rules.max_history + rules.window


@dataclass(frozen=True, slots=True)
class FinePass:
    """One codebook of one window of one row."""

    codes: Tensor
    """The window's codes so far, [max_input, codebooks]; unwritten ones are `codebook_size`."""
    codebook: int
    """The one to write."""
    offset: int
    """The first frame to write."""
    temperature: float
    uniform: Tensor
    """A random number a frame, [max_input - offset]."""


class FineStage:
    """The codec's other codebooks, one after another, all frames of a window at once."""

    def __init__(self, module: Any, rules: Rules) -> None:
        config = module.config
        self._given: int = config.n_codes_given
        self._heads: int = config.num_heads
        self._embeddings: list[Tensor] = [layer.weight for layer in module.input_embeds_layers]
        self._scores = [multiply(head.weight[: rules.codebook_size]) for head in module.lm_heads]
        self._positions: Tensor = module.position_embeds_layer.weight[: rules.fine.max_input]
        self._layers = take_layers(module.layers)
        self._norm = take_norm(module.layernorm_final)

    def predict(self, fine: FinePass) -> Tensor:
        """The codes of a pass, [max_input - offset]."""
        codes = fine.codes.to(self._positions.device)
        # The sum of all codebooks up to and with the one to be written.
        hidden = self._positions
        for index in range(fine.codebook + 1):
            hidden = hidden + F.embedding(codes[:, index], self._embeddings[index])
        for layer in self._layers:
            attended = attend(layer.project(layer.norm_1(hidden)), self._heads, causal=False)
            hidden = layer.after_attention(hidden, attended)
        logits = self._scores[fine.codebook - self._given](self._norm(hidden[fine.offset :]))
        return pick_frames(logits, fine.temperature, fine.uniform.to(logits.device)).cpu()


class Codec:
    """EnCodec's decoder, in float32: it is a thousandth of the work, and half precision is heard."""

    def __init__(self, model: Any) -> None:
        self._model = model.float()
        for module in list(self._model.modules()):
            if nn.utils.parametrize.is_parametrized(module):
                # Weight norm would be worked out anew at every call.
                nn.utils.parametrize.remove_parametrizations(module, "weight")

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [codebooks, frames] to sound, float32 [samples] on the CPU.

        One row a call: convolutions give other bits in a batch, and the LSTM runs into padding.
        """
        device = next(self._model.parameters()).device
        embedded = self._model.quantizer.decode(codes[:, None].to(device))
        return self._model.decoder(embedded)[0, 0].cpu()

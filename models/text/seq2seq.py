"""Encoder-decoder models of the T5 kind on the step engine: rows of any age share a decoding step.

A row is *encoded* alone, then *decoded* with its neighbours. T5 has no positions but a bias by distance,
which transformers makes for one age of all rows; here each row has the bias of its own position.
Decode always runs all slots, so a row's numbers are the same in any company.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from jobs import Event, Result, TextJob
from models.protocol import Lane, ModelSpec, OutOfMemoryError
from models.text.adapters import Adapters
from models.text.chat import Prompter, end_tokens
from models.text.constraint import Grammars
from models.text.cross import ATTENTION, CrossCache
from models.text.row import Loras, Row, choose_next, make_row, take, text_result
from models.text.slots import READ_STEP, SlotCache, slot_mask
from models.text.weights import config_of, quantization_of

KINDS = ("t5", "mt5")
LENGTH = 512
"""The most tokens of a prompt, and of an answer, where the checkpoint sets none: what T5 was trained on."""


class Seq2Seq:
    """`models.protocol.Model` for `TextJob`s. Slots and lengths are fixed at load."""

    def __init__(self, spec: ModelSpec, model: Any, tokenizer: Any) -> None:
        config = model.config
        self.name = spec.name
        self.context = int(
            min(tokenizer.model_max_length, 16 * LENGTH) if tokenizer.model_max_length else LENGTH
        )
        self.prompter = Prompter(tokenizer, model=spec.name, context=self.context, apart=True)
        self._model = model
        self._adapters = Adapters(spec, model)
        self._device = torch.device(spec.device)
        self._start: int = config.decoder_start_token_id
        self._end_tokens = end_tokens(model.generation_config.to_dict(), tokenizer)
        self._grammars = Grammars(tokenizer, self._end_tokens, config.vocab_size)
        self._slots = spec.max_rows
        self._free = list(range(spec.max_rows))
        self._self_cache = SlotCache(
            config.num_decoder_layers, slots=spec.max_rows, length=READ_STEP, limit=self.context
        )
        self._cross = CrossCache(model, spec.max_rows)
        self._encode_lane = Lane(spec.name, "encode", (1,))
        self._decode_lane = Lane(spec.name, "decode", (spec.max_rows, 1))
        self._attention: Any = model.decoder.block[0].layer[0].SelfAttention
        self._buckets = int(config.relative_attention_num_buckets)
        self._distance = int(config.relative_attention_max_distance)

    # --- the verbs, in a row's order ------------------------------------------------------------------------

    def prepare(self, job: TextJob) -> Row:
        row = make_row(job, self.prompter.prompt(job), self.prompter, self._grammars)
        row.loras = self._adapters.load(job)
        return row

    def reserve(self, row: Row) -> bool:
        if not self._free:
            return False
        try:
            self._self_cache.ensure(row.max_tokens + 1)
            self._cross.ensure(len(row.prompt))
        except torch.OutOfMemoryError as error:
            if len(self._free) < self._slots:
                return False
            raise OutOfMemoryError from error
        if not self._adapters.acquire(row.loras):
            return False
        row.slot = self._free.pop()
        return True

    def lane(self, row: Row) -> Lane | None:
        if row.ended:
            return None
        return self._decode_lane if row.written else self._encode_lane

    def cost(self, row: Row) -> float:  # noqa: ARG002 - every row costs the same
        return 1

    def budget(self, lane: Lane) -> float:
        return lane.shape[0]

    def step(self, lane: Lane, rows: Sequence[Row]) -> Sequence[Sequence[Event]]:
        try:
            with torch.inference_mode():
                if lane == self._encode_lane:
                    for row in rows:
                        self._encode(row)
                    return [() for _ in rows]
                logits = self._decode(rows)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(f"a {lane.stage} step of {len(rows)} rows does not fit") from error
        chosen = choose_next(logits, rows, self.prompter.token_text)
        return [take(row, each, self._end_tokens) for row, each in zip(rows, chosen, strict=True)]

    def finish(self, row: Row) -> Result:
        return text_result(self.name, row)

    def release(self, row: Row) -> None:
        if row.slot is not None:
            self._adapters.release(row.loras)
            self._self_cache.clear(row.slot)
            self._free.append(row.slot)
            row.slot = None

    def warm_up(self) -> None:
        with torch.inference_mode():
            self._cross.ensure(1)
            self._decode([])

    # --- forwards -------------------------------------------------------------------------------------------

    def _encode(self, row: Row) -> None:
        with self._adapters.applied([row.loras]):
            states = self._model.encoder(input_ids=self._tensor([row.prompt])).last_hidden_state
            self._cross.write(self._slot(row), states)
        row.written = 1

    def _decode(self, rows: Sequence[Row]) -> Tensor:
        """One token of every slot -> logits [rows, vocabulary]; slots of no row run on padding."""
        ids = [self._start] * self._slots
        positions = [0] * self._slots
        write = [self._self_cache.spare] * self._slots
        loras: list[Loras] = [()] * self._slots
        for row in rows:
            slot, position = self._slot(row), len(row.tokens)
            ids[slot] = row.tokens[-1] if row.tokens else self._start
            positions[slot] = position
            write[slot] = slot * self._self_cache.length + position
            loras[slot] = row.loras
        read = self._self_cache.place(self._tensor(write), slots=None, longest=max(positions) + 1)
        places = self._tensor(positions)[:, None]
        bias = self._bias(places, read)
        self._attention.compute_bias = lambda *_, **__: bias
        with self._adapters.applied(loras):
            logits = self._model(
                encoder_outputs=(self._cross.states,),
                attention_mask=self._cross.mask,
                decoder_input_ids=self._tensor(ids)[:, None],
                decoder_attention_mask=slot_mask(
                    places, read, groups=1, window=None, dtype=self._model.dtype
                ),
                past_key_values=self._cross.beside(self._self_cache),
                use_cache=True,
            ).logits[:, -1]
        logits = logits[[self._slot(row) for row in rows]]
        if not bool(torch.isfinite(logits.amax(dim=-1)).all()):
            raise ArithmeticError(f"{self.name}: logits that are not finite")
        return logits

    def _bias(self, positions: Tensor, read: int) -> Tensor:
        """T5's bias by distance (Raffel et al., 2020), of each row's own position: [rows, heads, 1, read]."""
        distances = torch.arange(read, device=self._device) - positions
        buckets = self._attention._relative_position_bucket(
            distances, bidirectional=False, num_buckets=self._buckets, max_distance=self._distance
        )
        return self._attention.relative_attention_bias(buckets).transpose(1, 2)[:, :, None]

    def _slot(self, row: Row) -> int:
        if row.slot is None:
            raise RuntimeError(f"row {row.job.id} was not reserved")
        return row.slot

    def _tensor(self, numbers: Any) -> Tensor:
        return torch.tensor(numbers, device=self._device)


def load(spec: ModelSpec) -> Seq2Seq:
    """Raises `ValueError` for a checkpoint this engine cannot run (says why), `OSError` for a broken one."""
    config = config_of(spec)
    if config.model_type not in KINDS:
        raise ValueError(
            f"{spec.name} is of kind {config.model_type}; encoder-decoder models here are {', '.join(KINDS)}"
        )
    model = AutoModelForSeq2SeqLM.from_pretrained(
        spec.folder,
        config=config,
        local_files_only=True,
        use_safetensors=True,
        dtype=getattr(torch, spec.dtype),
        attn_implementation=ATTENTION,
        quantization_config=quantization_of(spec),
        device_map={"": spec.device},
    )
    tokenizer = AutoTokenizer.from_pretrained(spec.folder, local_files_only=True)
    return Seq2Seq(spec, model.eval(), tokenizer)

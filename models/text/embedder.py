"""Sentence-embedding checkpoints in sentence-transformers' layout: an encoder, a pooling, perhaps a norm."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from jobs import EmbedJob, EmbedResult, ErrorKind, JobError
from models.protocol import ModelSpec, OutOfMemoryError
from models.text.reader import Reader, most_tokens, portions
from models.text.weights import quantization_of

Pool = Callable[[Tensor, Tensor], Tensor]
"""States [texts, tokens, width] and a mask [texts, tokens] of zeros and ones -> [texts, width]."""


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def _max(states: Tensor, mask: Tensor) -> Tensor:
    return states.masked_fill(mask[..., None] == 0, float("-inf")).amax(dim=1)


def _last(states: Tensor, mask: Tensor) -> Tensor:
    return states[torch.arange(len(states)), mask.sum(dim=1).long() - 1]


POOLINGS: dict[str, Pool] = {
    "mean": _mean,
    "cls": lambda states, _: states[:, 0],
    "max": _max,
    "lasttoken": _last,
}
_OLD_NAMES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """What the checkpoint says about itself, beside its encoder."""

    encoder: Path
    pool: Pool = _mean
    normalized: bool = False
    limit: int | None = None
    """Tokens of a text."""
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    default_prompt: str | None = None


def read_layout(folder: Path) -> Layout:
    """A folder without modules.json is a plain encoder, whose states' mean is the vector.

    Raises `ValueError` for modules that are not known here.
    """
    own = _json(folder / "config_sentence_transformers.json")
    modules: Any = _json(folder / "modules.json")
    if not modules:
        return Layout(folder, prompts=own.get("prompts") or {}, default_prompt=own.get("default_prompt_name"))
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ValueError(f"modules {', '.join(kinds)}: known are Transformer, Pooling and Normalize, so")
    encoder, pooling = (folder / module["path"] for module in modules[:2])
    return Layout(
        encoder,
        pool=_pooling(_json(pooling / "config.json")),
        normalized="Normalize" in kinds,
        limit=_json(encoder / "sentence_bert_config.json").get("max_seq_length"),
        prompts=own.get("prompts") or {},
        default_prompt=own.get("default_prompt_name"),
    )


def _pooling(config: dict[str, Any]) -> Pool:
    modes = config.get("pooling_mode") or [new for old, new in _OLD_NAMES.items() if config.get(old)]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ValueError(f"pooling {', '.join(modes) or 'none'}: known is one of {', '.join(POOLINGS)}")
    if config.get("include_prompt") is False:
        raise ValueError("a pooling without the prompt (include_prompt: false) is not known")
    return POOLINGS[modes[0]]


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


class Embedder:
    """`models.protocol.WholeModel` for `EmbedJob`s. A row is its texts' ids."""

    def __init__(self, spec: ModelSpec, layout: Layout, model: Any, tokenizer: Any) -> None:
        self.name = spec.name
        self._layout = layout
        self._model = model
        self._device = torch.device(spec.device)
        self._padding: int = tokenizer.pad_token_id or 0
        self._prompts = {**layout.prompts, **spec.prompts}
        most = most_tokens(model.config, tokenizer, layout.limit)
        self._reader = Reader(tokenizer, model=spec.name, most=most)

    def prepare(self, job: EmbedJob) -> list[list[int]]:
        prompt = self._prompt(job.prompt_name)
        return self._reader.read([prompt + text for text in job.texts], truncate=job.truncate)

    def answer(self, rows: Sequence[list[list[int]]]) -> list[EmbedResult]:
        ids = [text for row in rows for text in row]
        vectors: list[tuple[float, ...]] = [()] * len(ids)
        try:
            for places in portions([len(text) for text in ids]):
                made = self._vectors([ids[place] for place in places])
                for place, vector in zip(places, made.tolist(), strict=True):
                    vectors[place] = tuple(vector)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(f"{len(ids)} texts do not fit") from error
        rest = iter(vectors)
        return [
            EmbedResult(
                model=self.name,
                vectors=tuple(next(rest) for _ in row),
                tokens=tuple(len(text) for text in row),
            )
            for row in rows
        ]

    def warm_up(self) -> None:
        self._vectors([[self._padding]])

    def _prompt(self, name: str | None) -> str:
        name = name or self._layout.default_prompt
        if name is None:
            return ""
        if name not in self._prompts:
            there = f"It has: {', '.join(self._prompts)}." if self._prompts else "It has none."
            message = f"{self.name} has no prompt '{name}'. {there}"
            raise JobError(ErrorKind.INVALID, message, param="prompt_name", code="unknown_prompt")
        return self._prompts[name]

    @torch.inference_mode()
    def _vectors(self, texts: Sequence[list[int]]) -> Tensor:
        longest = max(map(len, texts))
        ids = [text + [self._padding] * (longest - len(text)) for text in texts]
        mask = [[1] * len(text) + [0] * (longest - len(text)) for text in texts]
        seen = torch.tensor(mask, device=self._device)
        states = self._model(input_ids=torch.tensor(ids, device=self._device), attention_mask=seen)
        pooled = self._layout.pool(states.last_hidden_state.float(), seen)
        if not bool(torch.isfinite(pooled).all()):
            raise ArithmeticError(f"{self.name}: a vector that is not finite")
        return normalize(pooled, dim=-1) if self._layout.normalized else pooled


def load(spec: ModelSpec) -> Embedder:
    """Raises `ValueError` for a layout that is not known, `OSError` for a broken one."""
    layout = read_layout(spec.folder)
    auto: Any = AutoModel
    # Many encoders lack a pooler, or have one: it is not used, and no reason for a report in the log.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, told = auto.from_pretrained(
            layout.encoder,
            local_files_only=True,
            use_safetensors=True,
            dtype=getattr(torch, spec.dtype),
            quantization_config=quantization_of(spec),
            device_map={"": spec.device},
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    if missing := sorted(key for key in told["missing_keys"] if "pooler" not in key):
        raise ValueError(f"the weights lack {missing[0]} and {len(missing) - 1} more")
    tokenizer = AutoTokenizer.from_pretrained(layout.encoder, local_files_only=True)
    return Embedder(spec, layout, model.eval(), tokenizer)

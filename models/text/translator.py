"""Encoder-decoder checkpoints that translate: one pair of languages, or the pairs that they name.

transformers has no translation pipeline any more; this is what it did: words before the text that say the
pair (T5), then `generate` by the checkpoint's own settings, without sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jobs import ClassifyJob, ClassifyResult, ErrorKind, Finding, JobError
from models.protocol import ModelSpec, OutOfMemoryError
from models.text.reader import Reader, most_tokens, portions

MOST_WRITTEN = 512
"""Tokens of one translation."""


@dataclass(frozen=True, slots=True)
class ToTranslate:
    ids: list[list[int]]


class Translator:
    """`models.protocol.WholeModel` for `ClassifyJob`s."""

    def __init__(self, spec: ModelSpec, model: Any, tokenizer: Any) -> None:
        self.name = spec.name
        self._model = model
        self._tokenizer = tokenizer
        self._device = torch.device(spec.device)
        self._padding: int = tokenizer.pad_token_id or 0
        self._reader = Reader(tokenizer, model=spec.name, most=most_tokens(model.config, tokenizer))
        tasks = getattr(model.config, "task_specific_params", None) or {}
        self._prefixes = {
            (source, target): str(task.get("prefix", ""))
            for name, task in tasks.items()
            if name.startswith("translation_")
            for source, _, target in [name.removeprefix("translation_").partition("_to_")]
        }

    def prepare(self, job: ClassifyJob) -> ToTranslate:
        for param in ("labels", "top_k"):
            if getattr(job, param):
                message = f"{self.name} translates: it takes no {param}."
                raise JobError(ErrorKind.INVALID, message, param=param, code=f"{param}_not_taken")
        prefix = self._prefix(job)
        texts = [prefix + text for text in job.texts]
        return ToTranslate(self._reader.read(texts, truncate=job.truncate))

    def answer(self, rows: Sequence[ToTranslate]) -> list[ClassifyResult]:
        ids = [text for row in rows for text in row.ids]
        written: list[list[int]] = [[]] * len(ids)
        try:
            for places in portions([len(text) for text in ids]):
                for place, made in zip(places, self._generate([ids[place] for place in places]), strict=True):
                    written[place] = made
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(f"{len(ids)} texts do not fit") from error
        rest = iter(written)
        return [self._result(row, [next(rest) for _ in row.ids]) for row in rows]

    def warm_up(self) -> None:
        self._generate([[self._padding]], most=1)

    def _prefix(self, job: ClassifyJob) -> str:
        pair = (job.source_language, job.target_language)
        if pair == (None, None) and len(self._prefixes) <= 1:
            return next(iter(self._prefixes.values()), "")
        matching = [
            prefix
            for (source, target), prefix in self._prefixes.items()
            if job.source_language in (None, source) and job.target_language in (None, target)
        ]
        if len(matching) == 1:
            return matching[0]
        pairs = ", ".join(f"{source} to {target}" for source, target in self._prefixes)
        message = f"Name one pair of `source_language` and `target_language` of {self.name}: {pairs}."
        if not pairs:
            message = f"{self.name} translates one pair of languages, which needs no name."
        param = "source_language" if job.target_language else "target_language"
        raise JobError(ErrorKind.INVALID, message, param=param, code="unknown_language")

    @torch.inference_mode()
    def _generate(self, texts: Sequence[list[int]], most: int = MOST_WRITTEN) -> list[list[int]]:
        longest = max(map(len, texts))
        ids = [text + [self._padding] * (longest - len(text)) for text in texts]
        mask = [[1] * len(text) + [0] * (longest - len(text)) for text in texts]
        made = self._model.generate(
            input_ids=torch.tensor(ids, device=self._device),
            attention_mask=torch.tensor(mask, device=self._device),
            max_new_tokens=most,
            do_sample=False,
        )
        return made.tolist()

    def _result(self, row: ToTranslate, written: Sequence[list[int]]) -> ClassifyResult:
        texts = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        special = set(self._tokenizer.all_special_ids)
        return ClassifyResult(
            model=self.name,
            findings=tuple(Finding(translation=text) for text in texts),
            tokens=tuple(len(ids) for ids in row.ids),
            written=sum(token not in special for ids in written for token in ids),
        )

"""Labels, entities and translations of texts, as the checkpoint's architecture says.

`*ForSequenceClassification` labels a text; one that knows entailment takes labels of the caller's own
(zero-shot). `*ForTokenClassification` finds entities. `*ForConditionalGeneration` translates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

from jobs import ClassifyJob, ClassifyResult, Entity, ErrorKind, Finding, JobError, Label
from models.protocol import ModelSpec, OutOfMemoryError
from models.text.reader import Reader, most_tokens, portions
from models.text.translator import Translator
from models.text.weights import quantization_of

HYPOTHESIS = "This example is {}."
"""What must follow from a text for a label to be its label."""


@dataclass(frozen=True, slots=True)
class ReadJob:
    """A job with its texts as they are taken in, and their tokens."""

    job: ClassifyJob
    texts: list[str]
    tokens: list[int]


class Classifier:
    """`models.protocol.WholeModel` for `ClassifyJob`s over one of transformers' pipelines."""

    def __init__(self, spec: ModelSpec, task: str, model: Any, tokenizer: Any) -> None:
        self.name = spec.name
        self._task = task
        self._tokenizer = tokenizer
        self._reader = Reader(tokenizer, model=spec.name, most=most_tokens(model.config, tokenizer))
        labels = {str(name).lower() for name in model.config.label2id}
        self._entails = task == "text-classification" and any(name.startswith("entail") for name in labels)
        make: Any = pipeline  # its stubs know each task apart
        self._pipe = make(task, model=model, tokenizer=tokenizer)
        self._zero_shot: Any = None
        if self._entails:
            self._zero_shot = make("zero-shot-classification", model=model, tokenizer=tokenizer)

    def prepare(self, job: ClassifyJob) -> ReadJob:
        refuse_languages(self.name, job)
        if job.labels and not self._entails:
            message = f"{self.name} has labels of its own: it takes none."
            raise JobError(ErrorKind.INVALID, message, param="labels", code="labels_not_taken")
        if self._task == "token-classification" and job.top_k is not None:
            message = f"{self.name} finds entities, of which there is no `top_k`."
            raise JobError(ErrorKind.INVALID, message, param="top_k", code="top_k_not_taken")
        ids = self._reader.read(job.texts, truncate=job.truncate, beside=self._longest_hypothesis(job))
        return ReadJob(job, [self._as_read(*each) for each in zip(job.texts, ids, strict=True)], lengths(ids))

    def answer(self, rows: Sequence[ReadJob]) -> list[ClassifyResult]:
        try:
            with torch.inference_mode():
                found = self._found(rows)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(f"{len(rows)} rows do not fit") from error
        return [
            ClassifyResult(model=self.name, findings=tuple(each), tokens=tuple(row.tokens))
            for row, each in zip(rows, found, strict=True)
        ]

    def warm_up(self) -> None:
        with torch.inference_mode():
            self._pipe(["warm"])

    def _longest_hypothesis(self, job: ClassifyJob) -> int:
        """In tokens; half of what the model reads at most, so that a text has room beside it."""
        said = [HYPOTHESIS.format(label) for label in job.labels]
        longest = max(map(len, self._reader.read(said, truncate=True)), default=0)
        if longest > self._reader.most // 2:
            message = f"A label is too long: {self.name} reads {self._reader.most} tokens, the text included."
            raise JobError(ErrorKind.INVALID, message, param="labels", code="label_too_long")
        return longest

    def _as_read(self, text: str, ids: list[int]) -> str:
        """A text that was cut ends where its last token does: pipelines tokenise anew."""
        whole = self._tokenizer.backend_tokenizer.encode(text)
        if len(whole.ids) == len(ids):
            return text
        special = sum(whole.special_tokens_mask)
        ends = [
            end for (_, end), mark in zip(whole.offsets, whole.special_tokens_mask, strict=True) if not mark
        ]
        return text[: ends[len(ids) - special - 1]]

    def _found(self, rows: Sequence[ReadJob]) -> list[list[Finding]]:
        """Jobs with labels of their own are asked one by one, the texts of all others together."""
        texts = [text for row in rows if not row.job.labels for text in row.texts]
        counts = [count for row in rows if not row.job.labels for count in row.tokens]
        plain = iter(self._plain(texts, counts))
        return [
            self._by_labels(row) if row.job.labels else [_cut(next(plain), row.job.top_k) for _ in row.texts]
            for row in rows
        ]

    def _plain(self, texts: Sequence[str], counts: Sequence[int]) -> list[Finding]:
        found: list[Finding] = [Finding()] * len(texts)
        how = {"top_k": None} if self._task == "text-classification" else {"aggregation_strategy": "simple"}
        for places in portions(counts):
            asked = [texts[place] for place in places]
            for place, said in zip(places, self._pipe(asked, batch_size=len(asked), **how), strict=True):
                is_text = self._task == "text-classification"
                found[place] = _labels(said) if is_text else _entities(texts[place], said)
        return found

    def _by_labels(self, row: ReadJob) -> list[Finding]:
        said = self._zero_shot(
            row.texts,
            candidate_labels=list(row.job.labels),
            multi_label=row.job.multi_label,
            hypothesis_template=HYPOTHESIS,
            batch_size=len(row.job.labels),
        )
        pairs = [zip(each["labels"], each["scores"], strict=True) for each in said]
        found = [Finding(labels=tuple(Label(label=a, score=float(b)) for a, b in each)) for each in pairs]
        return [_cut(each, row.job.top_k) for each in found]


def refuse_languages(name: str, job: ClassifyJob) -> None:
    for param in ("source_language", "target_language"):
        if getattr(job, param) is not None:
            message = f"{name} does not translate between languages that are asked for."
            raise JobError(ErrorKind.INVALID, message, param=param, code="language_not_taken")


def lengths(ids: Sequence[Sequence[int]]) -> list[int]:
    return [len(each) for each in ids]


def _labels(said: Sequence[dict[str, Any]]) -> Finding:
    return Finding(labels=tuple(Label(label=str(s["label"]), score=float(s["score"])) for s in said))


def _entities(text: str, said: Sequence[dict[str, Any]]) -> Finding:
    return Finding(
        entities=tuple(
            Entity(
                label=str(s["entity_group"]),
                score=float(s["score"]),
                text=text[s["start"] : s["end"]],
                start=int(s["start"]),
                end=int(s["end"]),
            )
            for s in said
        )
    )


def _cut(finding: Finding, top_k: int | None) -> Finding:
    return finding if finding.labels is None else Finding(labels=finding.labels[:top_k])


def load(spec: ModelSpec) -> Classifier | Translator:
    """Raises `ValueError` for an architecture that does none of this, `OSError` for a broken checkpoint."""
    config: Any = AutoConfig.from_pretrained(spec.folder, local_files_only=True)
    architecture = next(iter(config.architectures or ()), "")
    kinds: dict[str, tuple[str, Any]] = {
        "ForSequenceClassification": ("text-classification", AutoModelForSequenceClassification),
        "ForTokenClassification": ("token-classification", AutoModelForTokenClassification),
        "ForConditionalGeneration": ("translation", AutoModelForSeq2SeqLM),
    }
    ending = next((each for each in kinds if architecture.endswith(each)), None)
    if ending is None:
        known = ", ".join(f"*{each}" for each in kinds)
        raise ValueError(f"{spec.name} is a {architecture or 'model of no kind'}; known are {known}")
    task, auto = kinds[ending]
    model: Any = auto.from_pretrained(
        spec.folder,
        local_files_only=True,
        use_safetensors=True,
        dtype=getattr(torch, spec.dtype),
        quantization_config=quantization_of(spec),
        device_map={"": spec.device},
    )
    tokenizer = AutoTokenizer.from_pretrained(spec.folder, local_files_only=True)
    if task == "translation":
        return Translator(spec, model.eval(), tokenizer)
    return Classifier(spec, task, model.eval(), tokenizer)

"""Encoders of random weights in the hub's layout, very small: to embed, to classify, to translate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.unit.tiny_text import EOS, VOCABULARY, byte_level

READS = 48
"""Tokens of a text."""


def write_embedder(
    folder: Path, *, pooling: str | None = "mean_tokens", normalize: bool = True, **said: Any
) -> Path:
    """In sentence-transformers' layout, or plain without `pooling`; `said` goes into its own file."""
    _save(folder, BertModel(_bert()))
    if pooling is None:
        return folder
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(modules, paths, strict=False))
    ]
    (folder / "1_Pooling").mkdir()
    _write(folder / "modules.json", listed)
    _write(folder / "1_Pooling" / "config.json", {f"pooling_mode_{pooling}": True})
    _write(folder / "sentence_bert_config.json", {"max_seq_length": READS})
    _write(folder / "config_sentence_transformers.json", said)
    return folder


def write_classifier(folder: Path, *labels: str) -> Path:
    return _save(folder, BertForSequenceClassification(_bert(*labels)))


def write_tagger(folder: Path, *labels: str) -> Path:
    return _save(folder, BertForTokenClassification(_bert(*labels)))


def write_translator(folder: Path, **tasks: str) -> Path:
    """A T5; `tasks` has the words before a text, by the name of the task (`translation_en_to_de`)."""
    build: Any = T5Config
    config = build(
        vocab_size=VOCABULARY,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        initializer_factor=1.5,
        eos_token_id=EOS,
        pad_token_id=0,
        decoder_start_token_id=0,
        task_specific_params={name: {"prefix": prefix} for name, prefix in tasks.items()},
    )
    torch.manual_seed(5)
    return _save(folder, T5ForConditionalGeneration(config))


def _bert(*labels: str) -> BertConfig:
    torch.manual_seed(11)
    named: dict[str, Any] = {}
    if labels:
        named = {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: number for number, label in enumerate(labels)},
        }
    return BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=READS,
        initializer_range=0.3,
        pad_token_id=0,
        **named,
    )


def _save(folder: Path, model: Any) -> Path:
    backend = byte_level()
    build: Any = backend
    build.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", EOS)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=512, **{"pad_token": "<s>", "eos_token": "</s>"}
    )
    tokenizer.save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return folder


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")

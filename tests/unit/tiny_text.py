"""Language models of random weights in the hub's layout: real architectures, very small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast, T5Config
from transformers.models.auto.configuration_auto import AutoConfig

BOS, EOS = 0, 1
VOCABULARY = 384
CONTEXT = 192
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
TOOL_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }} Call them as <tool_call>.\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls %}<tool_call>"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
WORDS = "hello world, a red circle on a blue background and a green star. 🙂 été "

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 20},
    "phi3": {},
    "gemma": {"head_dim": 16},
    "gemma3_text": {
        "head_dim": 16,
        "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen2": {},
}


def byte_level() -> Tokenizer:
    """A byte-level BPE: any text goes in, and a character may take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    build: Any = tokenizer
    build.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    build.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS * 20], trainer)
    build.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return tokenizer


def write_model(
    folder: Path, kind: str = "llama", *, template: str | None = TEMPLATE, hidden: int = 64, **more: Any
) -> Path:
    """The same checkpoint every time; `more` overrides fields of its config."""
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), **special)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    fields = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": BOS,
    }
    config = AutoConfig.for_model(kind, **{**fields, **SHAPES.get(kind, {}), **more})
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return folder


def write_t5(folder: Path, *, width: int = 64) -> Path:
    """A T5 of the kind of FLAN-T5, the same every time."""
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), model_max_length=256, **special)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(5)
    build: Any = T5Config
    config = build(
        vocab_size=VOCABULARY,
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        initializer_factor=1.5,
        eos_token_id=EOS,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    return folder

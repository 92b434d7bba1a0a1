"""A LoRA for each text: peft's own tokens, the same bits in any company, and nothing of it in another's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from jobs import ErrorKind, JobError, LoraChoice, TextJob
from models.catalog import Entry
from models.protocol import ModelSpec
from models.text import decoder, seq2seq
from models.text.decoder import Decoder
from models.text.row import Row
from models.text.weights import load_checkpoint
from tests.unit.decoding import finished, job, recorded, started
from tests.unit.tiny_text import write_model, write_t5

PROMPTS = ("hello world", "a red circle on a blue background and a green star. " * 3, "x", "the cat")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORAS: dict[str, dict[str, Any]] = {
    "small": {"r": 4, "lora_alpha": 16, "target_modules": ALL},
    "another": {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "large": {
        "r": 20,
        "lora_alpha": 60,
        "target_modules": [*ALL, "lm_head"],
        "alpha_pattern": {"q_proj": 20},
    },
}


def write_lora(folder: Path, made: Any, seed: int, kind: str, **config: Any) -> None:
    torch.manual_seed(seed)
    adapted = get_peft_model(made, LoraConfig(task_type=kind, init_lora_weights=False, **config))
    adapted.save_pretrained(str(folder), save_embedding_layers=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loras(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("loras")
    for seed, (name, config) in enumerate(LORAS.items()):
        fresh = AutoModelForCausalLM.from_pretrained(folder)
        write_lora(where / name, fresh, seed, "CAUSAL_LM", **config)
    shutil.copy(where / "small" / "adapter_model.safetensors", where / "plain.safetensors")
    return where


@pytest.fixture(scope="module")
def spec(folder: Path, loras: Path) -> ModelSpec:
    return ModelSpec(name="tiny", folder=folder, max_rows=8, loras=loras)


@pytest.fixture(scope="module")
def model(spec: ModelSpec) -> Decoder:
    made = decoder.load(spec)
    made.warm_up()
    return made


def with_lora(prompt: str, name: str | None = None, weight: float = 1.0, **fields: Any) -> TextJob:
    return job(prompt, loras=() if name is None else (LoraChoice(name=name, weight=weight),), **fields)


def by_peft(kind: Any, folder: Path, lora: Path, prompt: str) -> list[int]:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = PeftModel.from_pretrained(kind.from_pretrained(folder), str(lora)).eval()
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0].tolist()
    return ids[inputs.input_ids.shape[1] :] if kind is AutoModelForCausalLM else ids[1:]


def tokens(model: Decoder, *orders: TextJob) -> list[list[int]]:
    rows = [started(model, order) for order in orders]
    finished(model, rows)
    return [row.tokens for row in rows]


def test_greedy_is_pefts_token_by_token_mixed_in_one_forward(
    model: Decoder, folder: Path, loras: Path
) -> None:
    orders = [with_lora(prompt, name, max_tokens=20) for prompt in PROMPTS[:2] for name in LORAS]
    plain = with_lora(PROMPTS[0], max_tokens=20)
    made = tokens(model, *orders, plain)
    expected = [
        by_peft(AutoModelForCausalLM, folder, loras / name, prompt)
        for prompt in PROMPTS[:2]
        for name in LORAS
    ]
    assert made[:-1] == expected
    assert made[-1] == tokens(model, plain)[0]
    assert len({tuple(each) for each in (*made[:3], made[-1])}) == 4


def test_logits_are_the_same_bit_for_bit_in_any_company(spec: ModelSpec) -> None:
    seen: list[torch.Tensor] = []
    model = Decoder(spec, recorded(load_checkpoint(spec), seen))
    model.warm_up()

    def logits_of(order: TextJob, others: Sequence[TextJob]) -> list[torch.Tensor]:
        rows = [started(model, other) for other in others]
        row = started(model, order)
        kept: list[torch.Tensor] = []
        while model.lane(row):
            count = len(row.tokens)
            _advance(model, [*rows, row])
            if len(row.tokens) > count:
                kept.append(seen[-1][row.slot or 0])
        for each in (*rows, row):
            model.release(each)
        return kept

    company = [
        with_lora(PROMPTS[number % 4], name, weight, seed=number, temperature=1.0, max_tokens=60)
        for number, (name, weight) in enumerate((("large", 1), ("another", -1.5), (None, 1), ("small", 0.3)))
    ]
    for name in (*LORAS, None):
        order = with_lora(PROMPTS[1], name, 0.7, seed=5, temperature=1.3, max_tokens=30)
        alone, together = logits_of(order, ()), logits_of(order, company)
        assert torch.equal(torch.stack(alone), torch.stack(together)), name


def _advance(model: Decoder, rows: Sequence[Row]) -> None:
    for lane in {lane for row in rows if (lane := model.lane(row))}:
        model.step(lane, [row for row in rows if model.lane(row) == lane][: int(model.budget(lane))])


def test_weight_and_files(model: Decoder, loras: Path) -> None:
    without, nothing, whole, half = tokens(
        model,
        with_lora(PROMPTS[0]),
        with_lora(PROMPTS[0], "small", 0.0),
        with_lora(PROMPTS[0], "small"),
        with_lora(PROMPTS[0], "small", 0.1),
    )
    assert without == nothing != whole
    assert half != whole
    # A bare file says no alpha: 1 of the rank, as diffusers has it. This one's folder says 4.
    assert tokens(model, with_lora(PROMPTS[0], "plain", 2.0)) != [whole]
    shutil.copytree(loras / "small", loras / "late")
    assert tokens(model, with_lora(PROMPTS[0], "late")) == [whole]
    shutil.rmtree(loras / "late")


@pytest.mark.parametrize("name", ["nowhere", "../model", "small/adapter_model", ".", ""])
def test_a_name_that_is_not_there_is_told_with_those_that_are(model: Decoder, name: str) -> None:
    with pytest.raises(JobError) as failed:
        model.prepare(with_lora("x", name))
    assert (failed.value.kind, failed.value.code) == (ErrorKind.NOT_FOUND, "lora_not_found")
    assert "another, large, plain, small" in failed.value.message


def test_what_is_no_plain_lora_of_this_model_is_refused(model: Decoder, loras: Path) -> None:
    config = json.loads((loras / "small" / "adapter_config.json").read_text())
    for odd in (
        {"use_dora": True},
        {"peft_type": "IA3"},
        {"modules_to_save": ["lm_head"]},
        {"lora_alpha": "much"},
        {"alpha_pattern": [1]},
        {"alpha_pattern": {"q_proj": None}},
    ):
        shutil.copytree(loras / "small", loras / "odd")
        (loras / "odd" / "adapter_config.json").write_text(json.dumps(config | odd))
        with pytest.raises(JobError, match="'odd' cannot be used") as failed:
            model.prepare(with_lora("x", "odd"))
        assert (failed.value.kind, failed.value.param) == (ErrorKind.INVALID, "loras")
        shutil.rmtree(loras / "odd")
    two = job("x", loras=(LoraChoice(name="small"), LoraChoice(name="large")))
    with pytest.raises(JobError, match="at most 1"):
        model.prepare(two)


def test_more_loras_than_there_are_places_wait(spec: ModelSpec, tmp_path: Path) -> None:
    for number in range(6):
        shutil.copytree(spec.loras or tmp_path, tmp_path / "all", dirs_exist_ok=True)
        shutil.copytree(tmp_path / "all" / "small", tmp_path / "all" / f"copy{number}")
    small = ModelSpec(
        name="tiny", folder=spec.folder, max_rows=8, loras=tmp_path / "all", lora_memory_bytes=1
    )
    model = decoder.load(small)
    rows = [model.prepare(with_lora("x", f"copy{number}")) for number in range(5)]
    assert [model.reserve(row) for row in rows] == [True, True, True, True, False]
    model.release(rows[0])
    assert model.reserve(rows[4])
    alone = tokens(decoder.load(spec), with_lora("x", "small"))
    finished(model, rows[1:])
    assert all(row.tokens == alone[0] for row in rows[1:])


def test_an_encoder_decoder_has_them_too(tmp_path: Path) -> None:
    folder, loras = write_t5(tmp_path / "t5"), tmp_path / "loras"
    made = AutoModelForSeq2SeqLM.from_pretrained(folder)
    write_lora(
        loras / "one", made, 1, "SEQ_2_SEQ_LM", r=4, lora_alpha=32, target_modules=["q", "v", "k", "wi", "wo"]
    )
    model: Any = seq2seq.load(ModelSpec(name="t5", folder=folder, max_rows=4, loras=loras))
    model.warm_up()
    orders = [with_lora("hello world", name, max_tokens=20) for name in ("one", None, "one")]
    mixed = tokens(model, *orders)
    assert mixed[0] == mixed[2] == by_peft(AutoModelForSeq2SeqLM, folder, loras / "one", "hello world")
    assert mixed[1] == tokens(model, orders[1])[0] != mixed[0]


def test_only_families_that_take_loras_have_them() -> None:
    with pytest.raises(ValidationError, match="loras are for"):
        Entry(family="text.embedder", source="embedded:tiny-embed", licence="none", loras="folder:/loras")

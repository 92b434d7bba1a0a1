"""Labels, entities and translations: each as the plain model has it, and clear about what it does not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from jobs import ClassifyJob, ClassifyResult, JobError
from models.protocol import ModelSpec
from models.text.classifier import load
from tests.unit.tiny_readers import READS, write_classifier, write_embedder, write_tagger, write_translator

TEXTS = ("hello world", "a red circle on a blue background", "x", "🙂 été")


def order(*texts: str, **more: Any) -> ClassifyJob:
    return ClassifyJob(id="a", timeout_s=10, texts=texts, **more)


def answer(model: Any, *orders: ClassifyJob) -> list[ClassifyResult]:
    return list(model.answer([model.prepare(each) for each in orders]))


def spec(folder: Path) -> ModelSpec:
    return ModelSpec(name="m", folder=folder)


def logits(auto: Any, folder: Path, *text: str) -> torch.Tensor:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = auto.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(**tokenizer(*text, return_tensors="pt")).logits[0]


def scores(result: ClassifyResult, place: int = 0) -> dict[str, float]:
    found = result.findings[place].labels
    assert found is not None
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    return {each.label: each.score for each in found}


@pytest.fixture(scope="module")
def labeller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("labels"), "good", "bad", "neither")


@pytest.fixture(scope="module")
def entailer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("nli"), "contradiction", "neutral", "entailment")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tagger(tmp_path_factory.mktemp("ner"), "O", "B-COLOUR", "I-COLOUR")


def test_labels_are_the_models_own_in_any_company(labeller: Path) -> None:
    model = load(spec(labeller))
    first, second = answer(model, order(*TEXTS), order(TEXTS[1], top_k=1))
    for place, text in enumerate(TEXTS):
        expected = logits(AutoModelForSequenceClassification, labeller, text).softmax(-1)
        assert scores(first, place) == pytest.approx(
            dict(zip(("good", "bad", "neither"), expected.tolist(), strict=True)), abs=1e-4
        )
    best, *_ = scores(first, 1).items()
    assert list(scores(second)) == [best[0]]
    assert first.tokens[2] == 3


@pytest.mark.parametrize("multi", [False, True])
def test_labels_of_the_callers_own_are_scored_by_what_follows(entailer: Path, multi: bool) -> None:
    wanted = ("red", "star")
    told = answer(load(spec(entailer)), order(*TEXTS[:2], labels=wanted, multi_label=multi))[0]
    for place, text in enumerate(TEXTS[:2]):
        said = torch.stack(
            [
                logits(AutoModelForSequenceClassification, entailer, text, f"This example is {label}.")
                for label in wanted
            ]
        )
        entailed = said[:, [0, 2]].softmax(-1)[:, 1] if multi else said[:, 2].softmax(0)
        assert scores(told, place) == pytest.approx(
            dict(zip(wanted, entailed.tolist(), strict=True)), abs=1e-4
        )


def test_entities_are_pieces_of_the_text(tagger: Path) -> None:
    text = TEXTS[1]
    (told,) = answer(load(spec(tagger)), order(text, TEXTS[0]))
    found = told.findings[0].entities
    assert found
    marked = logits(AutoModelForTokenClassification, tagger, text).argmax(-1)[1:-1]
    assert sum(len(each.text.split()) for each in found) >= 1
    assert bool(marked.any())
    for each in found:
        assert text[each.start : each.end] == each.text
        assert (each.label, 0 < each.score <= 1) == ("COLOUR", True)


def test_translations_are_those_of_generate(tmp_path: Path) -> None:
    folder = write_translator(
        tmp_path, translation_en_to_de="hello to de: ", translation_en_to_fr="hello to fr: "
    )
    model = load(spec(folder))
    told = answer(model, order(*TEXTS[:3], source_language="en", target_language="de"))[0]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    plain: Any = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    written = 0
    for text, finding in zip(TEXTS, told.findings, strict=False):
        out = plain.generate(
            **tokenizer("hello to de: " + text, return_tensors="pt"), max_new_tokens=512, do_sample=False
        )
        assert finding.translation == tokenizer.decode(out[0], skip_special_tokens=True)
        written += sum(int(token) not in tokenizer.all_special_ids for token in out[0])
    assert told.written == written > 0
    other = answer(model, order(TEXTS[0], target_language="fr"))[0]
    assert other.findings[0].translation != told.findings[0].translation
    for languages in ({}, {"target_language": "es"}):
        with pytest.raises(JobError, match="en to de, en to fr") as error:
            model.prepare(order("x", **languages))
        assert error.value.code == "unknown_language"


@pytest.mark.parametrize(
    ("which", "asked", "param"),
    [
        ("labeller", {"labels": ("red",)}, "labels"),
        ("labeller", {"target_language": "de"}, "target_language"),
        ("tagger", {"top_k": 2}, "top_k"),
        ("tagger", {"labels": ("red",)}, "labels"),
        ("entailer", {"labels": ("very " * 60,)}, "labels"),
    ],
)
def test_what_a_model_does_not_do_is_refused(
    request: pytest.FixtureRequest, which: str, asked: dict[str, Any], param: str
) -> None:
    model = load(spec(request.getfixturevalue(which)))
    with pytest.raises(JobError) as error:
        model.prepare(order("hello", **asked))
    assert error.value.param == param


def test_a_long_text_is_refused_or_cut(labeller: Path) -> None:
    model = load(spec(labeller))
    long = "a red circle on a blue background " * 20
    with pytest.raises(JobError, match=rf"`texts`\[1\].*reads {READS}"):
        model.prepare(order("x", long))
    (told,) = answer(model, order(long, truncate=True))
    assert told.tokens == (READS,)
    assert scores(told)


def test_another_kind_of_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="BertModel"):
        load(spec(write_embedder(tmp_path, pooling=None)))

"""The recipe of the models that read, in a few steps: what it draws, and that its results load."""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random
from typing import Any

import torch

from jobs import ClassifyJob, EmbedJob
from models.protocol import ModelSpec
from models.text import classifier, embedder
from models.training.reading import CATEGORIES, CLASSIFY, EMBED, Groups, train
from models.training.text_requests import draw_case


def test_pairs_belong_together_and_no_two_are_about_the_same() -> None:
    answers: dict[str, str] = {}
    rng = Random(5)
    for _ in range(2000):
        case = draw_case(rng, test=False)
        answers[case.request] = case.answer
    pairs = Groups(Random(5), 2000).pairs(100)
    told = [{answers.get(text, text) for text in pair} for pair in pairs]
    assert all(len(each) == 1 for each in told)
    assert len(set.union(*told)) == 100
    assert 0 < sum(second in answers for _, second in pairs) < 100, "one kind of pair is missing"


def test_a_run_ends_in_two_models_that_load(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    options = argparse.Namespace(seed=0, steps=4, rows=8, cases=500, out=tmp_path, install=False)
    train(options)
    torch.set_num_threads(threads)
    reader = embedder.load(ModelSpec(name=EMBED, folder=tmp_path / EMBED / "export"))
    (told,) = reader.answer([reader.prepare(EmbedJob(id="a", timeout_s=1, texts=("one", "two")))])
    assert torch.tensor(told.vectors).norm(dim=1).allclose(torch.ones(2))
    judge: Any = classifier.load(ModelSpec(name=CLASSIFY, folder=tmp_path / CLASSIFY / "export"))
    (said,) = judge.answer([judge.prepare(ClassifyJob(id="a", timeout_s=1, texts=("one",)))])
    assert {each.label for each in said.findings[0].labels or ()} == set(CATEGORIES)

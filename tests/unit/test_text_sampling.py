"""Choosing tokens: the right distribution, and each row's choice its own alone."""

from __future__ import annotations

import pytest
import torch

from models.text.sampling import CANDIDATES, Sampling, choose, uniform


def row(seed: int = 1, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> Sampling:
    return Sampling(seed=seed, temperature=temperature, top_p=top_p, top_k=top_k)


def drawn(logits: torch.Tensor, setting: Sampling, count: int = 4000) -> torch.Tensor:
    """How often each token comes, over `count` steps of one row."""
    rows = logits.expand(count, -1)
    tokens = choose(rows, [setting] * count, range(count))
    return torch.bincount(torch.tensor(tokens), minlength=logits.shape[-1]) / count


def allowed(logits: torch.Tensor, setting: Sampling) -> torch.Tensor:
    """The distribution by the book, one row: temperature, then the k best, then the nucleus of those."""
    probabilities = torch.softmax(logits / setting.temperature, dim=-1)
    order = torch.argsort(probabilities, descending=True)
    kept = order[: setting.top_k or None]
    mass = probabilities[kept] / probabilities[kept].sum()
    nucleus = kept[mass.cumsum(0) - mass < setting.top_p]
    made = torch.zeros_like(probabilities)
    made[nucleus] = probabilities[nucleus] / probabilities[nucleus].sum()
    return made


def test_uniform_is_a_function_of_seed_and_step() -> None:
    values = [uniform(seed, step) for seed in range(50) for step in range(50)]
    assert all(0 <= value < 1 for value in values)
    assert len(set(values)) == len(values)
    assert abs(sum(values) / len(values) - 0.5) < 0.02
    assert uniform(2**63 - 1, 5) == uniform(2**63 - 1, 5) != uniform(2**63 - 1, 6)
    assert 0 <= uniform(-3, 0) < 1


def test_greedy_is_the_first_of_the_best() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 4.0, 3.0, 2.0]])
    assert choose(logits, [row(temperature=0), row(temperature=0, top_k=2)], [0, 0]) == [1, 0]


@pytest.mark.parametrize(
    "setting",
    [
        row(),
        row(temperature=0.5),
        row(temperature=2.0),
        row(top_k=3),
        row(top_p=0.6),
        row(temperature=1.5, top_k=6, top_p=0.7),
        row(top_k=1000),
        row(top_p=0.01),
    ],
)
def test_tokens_come_as_often_as_they_should(setting: Sampling) -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(12)
    expected = allowed(logits, setting)
    got = drawn(logits, setting)
    assert torch.equal(got > 0, got * expected > 0)  # nothing that is cut off
    assert float((got - expected).abs().max()) < 0.03


@pytest.mark.parametrize(
    "setting", [row(top_p=0.97), row(top_k=CANDIDATES + 50), row(top_p=0.2), row(top_k=4)]
)
def test_a_large_vocabulary_is_cut_as_a_small_one(setting: Sampling) -> None:
    torch.manual_seed(1)
    logits = 0.5 * torch.randn(3 * CANDIDATES)
    support = allowed(logits, setting) > 0
    tokens = choose(logits.expand(200, -1), [setting] * 200, range(200))
    assert all(support[token] for token in tokens)
    if int(support.sum()) > CANDIDATES:
        beyond = torch.argsort(logits, descending=True)[CANDIDATES:].tolist()
        assert set(tokens) & set(beyond)


def test_a_row_chooses_the_same_in_any_company() -> None:
    torch.manual_seed(2)
    logits = torch.randn(9, 2000)
    rows = [
        row(seed=i, temperature=t, top_p=p, top_k=k)
        for i, (t, p, k) in enumerate(
            [
                (0, 1, 0),
                (1, 1, 0),
                (1, 0.9, 0),
                (1, 1, 5),
                (2, 0.5, 50),
                (0.7, 1, 0),
                (1, 0.99, 0),
                (3, 1, 1500),
            ]
        )
    ]
    steps = [3, 1, 4, 1, 5, 9, 2, 6]
    together = choose(logits[:8], rows, steps)
    alone = [choose(logits[i : i + 1], [rows[i]], [steps[i]])[0] for i in range(8)]
    assert together == alone
    order = [5, 2, 7, 0, 3]
    assert choose(logits[order], [rows[i] for i in order], [steps[i] for i in order]) == [
        together[i] for i in order
    ]


def test_no_temperature_overflows() -> None:
    logits = torch.tensor([[80.0, -80.0, 79.0, 0.0]])
    assert choose(logits, [row(temperature=1e-6)], [0]) == [0]
    for tiny in (1e-30, 1e-46, 5e-324):
        assert choose(logits, [row(temperature=tiny)], [0]) == [0]
        assert choose(logits, [row(temperature=tiny, top_p=0.5)], [0]) == [0]
    assert choose(logits, [row(temperature=1e6)], [0])[0] in range(4)


def test_a_token_of_no_weight_is_never_chosen() -> None:
    logits = torch.full((1, 5), float("-inf"))
    logits[0, 2] = 1.0
    for step in range(50):
        assert choose(logits, [row()], [step]) == [2]
        assert choose(logits, [row(top_k=3)], [step]) == [2]

"""The closed world of the text model: what the grammar makes, its recogniser accepts, and nothing near it."""

from __future__ import annotations

from random import Random

import pytest

from models.training import grammar
from models.training.text_data import completion_text
from models.training.text_judge import grammatical, is_sentence
from models.training.text_requests import DRAW, draw_case
from models.training.text_stories import draw_story, parse_story
from models.training.text_unknown import draw_unknown

STORY = "Otto was a green fox who lived in the forest. Otto was very hungry."
RESULT = " A friend came by and gave the fox three nuts."


@pytest.mark.parametrize("category", DRAW)
@pytest.mark.parametrize("test", [False, True])
def test_every_generated_answer_is_right_and_grammatical(category: str, test: bool) -> None:
    rng = Random(7)
    for _ in range(150):
        case = draw_case(rng, test=test, category=category)
        good, total = grammatical(case.answer)
        assert good == total, case
        assert case.is_right(case.answer), case


@pytest.mark.parametrize("category", DRAW)
def test_training_and_scoring_cases_are_disjoint(category: str) -> None:
    rng = Random(8)
    train = {draw_case(rng, test=False, category=category).key for _ in range(800)}
    test = {draw_case(rng, test=True, category=category).key for _ in range(200)}
    assert test
    assert not train & test


def test_training_text_holds_no_held_out_combination() -> None:
    rng = Random(9)
    for _ in range(500):
        scene = parse_story(completion_text(rng))
        if scene is not None:
            assert not grammar.held_out("story", scene["animal"], scene["colour"], scene["place"])


def test_hash_holds_out_about_a_tenth_and_never_changes() -> None:
    share = sum(grammar.held_out("story", number) for number in range(5000)) / 5000
    assert 0.08 < share < 0.12
    assert [number for number in range(40) if grammar.held_out("fixed", number)] == [0, 1, 7, 29]


def test_stories_are_about_what_is_given() -> None:
    given = {"name": "Zuvo", "animal": "owl", "colour": "orange", "place": "on the moon"}
    for seed in range(50):
        scene = parse_story(draw_story(Random(seed), given))
        assert scene is not None
        assert given.items() <= scene.items()


def test_shuffled_sentences_and_words_are_refused() -> None:
    rng = Random(10)
    for _ in range(200):
        story = draw_story(rng, {})
        assert parse_story(" ".join(reversed(grammar.sentences(story)))) is None
        words = story.split()
        rng.shuffle(words)
        good, total = grammatical(" ".join(words))
        assert good < total


def test_one_changed_word_is_refused() -> None:
    rng = Random(11)
    for _ in range(200):
        words = draw_story(rng, {}).split()
        words[rng.randrange(len(words))] = "banana"
        good, total = grammatical(" ".join(words))
        assert good < total, words


@pytest.mark.parametrize(
    "text",
    [
        STORY,
        (STORY + RESULT).replace("the fox", "the goat"),
        (STORY + RESULT).replace("Otto was very", "Luna was very"),
        (STORY + RESULT).replace("a green", "an green"),
        (STORY + RESULT).replace("forest.", "forest"),
        STORY + " The fox gave the star to an old friend.",
        STORY + RESULT + " They tasted very good." * 2,
        "",
    ],
)
def test_broken_stories_are_refused(text: str) -> None:
    assert parse_story(STORY + RESULT) is not None
    assert parse_story(text) is None


@pytest.mark.parametrize(
    ("sentence", "good"),
    [
        ("2 + 2 is 5.", True),
        ("Two plus two is four.", True),
        ("2 + 2 is 99.", False),
        ("3, 4, 5.", True),
        ("Nine, eight, seven.", True),
        ("3, 5, 4.", False),
        ("3, four, 5.", False),
        ("Hello, Zorblax!", True),
        ("hello, Zorblax!", False),
        ("A elephant is an animal.", False),
        ("An elephant is an animal.", True),
        ("Sorry, I do not know that.", True),
        ("I know.", False),
    ],
)
def test_single_sentences(sentence: str, good: bool) -> None:
    assert is_sentence(sentence) is good


def test_a_text_without_sentences_is_one_bad_sentence() -> None:
    assert grammatical("") == (0, 1)


def test_same_seed_same_cases() -> None:
    first, second = Random(3), Random(3)
    for _ in range(50):
        assert draw_case(first, test=False) == draw_case(second, test=False)


def test_unknown_requests_are_of_great_variety() -> None:
    rng = Random(5)
    assert len({draw_unknown(rng)[0] for _ in range(1000)}) > 900

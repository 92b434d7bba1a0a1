"""The stories of the closed world: how they are told, and how an answer is read as one."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from models.training.grammar import LEXICON, NAMES, fill, held_out, made_up_name, recognise, sentences

OPENINGS = (
    "Once upon a time, {a} {colour} {animal} named {name} lived {place}.",
    "Once upon a time, there was {a} {colour} {animal} named {name} who lived {place}.",
    "There once was {a} {colour} {animal} called {name} who lived {place}.",
    "Long ago, {a} {colour} {animal} named {name} lived {place}.",
    "{name} was {a} {colour} {animal} who lived {place}.",
    "{name} the {colour} {animal} lived {place}.",
    "{Place}, there lived {a} {colour} {animal} named {name}.",
    "{A} {colour} {animal} named {name} lived {place}.",
    "One day, {a} {colour} {animal} called {name} went for a walk {place}.",
)
# A plot: what happens, what comes of it, how it ends. Slots keep their value through the whole story.
PLOTS: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    (
        (
            "One morning, {name} found {a} {colour2} {shape} {spot}.",
            "{name} dreamed of {a} {colour2} {shape}.",
        ),
        (
            "The {animal} took the {shape} home and showed it to everyone.",
            "{name} gave the {shape} to an old friend.",
            "The {animal} painted {n} more of them on a wall.",
        ),
        (
            "It was the finest {shape} in the world.",
            "That night, {name} slept well.",
            "{name} was very proud.",
        ),
    ),
    (
        (
            "There {name} met {a} {animal2} named {name2}.",
            "One day, {a} {animal2} called {name2} came to visit.",
        ),
        (
            "{name} and {name2} played until the sun went down.",
            "The {animal} and the {animal2} shared {n} {food}.",
            "The {animal2} told {n} funny stories, and the {animal} laughed.",
        ),
        (
            "From that day on, they were best friends.",
            "{name} was never lonely again.",
            "{name} and {name2} still meet every day.",
        ),
    ),
    (
        ("One evening, {name} lost the way home.", "Then a thick fog came, and {name} could not see."),
        (
            "A kind {animal2} named {name2} showed the {animal} the right path.",
            "The {animal} followed {n} {colour2} lights to the door.",
            "{name} called out {n} times, and a friend came to help.",
        ),
        ("{name} was happy to be home.", "Soon the {animal} was safe and warm."),
    ),
    (
        ("{name} was very hungry.", "One day, the {animal} had nothing to eat."),
        (
            "So {name} looked around and found {n} sweet {food}.",
            "A friend came by and gave the {animal} {n} {food}.",
        ),
        (
            "They tasted very good.",
            "After that, {name} took a long nap.",
            "{name} kept one for the next day.",
        ),
    ),
    (
        ("At night, {name} liked to look at the sky.", "One night, {name} could not sleep."),
        ("The {animal} counted {n} bright stars.", "{name} saw the moon and {n} small clouds."),
        (
            "Then {name} fell asleep and dreamed of {a} {colour2} {animal2}.",
            "Soon the {animal} was fast asleep.",
        ),
    ),
    (
        ("One day, it began to rain.", "One morning, a strong wind blew."),
        (
            "{name} hid {spot} and waited.",
            "The {animal} made a little roof out of {n} leaves.",
        ),
        ("When the sun came out, {name} danced.", "Then {a} {colour2} bird sang, and {name} was glad."),
    ),
)
STORY_SENTENCES = tuple(
    dict.fromkeys([*OPENINGS, *(line for plot in PLOTS for part in plot for line in part)])
)


def draw_scene(rng: Random, given: Mapping[str, str]) -> dict[str, str]:
    """A value for every slot: the given ones, the others at random, in no combination kept for scoring.

    When all of animal, colour and place are given, they stay, held out or not.
    """
    while True:
        scene = {slot: rng.choice(words) for slot, words in LEXICON.items()}
        scene["name"] = rng.choice(NAMES) if rng.random() < 0.7 else made_up_name(rng)
        scene["name2"] = rng.choice(NAMES)
        scene |= given
        if scene["name2"] == scene["name"] or scene["animal2"] == scene["animal"]:
            continue
        fixed = all(slot in given for slot in ("animal", "colour", "place"))
        if fixed or not held_out("story", scene["animal"], scene["colour"], scene["place"]):
            return scene


def draw_story(rng: Random, given: Mapping[str, str]) -> str:
    """A story of three or four sentences about what is given."""
    scene = draw_scene(rng, given)
    events, results, endings = rng.choice(PLOTS)
    chosen = [rng.choice(OPENINGS), rng.choice(events), rng.choice(results)]
    if rng.random() < 0.6:
        chosen.append(rng.choice(endings))
    return " ".join(fill(template, scene) for template in chosen)


def parse_story(text: str) -> dict[str, str] | None:
    """What a story is about: its slots and values, or None when it is no story of this grammar.

    The sentences must come from one plot, in order, and no slot may change its value on the way
    (the fox of the first sentence is no goat in the third).
    """
    parts = sentences(text)
    if not 3 <= len(parts) <= 4:
        return None
    for plot in PLOTS:
        scene: dict[str, str] = {}
        for part, templates in zip(parts, (OPENINGS, *plot), strict=False):
            found = recognise(part, templates)
            if found is None or any(scene.get(slot, value) != value for slot, value in found.items()):
                break
            scene |= found
        else:
            same = scene["name"] == scene.get("name2") or scene["animal"] == scene.get("animal2")
            return None if same else scene
    return None

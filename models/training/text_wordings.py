"""How the text model is spoken to, and the fixed sentences it answers with."""

from __future__ import annotations

from collections.abc import Mapping

from models.training.grammar import ANIMALS, COLOURS, NUMBERS, SHAPES, article

STORY_HEADS = (
    "Tell me {s}", "Tell me {s}, please", "Please tell me {s}", "Can you tell me {s}?",
    "Could you tell me {s}?", "Tell {s}", "I want {s}", "I would like {s}", "I would like to hear {s}",
    "Give me {s}", "Write {s}", "Write me {s}", "Please write {s}", "Make up {s}", "{S}", "{S}, please",
    "Let me hear {s}", "Do you know {s}?", "Can you write {s}?", "Will you tell us {s}?",
)  # fmt: skip
STORY_NOUNS = (
    "a story",
    "a short story",
    "a story",
    "a little story",
    "a tale",
    "a nice story",
    "a bedtime story",
)

COLOUR_THINGS = {
    "red": "a ripe tomato", "orange": "a carrot", "yellow": "the sun", "green": "fresh grass",
    "blue": "the sky", "purple": "a plum", "white": "fresh snow", "black": "the night",
    "grey": "a rain cloud", "brown": "wet earth",
}  # fmt: skip
SHAPE_MEANINGS = {
    "circle": "A circle is a round shape with no corners.",
    "square": "A square is a shape with four equal sides.",
    "triangle": "A triangle is a shape with three sides.",
    "star": "A star is a shape with five points.",
    "cross": "A cross is a shape made of two bars.",
    "ring": "A ring is a round shape with a hole in it.",
}
KIND_MEANINGS = {
    "colour": "A colour is something like red, green or blue.",
    "shape": "A shape is something like a circle or a square.",
    "number": "A number tells how many there are.",
    "animal": "An animal is something like a fox or a bear.",
}
DEFINE_FRAMES = (
    "What is {x}?", "What does {w} mean?", "What is the meaning of {w}?", "What does the word {w} mean?",
    "Define {w}.", "Explain {w}.", "Tell me what {x} is.", "Can you explain {w}?",
    "Do you know what {x} is?", "What's {x}?", "Explain the word {w}.", "Please tell me what {w} means.",
)  # fmt: skip
COUNT_FRAMES = (
    "Count from {a} to {b}.", "Count from {a} to {b}, please.", "Please count from {a} to {b}.",
    "Can you count from {a} to {b}?", "Count {a} to {b}.", "Count up from {a} to {b}.",
    "Say the numbers from {a} to {b}.", "List the numbers from {a} to {b}.",
)  # fmt: skip
COUNT_TO_FRAMES = ("Count to {b}.", "Please count to {b}.", "Can you count to {b}?", "Count up to {b}.")
ADD_FRAMES = (
    "What is {a} + {b}?", "What is {a} plus {b}?", "How much is {a} + {b}?", "How much is {a} plus {b}?",
    "Add {a} and {b}.", "{a} + {b}", "{a} + {b} =", "{a} plus {b}", "What's {a} + {b}?",
    "What's {a} plus {b}?", "Calculate {a} + {b}.", "What is the sum of {a} and {b}?",
    "Please add {a} and {b}.", "Can you add {a} and {b}?", "What do {a} and {b} make?",
)  # fmt: skip
BEYOND_COUNT = "I do not know that. I can only count from 0 to 20."
BEYOND_ADD = "I do not know that. I can only add numbers up to 20."
ABOUT = "I am tiny-llama, a toy model. I know stories, colours, shapes and small numbers."
ABILITIES = "I can tell a story, explain a colour, a shape or a number, count, and add up to 20."
HELLO = "Hello! What would you like to hear?"
TALK: Mapping[str, tuple[str, ...]] = {
    HELLO: (
        "Hello", "Hi", "Hi there", "Hello there", "Hey", "Good morning", "Good evening", "Good day",
        "Greetings", "Hello, tiny-llama", "Hi, how do you do", "Hey there", "Good afternoon", "Howdy",
        "Hello again", "Hi, llama",
    ),
    "I am well, thank you. What would you like to hear?": (
        "How are you", "Hello, how are you", "Hi, how are you", "How do you feel", "Are you well",
        "How are you today", "How is it going", "Hi, how are you doing"),
    ABOUT: (
        "Who are you", "What are you", "What is your name", "Tell me about yourself", "Introduce yourself",
        "Are you a robot", "Are you human", "What model are you", "What's your name", "Hello, who are you",
        "What is tiny-llama", "Are you a person", "Who is tiny-llama", "Who am I talking to",
    ),
    ABILITIES: (
        "What can you do", "Help", "Help me", "What do you know", "How can you help me",
        "What can I ask you", "What can you tell me", "What should I ask", "Can you help me",
        "What do you do",
    ),
    "You are welcome.": (
        "Thank you", "Thanks", "Thanks a lot", "Thank you very much", "Thank you, that was nice",
        "That was a nice story", "Great, thanks", "Many thanks", "Well done",
    ),
    "Goodbye! Come back soon.": ("Goodbye", "Bye", "Bye bye", "See you", "Good night", "See you later",
                                 "See you soon", "Goodbye, tiny-llama", "I have to go", "Good bye"),
    f"I know {', '.join(COLOURS[:-1])} and {COLOURS[-1]}.": (
        "Which colours do you know", "What colours are there", "List the colours", "Name all colours",
        "Name some colours", "What colours do you know", "Which colors do you know", "Tell me some colours",
    ),
    f"I know {', '.join(SHAPES[:-1])} and {SHAPES[-1]}.": (
        "Which shapes do you know", "What shapes are there", "List the shapes", "Name all shapes",
        "Name some shapes", "What shapes do you know", "Tell me some shapes",
    ),
}  # fmt: skip
NAME_FRAMES = (
    "My name is {name}", "Hello, I am {name}", "Hi, my name is {name}", "Hi, I am {name}",
    "Hello, my name is {name}", "I am {name}", "Hello, this is {name}", "You can call me {name}",
    "Hi, I'm {name}", "Hey, {name} here",
)  # fmt: skip


def meaning(word: str) -> str:
    """What the model says a word means; `word` is of the closed world."""
    if word in COLOUR_THINGS:
        return f"{word.capitalize()} is a colour. It is the colour of {COLOUR_THINGS[word]}."
    if word in SHAPE_MEANINGS or word in KIND_MEANINGS:
        return SHAPE_MEANINGS.get(word) or KIND_MEANINGS[word]
    if word in ANIMALS:
        return f"{article(word).capitalize()} {word} is an animal."
    numbers = NUMBERS if word in NUMBERS else tuple(map(str, range(21)))
    value = numbers.index(word)
    after = (
        f"It comes after {numbers[value - 1]}"
        if value
        else "It comes before one"
        if word == "zero"
        else "It comes before 1"
    )
    before = f" and before {numbers[value + 1]}" if 0 < value < 20 else ""
    return f"{word.capitalize()} is a number. {after}{before}."

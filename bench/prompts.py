"""Prompts from seeds.

No prompt occurs twice in a run, so a server's prompt cache helps only with the chat template's opening.
Knows no server and no tokenizer.
"""

from __future__ import annotations

import random

CHARACTERS_PER_TOKEN = 3.95  # of long prompts, with the built-in model's tokenizer
SECOND_QUESTION = (
    "Thank you. Now name the three years that you find most remarkable in that text, in their order, and say "
    "of each in one sentence what was done in it."
)
_FORMS = ("long story", "detailed report", "careful essay", "radio play", "travel guide", "history", "speech")
_THINGS = ("a lighthouse", "a paper mill", "a night train", "an old bridge", "a glass harbour", "a bee farm")
_PLACES = ("Lisbon", "Kyoto", "Oslo", "Quito", "Dakar", "Tasmania", "Naples", "Winnipeg", "Tbilisi", "Cork")
_PEOPLE = ("its keeper", "a retired pilot", "two sisters", "a young cook", "a map maker", "the last postman")
_SUBJECTS = ("tides", "steam engines", "bread", "telescopes", "weather fronts", "clay kilns", "sailing ships")
_VERBS = ("carried", "measured", "repaired", "described", "painted", "counted", "followed", "remembered")


def make_prompts(source: random.Random, num_prompts: int) -> list[str]:
    """Different prompts of about 30 words, each good for a long answer."""
    pick, found = source.choice, dict[str, None]()
    while len(found) < num_prompts:
        prompt = (
            f"Write a {pick(_FORMS)} about {pick(_THINGS)} near {pick(_PLACES)}, seen by {pick(_PEOPLE)} in "
            f"the year {source.randrange(1700, 2000)}, and explain in it step by step how {pick(_SUBJECTS)} "
            "worked and why people cared."
        )
        found[prompt] = None
    return list(found)


def make_endless_prompts(source: random.Random, num_prompts: int) -> list[str]:
    """Different prompts with endless answers: a story may end early, numbers do not."""
    return [
        f"Write all whole numbers from {start} up to {start + 3000} in digits, with commas between them, "
        "and nothing else."
        for start in source.sample(range(100, 2000), num_prompts)
    ]


def make_long_prompt(source: random.Random, num_tokens: int) -> str:
    """A question, and a text of about `num_tokens` tokens."""
    pick, text = source.choice, "What is this text about?\n\n"
    while len(text) < num_tokens * CHARACTERS_PER_TOKEN:
        text += (
            f"In {source.randrange(1700, 2000)} {pick(_PEOPLE)} {pick(_VERBS)} {pick(_THINGS)} near "
            f"{pick(_PLACES)} and wrote about {pick(_SUBJECTS)}. "
        )
    return text

"""What is asked: prompts from fixed seeds, and the asks of each measure.

No prompt occurs twice in a run, so that a server's prompt cache finds little more than the chat template's
own opening, as with strangers' requests; only a second turn repeats its first. Knows no server.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from bench.dialects import Ask
from bench.measures import FIRST_TURN_TOKENS, LONG_ANSWER_TOKENS, LONG_PROMPT_TOKENS, NUM_STREAMS, Measure

TEMPERATURE, TOP_P = 0.7, 0.95  # of the sampled measure
SECOND_QUESTION = (
    "Thank you. Now name the three years that you find most remarkable in that text, in their order, and say "
    "of each in one sentence what was done in it."
)
MORE_THAN_A_SENTENCE = 50  # tokens

_FORMS = ("long story", "detailed report", "careful essay", "radio play", "travel guide", "history", "speech")
_THINGS = ("a lighthouse", "a paper mill", "a night train", "an old bridge", "a glass harbour", "a bee farm")
_PLACES = ("Lisbon", "Kyoto", "Oslo", "Quito", "Dakar", "Tasmania", "Naples", "Winnipeg", "Tbilisi", "Cork")
_PEOPLE = ("its keeper", "a retired pilot", "two sisters", "a young cook", "a map maker", "the last postman")
_SUBJECTS = ("tides", "steam engines", "bread", "telescopes", "weather fronts", "clay kilns", "sailing ships")
_VERBS = ("carried", "measured", "repaired", "described", "painted", "counted", "followed", "remembered")

CountTokens = Callable[[str], int]


def make_asks(measure: Measure, *, seed: int, round_: int, count_tokens: CountTokens) -> list[Ask]:
    """The asks of a measure in one round: the same for every contender.

    Of `gap` the streams and then the long prompt; of `second-turn` the first turn (see make_second_turn).
    """
    source = random.Random(f"{seed}/{round_}/{measure.name}")
    if measure.kind == "gap":
        streams = [Ask(prompt, measure.max_tokens) for prompt in make_endless_prompts(source, NUM_STREAMS)]
        return [*streams, Ask(_long(source, count_tokens, measure), LONG_ANSWER_TOKENS)]
    if measure.kind == "second-turn":
        return [Ask(_long(source, count_tokens, measure), FIRST_TURN_TOKENS)]
    if measure.prompt_tokens is not None:
        return [Ask(_long(source, count_tokens, measure), measure.max_tokens)]
    prompts = make_prompts(source, measure.num_asks)
    if not measure.is_sampled:
        return [Ask(prompt, measure.max_tokens) for prompt in prompts]
    return [
        Ask(prompt, measure.max_tokens, TEMPERATURE, TOP_P, seed=1000 + index)
        for index, prompt in enumerate(prompts)
    ]


def make_second_turn(first: Ask, answer: str) -> Ask:
    """The next question of the same chat."""
    return Ask(SECOND_QUESTION, LONG_ANSWER_TOKENS, history=((first.prompt, answer),))


def _long(source: random.Random, count_tokens: CountTokens, measure: Measure) -> str:
    assert measure.prompt_tokens is not None
    return make_long_prompt(source, count_tokens, measure.prompt_tokens)


def make_prompts(source: random.Random, num_prompts: int) -> list[str]:
    """Different prompts of about 30 words, each good for a long answer."""
    found: dict[str, None] = {}
    while len(found) < num_prompts:
        found[_make_prompt(source)] = None
    return list(found)


def make_endless_prompts(source: random.Random, num_prompts: int) -> list[str]:
    """Different prompts that a model goes on answering: a story may end early, numbers do not."""
    starts = source.sample(range(100, 2000), num_prompts)
    return [
        f"Write all whole numbers from {start} up to {start + 3000} in digits, with commas between them, "
        "and nothing else."
        for start in starts
    ]


def _make_prompt(source: random.Random) -> str:
    pick = source.choice
    return (
        f"Write a {pick(_FORMS)} about {pick(_THINGS)} near {pick(_PLACES)}, seen by {pick(_PEOPLE)} in the "
        f"year {source.randrange(1700, 2000)}, and explain in it step by step how {pick(_SUBJECTS)} worked "
        "and why people cared."
    )


def make_long_prompt(
    source: random.Random, count_tokens: CountTokens, num_tokens: int = LONG_PROMPT_TOKENS
) -> str:
    """A text of so many tokens or a few more, and a question about it."""
    text = "What is this text about?\n\n"
    while (missing := num_tokens - count_tokens(text)) > 0:
        for _ in range(max(1, missing // MORE_THAN_A_SENTENCE)):
            text += _make_sentence(source)
    return text


def _make_sentence(source: random.Random) -> str:
    return (
        f"In {source.randrange(1700, 2000)} {source.choice(_PEOPLE)} {source.choice(_VERBS)} "
        f"{source.choice(_THINGS)} near {source.choice(_PLACES)} and wrote about "
        f"{source.choice(_SUBJECTS)}. "
    )

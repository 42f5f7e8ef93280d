"""What is asked: prompts from fixed seeds, and the measures that are made of them.

No prompt occurs twice in a run, so that a server's prompt cache finds little more than the chat template's
own opening, as with strangers' requests. Knows no server.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.dialects import Ask

LONG_PROMPT_TOKENS = 1350
LONG_ANSWER_TOKENS = 8
NUM_SINGLE_ASKS = 3
SAMPLED = {"temperature": 0.7, "top_p": 0.95}

_FORMS = ("long story", "detailed report", "careful essay", "radio play", "travel guide", "history", "speech")
_THINGS = ("a lighthouse", "a paper mill", "a night train", "an old bridge", "a glass harbour", "a bee farm")
_PLACES = ("Lisbon", "Kyoto", "Oslo", "Quito", "Dakar", "Tasmania", "Naples", "Winnipeg", "Tbilisi", "Cork")
_PEOPLE = ("its keeper", "a retired pilot", "two sisters", "a young cook", "a map maker", "the last postman")
_SUBJECTS = ("tides", "steam engines", "bread", "telescopes", "weather fronts", "clay kilns", "sailing ships")
_VERBS = ("carried", "measured", "repaired", "described", "painted", "counted", "followed", "remembered")


@dataclass(frozen=True)
class Measure:
    """One load to run on a contender; `is_long` asks one long prompt for its time to first token."""

    name: str
    num_clients: int
    num_asks: int
    max_tokens: int
    is_sampled: bool = False
    is_long: bool = False

    @property
    def title(self) -> str:
        """For a person."""
        if self.is_long:
            return f"time to first token, {LONG_PROMPT_TOKENS}-token prompt"
        clients = "1 stream" if self.num_clients == 1 else f"{self.num_clients} parallel"
        how = ", temperature 0.7, top_p 0.95" if self.is_sampled else ""
        return f"{clients} x {self.max_tokens} tokens{how}"


def make_measures(clients: Sequence[int], max_tokens: int) -> list[Measure]:
    """Greedy at each number of clients, sampled at the highest, and the long prompt."""
    measures = [Measure(f"greedy-{count}", count, _num_asks(count), max_tokens) for count in clients]
    most = max(clients)
    sampled = Measure(f"sampled-{most}", most, _num_asks(most), max_tokens, is_sampled=True)
    return [*measures, sampled, Measure("long", 1, 1, LONG_ANSWER_TOKENS, is_long=True)]


def _num_asks(num_clients: int) -> int:
    return NUM_SINGLE_ASKS if num_clients == 1 else num_clients


def make_asks(measure: Measure, *, seed: int, round_: int, count_tokens: Callable[[str], int]) -> list[Ask]:
    """The asks of a measure in one round: the same for every contender."""
    source = random.Random(f"{seed}/{round_}/{measure.name}")
    if measure.is_long:
        return [Ask(make_long_prompt(source, count_tokens), measure.max_tokens)]
    prompts = make_prompts(source, measure.num_asks)
    if not measure.is_sampled:
        return [Ask(prompt, measure.max_tokens) for prompt in prompts]
    return [
        Ask(prompt, measure.max_tokens, seed=1000 + index, **SAMPLED) for index, prompt in enumerate(prompts)
    ]


def make_prompts(source: random.Random, num_prompts: int) -> list[str]:
    """Different prompts of about 30 words, each good for a long answer."""
    found: dict[str, None] = {}
    while len(found) < num_prompts:
        found[_make_prompt(source)] = None
    return list(found)


def _make_prompt(source: random.Random) -> str:
    pick = source.choice
    return (
        f"Write a {pick(_FORMS)} about {pick(_THINGS)} near {pick(_PLACES)}, seen by {pick(_PEOPLE)} in the "
        f"year {source.randrange(1700, 2000)}, and explain in it step by step how {pick(_SUBJECTS)} worked "
        "and why people cared."
    )


def make_long_prompt(source: random.Random, count_tokens: Callable[[str], int]) -> str:
    """A text of LONG_PROMPT_TOKENS tokens or a few more, and a question about it."""
    text = "What is this text about?\n\n"
    while count_tokens(text) < LONG_PROMPT_TOKENS:
        text += (
            f"In {source.randrange(1700, 2000)} {source.choice(_PEOPLE)} {source.choice(_VERBS)} "
            f"{source.choice(_THINGS)} near {source.choice(_PLACES)} and wrote about "
            f"{source.choice(_SUBJECTS)}. "
        )
    return text

"""Are parallel answers mixed up? Each must equal its own solo greedy run, token by token.

Greedy answers of different batch shapes may differ from a step on where the two highest logits are nearly
equal (a near tie: less than 1e-3 apart, in mlx-lm's own model in one process). The bench counts such first
differences separately; any other is a mix-up or an error. It also compares every token of the parallel
answers with that model, so that two equal wrong answers show.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from bench.client import Ask
from bench.load import run_load, warm_up
from bench.prompts import make_prompts
from bench.service import Service
from bench.setup import BenchError, Setup, make_setup, only_run, run_module, say
from prompts.tokenizer import PromptTokenizer
from spool import Result

NEAR_TIE = 1e-3
NUM_WARM_UP_ASKS = 2
REFERENCE_LIMIT_S = 600.0


@dataclass(frozen=True)
class Agreement:
    """Counts over all parallel answers."""

    num_answers: int
    num_equal: int
    num_near_ties: int  # differ from their solo run from a near tie on
    mix_ups: tuple[str, ...]  # differ elsewhere: a sentence each
    num_tokens: int
    num_reference_near_ties: int  # tokens that are not the reference's choice, at a near tie
    num_wrong_tokens: int  # tokens that the reference would not choose
    largest_deficit: float  # largest logit distance from the reference's choice to the answer's token

    @property
    def is_good(self) -> bool:
        """Nothing is mixed up and nothing is wrong."""
        return not self.mix_ups and self.num_wrong_tokens == 0

    def lines(self) -> list[str]:
        """For a person."""
        return [
            f"{self.num_answers} parallel answers against their own solo greedy runs: {self.num_equal} equal "
            f"token by token, {self.num_near_ties} equal up to a near tie (top two logits within "
            f"{NEAR_TIE:g}), {len(self.mix_ups)} different",
            f"{self.num_tokens} tokens against mlx-lm's model in one process: "
            f"{self.num_tokens - self.num_reference_near_ties - self.num_wrong_tokens} its own choice, "
            f"{self.num_reference_near_ties} at a near tie, {self.num_wrong_tokens} wrong "
            f"(largest distance to its choice {self.largest_deficit:.2g})",
            *self.mix_ups,
        ]


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first step at which two answers differ; None if they are equal."""
    pairs = enumerate(zip_longest(one, other))
    return next((step for step, (token, other_token) in pairs if token != other_token), None)


def judge(
    parallel: Sequence[Sequence[int]],
    solo: Sequence[Sequence[int]],
    steps: Sequence[Sequence[dict[str, Any]]],
) -> Agreement:
    """Count; `steps` has the reference's numbers for each parallel answer's tokens. Pure."""
    num_equal = num_near_ties = 0
    mix_ups = []
    for number, (one, other, said) in enumerate(zip(parallel, solo, steps, strict=True)):
        step = first_difference(one, other)
        gap = said[step]["gap"] if step is not None and step < len(said) else math.inf
        if step is None:
            num_equal += 1
        elif gap < NEAR_TIE:
            num_near_ties += 1
        else:
            where = f"the top two logits are {gap:.3g} apart" if step < len(said) else "one has ended"
            mix_ups.append(f"answer {number} differs from its solo run at token {step}, where {where}")
    deficits = [entry["deficit"] for said in steps for entry in said]
    num_wrong = sum(deficit >= NEAR_TIE for deficit in deficits)
    return Agreement(
        num_answers=len(parallel),
        num_equal=num_equal,
        num_near_ties=num_near_ties,
        mix_ups=tuple(mix_ups),
        num_tokens=len(deficits),
        num_reference_near_ties=sum(deficit > 0 for deficit in deficits) - num_wrong,
        num_wrong_tokens=num_wrong,
        largest_deficit=max(deficits, default=0.0),
    )


def run(options: argparse.Namespace) -> int:
    """Ask in parallel, ask the same one at a time, compare and print; 0 if nothing is mixed up or wrong."""
    setup = make_setup()
    prompts = make_prompts(random.Random(f"{options.seed}/agreement"), options.num_clients)
    asks = [Ask(prompt, options.max_tokens) for prompt in prompts]
    with only_run(setup):
        parallel = ask_fresh_service(setup, asks, options.num_clients)
        solo = ask_fresh_service(setup, asks, 1)
        say("the answers against mlx-lm's own model")
        steps = ask_reference(setup, prompts, parallel)
    agreement = judge([result.token_ids for result in parallel], [result.token_ids for result in solo], steps)
    print(json.dumps(asdict(agreement)) if options.json else "\n".join(agreement.lines()))
    return 0 if agreement.is_good else 1


def ask_fresh_service(setup: Setup, asks: Sequence[Ask], num_clients: int) -> list[Result]:
    """Ask a fresh service, whose prompt cache is empty."""
    say(f"{len(asks)} requests, {num_clients} at once")
    service = Service(setup)
    with service.running() as server:
        warm_up(server, NUM_WARM_UP_ASKS)
        return service.results(run_load(server, asks, num_clients).replies)


def ask_reference(
    setup: Setup, prompts: Sequence[str], results: Sequence[Result]
) -> list[list[dict[str, Any]]]:
    """Run reference.py; return its numbers for each answer's tokens.

    Raises:
        BenchError: it fails or takes too long, or the front door tokenized a prompt differently.
    """
    tokenizer = PromptTokenizer(setup.model_folder)
    sequences = []
    for prompt, result in zip(prompts, results, strict=True):
        chat = tokenizer.render([{"role": "user", "content": prompt}])
        prompt_ids = tokenizer.encode_rendered(chat.text, literals=chat.literals)
        if len(prompt_ids) != result.usage.prompt_tokens:
            raise BenchError("front door and bench tokenize a prompt differently")
        sequences.append({"prompt_ids": prompt_ids, "answer_ids": result.token_ids})
    task = {
        "model": str(setup.model_folder),
        "blas": setup.settings.cpu_blas,
        "threads": setup.num_threads,
        "sequences": sequences,
    }
    said = run_module("the reference", "bench.reference", stdin=json.dumps(task), limit_s=REFERENCE_LIMIT_S)
    found: list[list[dict[str, Any]]] = json.loads(said)
    return found

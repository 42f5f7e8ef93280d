"""The measures by name: what is asked, how many at once, and by which figure it is judged. Pure.

    group         measures                what it is judged by
    throughput    greedy-N                tokens a second of N clients together, temperature 0
    sampled       sampled-N               the same at temperature 0.7, top_p 0.95
    ttft          prompt-N                seconds to the first token of one prompt of N tokens
    second-turn   second-turn             the same of the second turn of such a chat, about 30 new tokens
    gap           gap                     longest wait between two tokens of 4 running streams, while a prompt
                                          of 1,350 tokens arrives and until its first token
    edits         edits                   tokens a second of one stream after its first token; the answers are
                                          forced to be reference edits of code (edits.py)
    moe           moe-N, context-N        tokens a second of N clients; of one stream behind N tokens of
                                          context; on a seeded random deepseek_v2 (random_model.py).
                                          context-8192 takes two minutes: only where it is named
    ring-size     (throughput and ttft again, on one process each)
    shipped       shipped-1               one client, on mlx.launch with the BLAS that MLX brings
    blas-alone    (what was promised against the peer again, ours without packed weights)

`busy` names the measure in which the stages' busy share is recorded: greedy at the most clients. What no
promise is about is measured in the first round only, unless `--only` has its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["load", "prompt", "second-turn", "gap", "edits", "context"]
LONG_PROMPT_TOKENS = 1350
LONG_ANSWER_TOKENS = 8
PROMPT_TOKENS = (340, 680, LONG_PROMPT_TOKENS)
CONTEXT_TOKENS = (1024, 4096)
LONG_CONTEXT_TOKENS = 8192
CONTEXT_ANSWER_TOKENS = 33
MOE_CLIENTS = (1, 8, 16)
MOE_ANSWER_TOKENS = 32
SHIPPED_ANSWER_TOKENS = 16
FIRST_TURN_TOKENS = 32
NUM_STREAMS = 4
STREAM_TOKENS = 1000  # more than any server makes until it has read the prompt; all are broken off then
PROMISED_CLIENTS = (1, 8)  # and the most
AGREEMENT_ANSWERS = 8
NUM_SINGLE_ASKS = 3
# What a stream without drafts is measured on: its speed does not depend on which tokens they are.
UNDRAFTED_TOKENS = 32
GROUPS = (
    "throughput",
    "sampled",
    "ttft",
    "second-turn",
    "gap",
    "edits",
    "moe",
    "ring-size",
    "shipped",
    "blas-alone",
)
QUICK_GROUPS = ("throughput", "sampled", "ttft", "second-turn", "gap")


@dataclass(frozen=True)
class Measure:
    """One thing to measure on a contender."""

    name: str
    num_clients: int
    num_asks: int
    max_tokens: int
    kind: Kind = "load"
    group: str = "throughput"
    is_sampled: bool = False
    prompt_tokens: int | None = None  # None: about 30 words
    records_steps: bool = False
    is_once: bool = False  # in the first round only

    @property
    def unit(self) -> str:
        """Of its figure."""
        return "s" if self.is_less_better else "tokens/s"

    @property
    def is_less_better(self) -> bool:
        """It is judged by a time."""
        return self.kind in ("prompt", "second-turn", "gap")

    @property
    def title(self) -> str:
        """For a person."""
        if self.kind == "load":
            clients = "1 stream" if self.num_clients == 1 else f"{self.num_clients} parallel"
            how = ", temperature 0.7, top_p 0.95" if self.is_sampled else ""
            return f"{clients} x {self.max_tokens} tokens{how}"
        return {
            "prompt": f"time to first token, {self.prompt_tokens}-token prompt",
            "second-turn": f"time to first token, second turn after {self.prompt_tokens} tokens",
            "gap": f"worst gap of {NUM_STREAMS} streams while {self.prompt_tokens} tokens arrive",
            "edits": "1 stream, code editing with forced reference answers",
            "context": f"1 stream behind {self.prompt_tokens} tokens of context",
        }[self.kind]


def make_measures(clients: Sequence[int], max_tokens: int) -> list[Measure]:
    """What both sides run on the same model; the one that leaves streams behind comes last."""
    most = max(clients)
    greedy = [
        Measure(
            f"greedy-{count}",
            count,
            num_asks(count),
            max_tokens,
            records_steps=count == most,
            is_once=count not in (*PROMISED_CLIENTS, most),
        )
        for count in clients
    ]
    sampled = Measure(f"sampled-{most}", most, num_asks(most), max_tokens, group="sampled", is_sampled=True)
    long = LONG_PROMPT_TOKENS
    edits = Measure("edits", 1, 0, UNDRAFTED_TOKENS, kind="edits", group="edits", is_once=True)
    turns = Measure(
        "second-turn", 1, 2, LONG_ANSWER_TOKENS, kind="second-turn", group="second-turn", prompt_tokens=long
    )
    gap = Measure(
        "gap", NUM_STREAMS, NUM_STREAMS + 1, STREAM_TOKENS, kind="gap", group="gap", prompt_tokens=long
    )
    return [*greedy, sampled, *make_prompt_measures(PROMPT_TOKENS), turns, edits, gap]


def make_prompt_measures(lengths: Sequence[int]) -> list[Measure]:
    """One prompt of each length."""
    return [
        Measure(
            f"prompt-{length}",
            1,
            1,
            LONG_ANSWER_TOKENS,
            kind="prompt",
            group="ttft",
            prompt_tokens=length,
            is_once=length != LONG_PROMPT_TOKENS,
        )
        for length in lengths
    ]


def for_default_flags(measures: Sequence[Measure]) -> list[Measure]:
    """What the peer runs with its default flags: its own speed where ours was promised against it."""
    groups = ("throughput", "ttft", "gap")
    return [measure for measure in measures if measure.group in groups and not measure.is_once]


def for_blas_alone(measures: Sequence[Measure]) -> list[Measure]:
    """What ours also runs without packed weights, once: how much of a ratio comes from its products."""
    groups = ("throughput", "ttft", "gap")
    return [
        replace(measure, is_once=True)
        for measure in measures
        if measure.group in groups and not measure.is_once
    ]


def make_ring_size_measures(clients: Sequence[int], max_tokens: int) -> list[Measure]:
    """What is repeated on a ring of another size."""
    chosen = sorted({min(clients), max(clients)})
    loads = [Measure(f"greedy-{count}", count, num_asks(count), max_tokens) for count in chosen]
    return [*loads, *make_prompt_measures((LONG_PROMPT_TOKENS,))]


def make_shipped_measure() -> Measure:
    """So few tokens, because it takes a second for each."""
    return Measure("shipped-1", 1, 1, SHIPPED_ANSWER_TOKENS, group="shipped", is_once=True)


def make_moe_measures() -> list[Measure]:
    """What is run on the random mixture of experts."""
    loads = [
        Measure(f"moe-{count}", count, num_asks(count), MOE_ANSWER_TOKENS, group="moe")
        for count in MOE_CLIENTS
    ]
    contexts = []
    for length in (*CONTEXT_TOKENS, LONG_CONTEXT_TOKENS):
        name, tokens = f"context-{length}", CONTEXT_ANSWER_TOKENS
        group = "long-context" if length == LONG_CONTEXT_TOKENS else "moe"
        contexts.append(Measure(name, 1, 1, tokens, kind="context", group=group, prompt_tokens=length))
    return [*loads, *contexts]


def choose(measures: Sequence[Measure], only: Sequence[str]) -> list[Measure]:
    """Those whose group or name is wanted; `busy` wants what records steps. A name wants it in all rounds."""
    return [
        replace(measure, is_once=measure.is_once and (measure.name not in only or measure.name in GROUPS))
        for measure in measures
        if {measure.group, measure.name} & set(only) or (measure.records_steps and "busy" in only)
    ]


def all_names(clients: Sequence[int], max_tokens: int) -> list[str]:
    """Everything that `--only` takes."""
    measures = [*make_measures(clients, max_tokens), make_shipped_measure(), *make_moe_measures()]
    names = [measure.name for measure in measures]
    return list(dict.fromkeys([*GROUPS, "busy", *names]))


def num_asks(num_clients: int) -> int:
    """One for each client; one alone asks several times."""
    return NUM_SINGLE_ASKS if num_clients == 1 else num_clients

"""The oracle: compares what the clients were told with what is in the spool.

    lost           accepted (its id was told) and without an answer, or an answer with tokens that never came
    doubled        two ids for one key, or a token index that came twice
    contradicted   a token that was shown and is not in the answer, or two answers that differ
    condemned      an answer that is an error, or cancelled: nothing but kills from outside happened to it
    other_text     an answer that is not the one of the calm service: a valid continuation, but another one

Pure but for the results, which it is given a way to read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.journal import Entry, Question
from spool import Result

VERDICTS = ("lost", "doubled", "contradicted", "condemned")


@dataclass
class Verdict:
    """How many of each, and which."""

    num_accepted: int = 0
    counts: dict[str, int] = field(
        default_factory=lambda: {**dict.fromkeys(VERDICTS, 0), "other_text": 0, "resets": 0}
    )
    cases: list[dict[str, Any]] = field(default_factory=list)

    def add(self, what: str, entry: Entry, why: str) -> None:
        """Count one finding."""
        self.counts[what] += 1
        self.cases.append({"what": what, "why": why, "ids": entry.ids, "question": entry.question})

    @property
    def is_good(self) -> bool:
        """Nothing accepted was lost, doubled, contradicted or condemned."""
        return not any(self.counts[what] for what in VERDICTS)


def judge(
    entries: Sequence[Entry],
    questions: Mapping[int, Question],
    read_result: Callable[[str], Result | None],
) -> Verdict:
    """Look at every request that a client knows to be accepted."""
    verdict = Verdict()
    for entry in entries:
        verdict.counts["resets"] += entry.num_resets
        if not entry.ids:
            continue
        verdict.num_accepted += 1
        if len(entry.ids) > 1:
            verdict.add("doubled", entry, "two ids for one key")
        result = read_result(entry.ids[-1])
        if result is None:
            verdict.add("lost", entry, "no result in the spool")
            continue
        if result.finish_reason not in ("stop", "length"):
            verdict.add("condemned", entry, f"{result.finish_reason} {result.error}")
            continue
        _compare(entry, result, questions[entry.question], verdict)
    return verdict


def _compare(entry: Entry, result: Result, question: Question, verdict: Verdict) -> None:
    told = entry.result
    if told is None:
        verdict.add("lost", entry, f"no answer reached the client: {entry.trouble[-3:]}")
    elif told.get("text") != result.text:
        verdict.add("contradicted", entry, "the client was told another answer than the spool holds")
    if entry.kind == "stream":
        _compare_tokens(entry, result, verdict)
    if question.answer and result.token_ids != question.answer:
        verdict.add("other_text", entry, "not the answer of the calm service")


def _compare_tokens(entry: Entry, result: Result, verdict: Verdict) -> None:
    indexes = [index for index, _ in entry.tokens]
    if len(set(indexes)) < len(indexes):
        verdict.add("doubled", entry, "a token index came twice")
    wrong = [
        index
        for index, token_id in entry.tokens
        if index >= len(result.token_ids) or result.token_ids[index] != token_id
    ]
    if wrong:
        verdict.add("contradicted", entry, f"tokens {wrong[:5]} were shown otherwise")
    # A front door that cannot re-attach to a stream hands over the rest as a whole.
    is_whole = entry.num_connections == 1 or not indexes or max(indexes) == len(result.token_ids) - 1
    if is_whole and indexes and set(indexes) != set(range(max(indexes) + 1)):
        verdict.add("lost", entry, "token indexes are missing in the stream")

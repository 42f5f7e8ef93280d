"""The oracle: compares what the clients were told with what is in the spool, both ways round.

    lost           accepted and without an answer, unknown for a moment, an answer with tokens that never
                   came, or a damaged file
    doubled        two ids for one key, one id for two, a token index that came twice, or an answer in the
                   spool that nobody asked for
    contradicted   a token that was shown and is not in the answer, two answers that differ, or a stream that
                   was told to begin anew: no death of a process excuses that
    condemned      an answer that is an error, or cancelled: nothing but kills from outside happened to it
    poison         of these, the ones that were held to bring the ring down
    reply_lost     accepted, as the spool shows, by a client that was never told its id (no fault)
    other_text     an answer that is not the one of the calm service: a valid continuation, but another one

Accepted is what a client was told the id of, and what its Idempotency-Key stands for in the spool. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.client import STREAMS
from chaos.found import Found
from chaos.journal import Entry, Question
from spool import Result

VERDICTS = ("lost", "doubled", "contradicted", "condemned")
NOTES = ("poison", "reply_lost", "other_text", "resets")


@dataclass
class Verdict:
    """How many of each, and which."""

    num_accepted: int = 0
    num_answers: int = 0  # in the spool, asked for by these clients
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*VERDICTS, *NOTES), 0))
    cases: list[dict[str, Any]] = field(default_factory=list)

    def add(self, what: str, why: str, ids: Sequence[str], question: int | None = None) -> None:
        """Count one finding."""
        self.counts[what] += 1
        self.cases.append({"what": what, "why": why, "ids": list(ids), "question": question})

    @property
    def is_good(self) -> bool:
        """Nothing accepted was lost, doubled, contradicted or condemned."""
        return not any(self.counts[what] for what in VERDICTS)


def judge(entries: Sequence[Entry], questions: Mapping[int, Question], found: Found) -> Verdict:
    """Look at every request that a client or the spool knows to be accepted."""
    verdict = Verdict()
    owners: dict[str, str] = {}  # key by id
    for entry in entries:
        verdict.counts["resets"] += entry.num_resets
        ids = accepted_ids(entry, found)
        if not ids:
            continue
        verdict.num_accepted += 1
        verdict.counts["reply_lost"] += not entry.ids
        if len(ids) > 1:
            verdict.add("doubled", "two ids for one key", ids, entry.question)
        for id in ids:
            if owners.setdefault(id, entry.key) != entry.key:
                verdict.add("doubled", "one id for two keys", ids, entry.question)
        _judge_answer(entry, ids, questions[entry.question], found, verdict)
    verdict.num_answers = len(owners.keys() & found.results.keys())
    for id in found.results.keys() - owners.keys():
        verdict.add("doubled", "an answer that nobody asked for", [id])
    for id in found.unanswered - owners.keys():
        verdict.add("lost", "a request in the queue that nobody knows, without an answer", [id])
    for name in found.damaged:
        verdict.add("lost", f"damaged: {name}", [])
    return verdict


def accepted_ids(entry: Entry, found: Found) -> list[str]:
    """The ids that a client was told, and the one that the spool has under its key.

    A key's record alone is no acceptance: it is written before the request is.
    """
    kept = found.id_of_key.get(entry.key)
    is_there = kept in found.results or kept in found.unanswered
    return [*entry.ids, *([kept] if kept and is_there and kept not in entry.ids else [])]


def _judge_answer(
    entry: Entry, ids: Sequence[str], question: Question, found: Found, verdict: Verdict
) -> None:
    result = found.results.get(ids[-1])
    if result is None:
        verdict.add("lost", "no result in the spool", ids, entry.question)
    elif result.finish_reason not in ("stop", "length"):
        verdict.add("condemned", f"{result.finish_reason} {result.error}", ids, entry.question)
        verdict.counts["poison"] += (result.error or {}).get("code") == "poison"
    else:
        _compare(entry, ids, result, question, verdict)


def _compare(entry: Entry, ids: Sequence[str], result: Result, question: Question, verdict: Verdict) -> None:
    def add(what: str, why: str) -> None:
        verdict.add(what, why, ids, entry.question)

    if entry.result is None and not entry.is_abandoned:
        add("lost", f"no answer reached the client: {entry.trouble[-3:]}")
    if any(trouble.startswith("404 ") for trouble in entry.trouble):
        add("lost", "for a moment the service said that it does not know the request")
    if entry.result is not None and entry.result.get("text") != result.text:
        add("contradicted", "the client was told another answer than the spool holds")
    if entry.kind in STREAMS:
        for what, why in _compare_tokens(entry, result):
            add(what, why)
    if question.answer and result.token_ids != question.answer:
        verdict.counts["other_text"] += 1


def _compare_tokens(entry: Entry, result: Result) -> list[tuple[str, str]]:
    """What is wrong with a stream's tokens."""
    findings = []
    indexes = [index for index, _ in entry.tokens]
    if len(set(indexes)) < len(indexes):
        findings.append(("doubled", "a token index came twice"))
    shown = [*entry.tokens_before_reset, *entry.tokens]
    told = [index for index, token_id in shown if list(result.token_ids[index : index + 1]) != [token_id]]
    if told:
        findings.append(("contradicted", f"tokens {told[:5]} were shown otherwise"))
    if entry.num_resets:
        findings.append(("contradicted", f"the stream was told {entry.num_resets} times to begin anew"))
    # A client whose stream could not be attached again is handed the rest as a whole.
    is_whole = entry.num_connections == 1 or not indexes or max(indexes) == len(result.token_ids) - 1
    if is_whole and indexes and set(indexes) != set(range(max(indexes) + 1)):
        findings.append(("lost", "token indexes are missing in the stream"))
    return findings

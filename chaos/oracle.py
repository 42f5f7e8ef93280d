"""The oracle: compares the clients' journals with the spool, in both directions.

    lost           an accepted request without an answer, a 404 for it, tokens that never came, or a damaged
                   file
    doubled        two ids for one key, one id for two keys, a token index that came twice, or an answer in
                   the spool that no client asked for
    contradicted   a shown token that is not in the answer, two answers that differ, or a stream with a reset:
                   the death of a process excuses none of these
    condemned      an answer that is an error, or cancelled, although only kills happened
    poison         of the condemned, the requests with that code
    reply_lost     accepted, as the spool shows, but the client never received its id (no fault)
    other_text     an answer other than the calm service's: a valid continuation, but different

A request is accepted if a client received its id, or if the spool has one under its Idempotency-Key. Pure.
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
    """The findings: counts and cases."""

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
    """Judge every request that is accepted by a client's journal or by the spool."""
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
        verdict.add("doubled", "an answer that no client asked for", [id])
    for id in found.unanswered - owners.keys():
        verdict.add("lost", "a request in the queue of no client, without an answer", [id])
    for name in found.damaged:
        verdict.add("lost", f"damaged: {name}", [])
    return verdict


def accepted_ids(entry: Entry, found: Found) -> list[str]:
    """The ids that a client received, and the one that the spool has under its key.

    A key's record alone is no acceptance: the spool writes it before the request.
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
        add("lost", "the service answered 404 for the request")
    if entry.result is not None and entry.result.get("text") != result.text:
        add("contradicted", "the client received another answer than the spool holds")
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
    wrong = [index for index, token_id in shown if list(result.token_ids[index : index + 1]) != [token_id]]
    if wrong:
        findings.append(("contradicted", f"tokens {wrong[:5]} differ from those that were shown"))
    if entry.num_resets:
        findings.append(("contradicted", f"the stream had {entry.num_resets} resets"))
    # A client that cannot attach again receives the rest as a whole answer.
    is_whole = entry.num_connections == 1 or not indexes or max(indexes) == len(result.token_ids) - 1
    if is_whole and indexes and set(indexes) != set(range(max(indexes) + 1)):
        findings.append(("lost", "token indexes are missing in the stream"))
    return findings

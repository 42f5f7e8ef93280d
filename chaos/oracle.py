"""The oracle: compares the clients' journals with the spool, in both directions.

    lost           an accepted request without an answer, a 404 for it, tokens that never came, or a damaged
                   file
    doubled        two ids for one key, one id for two keys, a token index that came twice, or an answer in
                   the spool that no client asked for
    contradicted   a shown token that is not in the answer, two answers that differ, or a stream with a reset:
                   the death of a process excuses none of these
    condemned      an answer that is an error, or cancelled, although only kills happened
    invalid        an answer that does not have its form, or not a logprob for each of its tokens
    poison         of the condemned, the requests with that code
    reply_lost     accepted, as the spool shows, but the client never received its id (no fault)
    other_text     an answer other than the calm service's: a valid continuation, but different
    half_submitted answers to further choices whose first one was never accepted: the front door died between
                   them (no fault)

A request is accepted if a client received its id, or if the spool has one under its Idempotency-Key. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.client import STREAMS
from chaos.forms import find_fault
from chaos.found import Found
from chaos.journal import Entry, Question
from spool import Result

VERDICTS = ("lost", "doubled", "contradicted", "condemned", "invalid")
NOTES = ("poison", "reply_lost", "other_text", "half_submitted", "resets")
CALL_ID = re.compile("call_[0-9a-f]{32}_[0-9]+")


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
        """Nothing accepted was lost, doubled, contradicted, condemned or invalid."""
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
        num_choices = questions[entry.question].num_choices
        if len(ids) != num_choices:
            what = "doubled" if len(ids) > num_choices else "lost"
            verdict.add(what, f"{len(ids)} ids for one key of {num_choices} choices", ids, entry.question)
        for id in ids:
            if owners.setdefault(id, entry.key) != entry.key:
                verdict.add("doubled", "one id for two keys", ids, entry.question)
        _judge_answer(entry, ids, questions[entry.question], found, verdict)
    verdict.num_answers = len(owners.keys() & found.results.keys())
    unasked = found.results.keys() - owners.keys()
    verdict.counts["half_submitted"] = len(unasked & found.further_choices)
    for id in unasked - found.further_choices:
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
    good = []
    for result in map(found.results.get, ids[-question.num_choices :]):
        if result is None:
            verdict.add("lost", "no result in the spool", ids, entry.question)
        elif result.finish_reason not in ("stop", "length"):
            verdict.add("condemned", f"{result.finish_reason} {result.error}", ids, entry.question)
            verdict.counts["poison"] += (result.error or {}).get("code") == "poison"
        else:
            good.append(result)
            if fault := find_fault(question.form, result):
                verdict.add("invalid", fault, ids, entry.question)
    if len(good) == question.num_choices:
        _compare(entry, ids, good, question, verdict)


def _compare(
    entry: Entry, ids: Sequence[str], results: Sequence[Result], question: Question, verdict: Verdict
) -> None:
    def add(what: str, why: str) -> None:
        verdict.add(what, why, ids, entry.question)

    if entry.result is None and not entry.is_abandoned:
        add("lost", f"no answer reached the client: {entry.trouble[-3:]}")
    if any(trouble.startswith("404 ") for trouble in entry.trouble):
        add("lost", "the service answered 404 for the request")
    if not question.is_simple:
        for what, why in _compare_choices(entry, question, results):
            add(what, why)
        return
    (result,) = results
    if entry.result is not None and entry.result.get("text") != result.text:
        add("contradicted", "the client received another answer than the spool holds")
    if entry.kind in STREAMS:
        for what, why in _compare_tokens(entry, result):
            add(what, why)
    if question.answer and result.token_ids != question.answer:
        verdict.counts["other_text"] += 1


def _compare_choices(entry: Entry, question: Question, results: Sequence[Result]) -> list[tuple[str, str]]:
    """What is wrong with the texts of choices, over all connections."""
    findings = []
    last = entry.shown[-1] if entry.shown else {}
    if sorted(last) != list(range(question.num_choices)):
        findings.append(("lost", f"of the choices only {sorted(last)} reached the client"))
    earlier = [pair for shown in entry.shown[:-1] for pair in shown.items()]
    if not all(last.get(choice, "").startswith(text) for choice, text in earlier):
        findings.append(("contradicted", "a retry showed another text"))
    texts = list(last.values())
    if not question.is_chat and sorted(texts) != sorted(result.text for result in results):
        findings.append(("contradicted", "the client received other choices than the spool holds"))
    for text, result in zip(texts, results, strict=False) if question.is_chat else ():
        calls = CALL_ID.findall(text)
        if calls != [f"call_{result.id}_{index}" for index in range(len(calls))]:
            findings.append(("doubled", "the ids of the calls are not those of one answer"))
        if not all(piece in result.text for part in CALL_ID.split(text) for piece in _split_call(part)):
            findings.append(("contradicted", "the client received other calls than the spool holds"))
    return findings


def _split_call(part: str) -> list[str]:
    """Return a call's arguments, and the text behind it."""
    said = part.removeprefix("find")
    try:
        end = json.JSONDecoder().raw_decode(said)[1]
    except ValueError:  # text alone, or arguments that break off
        return [said]
    return [said[:end], said[end:]]


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

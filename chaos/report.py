"""The report of a run: the journal for programs, lines for people, and whether it was good."""

from __future__ import annotations

import json
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from chaos.flatness import Growth
from chaos.journal import Entry
from chaos.killer import Kill, Killer
from chaos.oracle import VERDICTS, Verdict
from chaos.plan import Plan

MIN_GAP_S = 0.4  # between two tokens of all streams together; a longer gap means a ring that was down
MAX_CASES_SHOWN = 10


@dataclass(frozen=True)
class Outcome:
    """The findings of a run."""

    verdict: Verdict
    growths: list[Growth]
    recoveries_s: Mapping[str, list[float]]  # by kind of victim
    num_left_in_queue: int
    num_left_processes: int
    killing_s: float
    trouble: str  # of the service after the kills; "" if it answered

    def faults(self, num_kills: int) -> list[str]:
        """The reasons why the run was not good."""
        checks = {
            f"{', '.join(VERDICTS)} must be 0": self.verdict.is_good,
            f"{self.num_left_in_queue} requests are left in the queue": not self.num_left_in_queue,
            f"{self.num_left_processes} processes are left": not self.num_left_processes,
            "nothing was killed": num_kills > 0,
            self.trouble: not self.trouble,
            "something grew": all(growth.is_flat for growth in self.growths),
        }
        return [why for why, is_good in checks.items() if not is_good]


def recovery_times(kills: Sequence[Kill], token_times: Sequence[float]) -> dict[str, list[float]]:
    """Seconds from each kill to the next token of any stream, by kind of victim; not if another kill came.

    Tokens in flight at the kill arrive within milliseconds: the service is back at the end of the first gap
    of at least MIN_GAP_S. A kill without such a gap hit no stream.
    """
    times, moments = sorted(token_times), sorted(kill.at_unix for kill in kills)
    found: dict[str, list[float]] = {}
    for kill in kills:
        place = bisect_right(times, kill.at_unix)
        before = kill.at_unix
        while place < len(times) and times[place] - before < MIN_GAP_S:
            before, place = times[place], place + 1
        is_soon = before - kill.at_unix < MIN_GAP_S  # else the gap has another cause
        if place == len(times) or not is_soon:
            continue
        if bisect_right(moments, times[place]) == bisect_right(moments, kill.at_unix):
            found.setdefault(kill.victim.split()[0], []).append(round(times[place] - kill.at_unix, 3))
    return {victim: sorted(seconds) for victim, seconds in sorted(found.items())}


def report(plan: Plan, killer: Killer, entries: Sequence[Entry], outcome: Outcome) -> int:
    """Write the journal, print the summary; return the exit code."""
    faults = outcome.faults(len(killer.kills))
    path = plan.folder / "journal.json"
    write_journal(path, plan, killer, entries, outcome)
    print(describe_kills(killer, outcome))
    print(describe_requests(entries, outcome.verdict))
    for victim, times in outcome.recoveries_s.items():
        print(
            f"kill to the next token, {victim}: median {statistics.median(times):.1f} s, "
            f"worst {times[-1]:.1f} s (of {len(times)} without another kill between)"
        )
    print("\n".join(describe_growths(outcome.growths)))
    print(", ".join(f"{what} {number}" for what, number in outcome.verdict.counts.items()))
    for case in outcome.verdict.cases[:MAX_CASES_SHOWN]:
        print(f"  {case}")
    print(f"journal {path}")
    print("good" if not faults else f"NOT GOOD: {'; '.join(faults)}")
    return 1 if faults else 0


def write_journal(path: Path, plan: Plan, killer: Killer, entries: Sequence[Entry], outcome: Outcome) -> None:
    """Write everything as JSON."""
    found = {
        "plan": {**asdict(plan), "folder": str(plan.folder)},
        "killing_s": round(outcome.killing_s, 1),
        "kills": [asdict(kill) for kill in killer.kills],
        "failed_starts": killer.num_failed_starts,
        "given_up": killer.num_given_up,
        "accepted": outcome.verdict.num_accepted,
        "answers": outcome.verdict.num_answers,
        "counts": outcome.verdict.counts,
        "left_in_queue": outcome.num_left_in_queue,
        "left_processes": outcome.num_left_processes,
        "trouble": outcome.trouble,
        "cases": outcome.verdict.cases,
        "recoveries_s": outcome.recoveries_s,
        "growth": [{**asdict(growth), "is_flat": growth.is_flat} for growth in outcome.growths],
        "requests": [asdict(entry) for entry in entries],
    }
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")


def describe_kills(killer: Killer, outcome: Outcome) -> str:
    """Count the kills by victim and by the service's state."""
    kills = killer.kills
    by_victim = Counter(kill.victim for kill in kills)
    by_state = Counter(kill.state for kill in kills)
    num_busy = sum(kill.num_active > 0 for kill in kills)
    victims = ", ".join(f"{name} {count}" for name, count in sorted(by_victim.items()))
    states = ", ".join(f"{state} {count}" for state, count in sorted(by_state.items()))
    minutes = outcome.killing_s / 60
    return (
        f"{len(kills)} kills in {minutes:.1f} minutes ({victims}), {num_busy} of them with running requests; "
        f"state of the service: {states}; {killer.num_failed_starts} failed starts, "
        f"given up {killer.num_given_up} times"
    )


def describe_requests(entries: Sequence[Entry], verdict: Verdict) -> str:
    """Count accepted and answered requests, by kind of client."""
    kinds = Counter(entry.kind for entry in entries if entry.ids or entry.is_abandoned)
    asked = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    num_again = sum(max(0, entry.num_connections - 1) for entry in entries)
    return (
        f"{verdict.num_accepted} requests accepted, {verdict.num_answers} answers in the spool ({asked}); "
        f"{num_again} connections made again"
    )


def describe_growths(growths: Sequence[Growth]) -> list[str]:
    """One line a value."""
    if not growths:
        return ["the run was too short to measure growth"]
    return ["medians of the first and the last third:"] + [
        f"  {growth.name:<24} {growth.first:>8g} {growth.last:>8g}  (bound {growth.bound:g})"
        + ("" if growth.is_flat else "  GREW")
        for growth in growths
    ]

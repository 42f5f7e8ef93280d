"""`demo --kill`: kills a rank in the middle of a streamed story, and shows that the story goes on.

The stream proves it: the index of every token event, and the final result. Kills one process of the service
by pid and start time. Knows nothing of how a ring is rebuilt.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.commands.requests.client import stream
from cluster.errors import ClusterError
from cluster.supervisor.service import Service, read_service
from cluster.terminal import Terminal
from config import Settings

STORY = "Tell a long story about a lighthouse keeper and the sea."
MAX_TOKENS = 160
KILL_AFTER_TOKENS = 40


def run_kill_demo(settings: Settings, terminal: Terminal) -> int:
    """Ask for the story, kill, count; 0 if no token is lost, doubled or changed.

    Raises:
        ClusterError: there is no rank to kill, or the story did not end.
    """
    service = read_service(settings)
    if service.api_address is None:
        raise ClusterError("nothing is running: ./launch.sh start")
    terminal.line(terminal.colored(f"> {STORY}", "bold"))
    body = {"prompt": STORY, "max_tokens": MAX_TOKENS, "temperature": 0.8, "seed": 7}
    tokens: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    killed_at, longest_s, last_at = None, 0.0, time.monotonic()
    for event, data in stream(settings, service.api_address, body):
        if event == "done":
            result = data
        if event != "token":
            continue
        now = time.monotonic()
        if killed_at is not None:
            longest_s = max(longest_s, now - max(last_at, killed_at))
        last_at = now
        tokens.append(data)
        terminal.raw(str(data["text"]))
        if len(tokens) == KILL_AFTER_TOKENS:
            kill_a_rank(service, terminal)
            killed_at = time.monotonic()
    terminal.line("\n")
    return show_count(tokens, result, longest_s if killed_at is not None else None, terminal)


def kill_a_rank(service: Service, terminal: Terminal) -> None:
    """SIGKILL to the last rank, which has the first layers."""
    ranks = sorted(name for name in service.processes if name.startswith("rank "))
    if not ranks or not service.processes[ranks[-1]].send(signal.SIGKILL):
        raise ClusterError("there is no rank to kill")
    pid = service.processes[ranks[-1]].pid
    terminal.raw(terminal.colored(f"  [kill -9 {pid}: {ranks[-1]}]  ", "red"))


def show_count(
    tokens: Sequence[Mapping[str, Any]], result: Mapping[str, Any], pause_s: float | None, terminal: Terminal
) -> int:
    """Print the count; 0 if no token is lost, doubled or changed."""
    num_expected = int(result.get("usage", {}).get("completion_tokens", 0))
    num_lost, num_doubled = count_faults([int(token["index"]) for token in tokens], num_expected)
    is_same = "".join(str(token["text"]) for token in tokens) == result.get("text")
    if pause_s is not None:
        terminal.line(f"The stream paused for {pause_s:.1f} s.")
    terminal.line(f"{len(tokens)} tokens, {num_lost} lost, {num_doubled} twice")
    if not is_same:
        terminal.line(terminal.colored("The text of the stream is not the text of the result.", "red"))
    is_good = is_same and not num_lost and not num_doubled and pause_s is not None
    if pause_s is None:
        terminal.line("The story ended before the kill and proves nothing: run it again.")
    return 0 if is_good else 1


def count_faults(indexes: Sequence[int], num_expected: int) -> tuple[int, int]:
    """How many of the tokens 0 … num_expected - 1 are missing, and how many came twice."""
    seen = set(indexes)
    return len(set(range(num_expected)) - seen), len(indexes) - len(seen)

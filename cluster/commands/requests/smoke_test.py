"""`test`: sends one real prompt to the running service, and proves that every rank took part in the answer.

The proof is what the ranks wrote into the frames of this request (result.performance.ranks). Knows nothing of
how they computed it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.commands.requests.client import Answer, ask
from cluster.errors import ClusterError
from cluster.supervisor.service import Service, read_service
from cluster.terminal import Terminal, format_duration
from config import Settings

PROMPT = "Name three uses of a ring."
MAX_TOKENS = 64


def run_smoke_test(settings: Settings, terminal: Terminal, prompt: str, max_tokens: int) -> int:
    """Ask, show, prove; 0 if the answer came and every rank took part.

    Raises:
        ClusterError: nothing runs, or there was no answer.
    """
    service = read_service(settings)
    if service.holder is None or service.api_address is None:
        raise ClusterError("nothing is running: ./launch.sh start")
    terminal.line(terminal.colored(f"> {prompt}", "bold"))
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    answer = ask(settings, service.api_address, body, terminal.raw)
    terminal.line("\n")
    return _show_answer(answer, service, terminal)


def _show_answer(answer: Answer, service: Service, terminal: Terminal) -> int:
    """Print the speed and each rank's part; 0 if every rank took part, else 1."""
    terminal.line(
        f"{answer.num_tokens} tokens, first after {_format_seconds(answer.ttft_s)}, "
        f"then {answer.tokens_per_s:.1f} tokens/s; finish reason {answer.result.get('finish_reason')}"
    )
    ranks = answer.result.get("performance", {}).get("ranks", [])
    for entry in ranks:
        terminal.line(_describe_rank(entry))
    problems = find_idle_ranks(ranks, int(service.ring.get("ring_size", 1)))
    for problem in problems:
        terminal.line(terminal.colored(problem, "red"))
    if not problems:
        terminal.line(terminal.colored(f"Every rank took part ({len(ranks)} of {len(ranks)}).", "green"))
    return 1 if problems else 0


def _describe_rank(entry: Mapping[str, Any]) -> str:
    """`rank 1: layers 0-14, 12 frames, busy 0.41 s (48 %)`."""
    first, num_layers = int(entry.get("first_layer", 0)), int(entry.get("num_layers", 0))
    layers = f"layers {first}-{first + num_layers - 1}"
    return (
        f"  rank {entry.get('rank')}: {layers}, {entry.get('num_frames', 0)} frames, "
        f"busy {float(entry.get('busy_s', 0.0)):.2f} s ({float(entry.get('busy_share', 0.0)):.0%})"
    )


def find_idle_ranks(ranks: list[dict[str, Any]], ring_size: int) -> list[str]:
    """Sentences on what the proof lacks: a rank without frames or time, or layers that no rank ran."""
    by_rank = {int(entry["rank"]): entry for entry in ranks}
    problems = []
    for rank in range(ring_size):
        entry = by_rank.get(rank)
        if entry is None or entry.get("num_frames", 0) < 1 or entry.get("busy_s", 0.0) <= 0.0:
            problems.append(f"rank {rank} took no part in this answer")
    next_layer = 0
    for entry in sorted(ranks, key=lambda entry: int(entry["first_layer"])):
        if entry["first_layer"] != next_layer:
            problems.append(f"not exactly one rank ran the layers from {next_layer}")
            break
        next_layer += int(entry["num_layers"])
    return problems


def _format_seconds(seconds: float) -> str:
    """`84 ms` below a second, else `1.2 s`."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else format_duration(seconds)

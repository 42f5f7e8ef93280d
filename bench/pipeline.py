"""What an ideal pipeline of simulated stages would do: the bound that a measured ring is held against. Pure.

s(r, B, T) is the time of rank r's stage for a microbatch of B rows of T tokens (config/simulated.py); nothing
else takes any time: no transport, no scheduling, no sampling, no HTTP.

    decode      C clients in M microbatches of B = C / M rows: each needs the slowest stage for max s(r, B, 1)
                and the lap takes at least the sum of all stages, so C rows take
                max(M x max s(r, B, 1), sum s(r, B, 1)); the ideal takes the best M from 1 to C
    prefill     K chunks of c tokens: the last one is through when K x max s + (sum s - max s) has passed
                (a flow shop of equal jobs); the ideal takes the best c
    a load      all prompts, as chunks of c tokens, then all decode steps but the first token's
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from config.simulated import SimulatedModel


@dataclass(frozen=True)
class Pipeline:
    """A simulated model on a ring; `layer_counts` by rank."""

    model: SimulatedModel
    layer_counts: tuple[int, ...]

    def stage_times_s(self, num_rows: float, num_tokens: float, *, draws: bool) -> list[float]:
        """Seconds of every stage for one microbatch, by rank; rows and tokens may be means."""
        times = [
            self.model.stage_us(rank=rank, num_layers=count, num_rows=num_rows, num_tokens=num_tokens)
            for rank, count in enumerate(self.layer_counts)
        ]
        times[0] += self.model.draw_us(num_rows) if draws else 0.0
        return [time / 1e6 for time in times]

    def decode_rate(self, num_clients: int) -> float:
        """Tokens a second of so many streams, with the best number of microbatches."""
        return max(num_clients / self._turn_s(num_clients, num) for num in range(1, num_clients + 1))

    def best_num_microbatches(self, num_clients: int) -> int:
        """How many microbatches the ideal has; the fewest of those that are as good."""
        return min(range(1, num_clients + 1), key=lambda num: (round(self._turn_s(num_clients, num), 9), num))

    def _turn_s(self, num_clients: int, num_microbatches: int) -> float:
        """Seconds in which every stream gets one token."""
        times = self.stage_times_s(num_clients / num_microbatches, 1, draws=True)
        return max(num_microbatches * max(times), sum(times))

    def prompt_s(self, num_tokens: int) -> float:
        """Seconds to the first token of one prompt alone, with the best size of chunks."""
        return min(self._chunks_s(num_tokens, 1, chunk) for chunk in range(1, num_tokens + 1))

    def _chunks_s(self, num_tokens: int, num_prompts: int, chunk_tokens: int) -> float:
        num_chunks = math.ceil(num_tokens / chunk_tokens)
        rows = max(1.0, num_prompts / num_chunks)
        times = self.stage_times_s(rows, num_tokens / num_chunks / rows, draws=False)
        return num_chunks * max(times) + sum(times) - max(times) + self.model.draw_us(1) / 1e6

    def load_s(self, prompt_tokens: Sequence[int], answer_tokens: int, chunk_tokens: int) -> float:
        """Seconds of a load: prompts that come all at once, then answers of so many tokens each."""
        num_clients = len(prompt_tokens)
        prefill_s = self._chunks_s(sum(prompt_tokens), num_clients, chunk_tokens)
        return prefill_s + (answer_tokens - 1) * num_clients / self.decode_rate(num_clients)


def split_by_speed(model: SimulatedModel, num_ranks: int) -> tuple[int, ...]:
    """The layers of each rank, so that the slowest stage is as fast as can be; each has one at least."""
    counts = [1] * num_ranks
    for _ in range(model.layers - num_ranks):
        rank = min(range(num_ranks), key=lambda rank: ((counts[rank] + 1) / model.speed_of(rank), -rank))
        counts[rank] += 1
    return tuple(counts)

"""The simulated model: `MODEL_REPO=simulated:layers=32,layer_us=2500,…` replaces layers by timed waits.

It measures rings of many ranks on a small machine, and answers with made-up words. This module parses its
description and computes the time of a stage's work, for the stages and for the bench. No MLX, no files.

    layers     layers of the model
    step_us    a stage, for each microbatch
    hop_us     a stage, for each frame that it receives (the network's latency is not simulated)
    layer_us   a layer, for each microbatch
    row_us     a layer, for each row of a microbatch
    token_us   a layer, for each token of a microbatch, padding included
    head_us    rank 0, for each row that it samples a token for
    hidden     floats in a frame for each token
    vocab      tokens of the made-up vocabulary
    speeds     of rank 0, rank 1, … separated by colons, as in 1:1:0.5; other ranks have 1
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

SIMULATED_PREFIX = "simulated:"
# Enough for the letters, the tokenizer's common words, and some made-up words.
MIN_VOCAB = 1024
_LOWEST = {"layers": 1, "hidden": 2, "vocab": MIN_VOCAB, "speeds": 1e-3}


@dataclass(frozen=True)
class SimulatedModel:
    """The times in microseconds. The defaults resemble a large model in 8 bits on a fast desktop."""

    layers: int = 32
    step_us: float = 0.0
    hop_us: float = 0.0
    layer_us: float = 2500.0
    row_us: float = 50.0
    token_us: float = 25.0
    head_us: float = 0.0
    hidden: int = 256
    vocab: int = 4096
    speeds: tuple[float, ...] = ()

    @classmethod
    def from_name(cls, model_repo: str) -> SimulatedModel:
        """Read `simulated:key=value,…`.

        Raises:
            ValueError: the message names the key and the allowed values.
        """
        known = {field.name: field.default for field in fields(cls)}
        values: dict[str, Any] = {}
        for entry in model_repo.removeprefix(SIMULATED_PREFIX).split(","):
            key, equals, text = entry.partition("=")
            if key not in known or not equals:
                raise ValueError(f"a simulated model has no {entry!r}; allowed: {', '.join(known)}")
            values[key] = _read_value(key, text, known[key])
        return cls(**values)

    def speed_of(self, rank: int) -> float:
        return self.speeds[rank] if rank < len(self.speeds) else 1.0

    def stage_us(self, *, rank: int, num_layers: int, num_rows: float, num_tokens: float) -> float:
        """Return the time of a stage for a microbatch of `num_rows` rows with `num_tokens` tokens each.

        A ring of one counts the hop, too, so that rings of any size are comparable.
        """
        a_layer = self.layer_us + self.row_us * num_rows + self.token_us * num_rows * num_tokens
        return (self.step_us + self.hop_us + num_layers * a_layer) / self.speed_of(rank)

    def draw_us(self, num_rows: float) -> float:
        """Return rank 0's time to sample a token for each row."""
        return self.head_us * num_rows / self.speed_of(0)


def _read_value(key: str, text: str, default: Any) -> Any:
    lowest = _LOWEST.get(key, 0)
    try:
        is_list = key == "speeds"
        numbers = tuple(map(float, text.split(":"))) if is_list else (type(default)(text),)
        if not all(lowest <= number <= 1e9 for number in numbers):
            raise ValueError(f"{key} must be at least {lowest:g}")
    except ValueError as error:
        raise ValueError(f"{key}={text} of a simulated model: {error}") from None
    return numbers if is_list else numbers[0]

"""The simulated model: `MODEL_REPO=simulated:layers=32,layer_us=2500,…`, timed waits in the place of layers.

It is for measuring rings of many ranks on a small machine and answers with made-up words. This file reads its
description and says what a stage's work takes; both the stages that wait and the bench that computes an
ideal pipeline use it. Pure numbers: no MLX, no files.

    layers     layers of the model
    step_us    a stage, for each microbatch
    hop_us     a stage, for each frame that it takes in (a wire's latency is not simulated: it keeps no stage
               busy)
    layer_us   a layer, for each microbatch
    row_us     a layer, for each row of a microbatch
    token_us   a layer, for each token of a microbatch, padding included
    head_us    rank 0, for each row that it draws a token for
    hidden     floats that travel for each token
    vocab      tokens of the made-up vocabulary
    speeds     of rank 0, rank 1, … with colons between, as in 1:1:0.5; ranks that are not named have 1
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

SIMULATED_PREFIX = "simulated:"
# Enough for the letters, the common words of the tokenizer, and some made-up ones.
MIN_VOCAB = 1024


@dataclass(frozen=True)
class SimulatedModel:
    """What everything takes, in microseconds.

    The defaults are about those of a model of 32 GB in 8 bits on a machine that reads 400 GB/s."""

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
            ValueError: with the key and what is allowed.
        """
        known = {field.name: field.default for field in fields(cls)}
        values: dict[str, Any] = {}
        for entry in model_repo.removeprefix(SIMULATED_PREFIX).split(","):
            key, equals, text = entry.partition("=")
            if key not in known or not equals:
                raise ValueError(f"a simulated model has no {entry!r}; it has {', '.join(known)}")
            values[key] = _read_value(key, text, known[key])
        return cls(**values)

    def speed_of(self, rank: int) -> float:
        return self.speeds[rank] if rank < len(self.speeds) else 1.0

    def stage_us(self, *, rank: int, num_layers: int, num_rows: float, num_tokens: float) -> float:
        """Return what a stage works on a microbatch of so many rows of so many tokens each.

        The hop counts although a ring of one has none: so the sums of its stages stay comparable.
        """
        a_layer = self.layer_us + self.row_us * num_rows + self.token_us * num_rows * num_tokens
        return (self.step_us + self.hop_us + num_layers * a_layer) / self.speed_of(rank)

    def draw_us(self, num_rows: float) -> float:
        """Return what rank 0 works for the tokens of so many rows."""
        return self.head_us * num_rows / self.speed_of(0)


def _read_value(key: str, text: str, default: Any) -> Any:
    try:
        if key == "speeds":
            return _checked(key, tuple(float(part) for part in text.split(":")), lowest=1e-3)
        return _checked(key, type(default)(text), lowest=_lowest(key))
    except ValueError as error:
        raise ValueError(f"{key}={text} of a simulated model: {error}") from None


def _lowest(key: str) -> float:
    return {"layers": 1, "hidden": 2, "vocab": MIN_VOCAB}.get(key, 0)


def _checked(key: str, value: Any, lowest: float) -> Any:
    for number in value if isinstance(value, tuple) else (value,):
        if not lowest <= number <= 1e9:
            raise ValueError(f"{key} must be at least {lowest:g}")
    return value

"""The bounds of the sampling fields, on every route and in prompt files.

`NUMBER_FIELDS` holds the bounds of each number; `make_params` turns the fields of a body into
`SamplingParams`. A whole float counts as an integer (16.0 for 16); a boolean is never a number. Knows nothing
of JSON or HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spool.messages import SamplingParams

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256  # characters
MAX_CHOICES = 8
MAX_LOGPROBS = 20  # alternatives a token
MAX_BIASED_TOKENS = 1024
NO_SEED = -1  # as in vLLM and llama.cpp: the server draws a seed
_MAX_INT = 2**63 - 1


@dataclass(frozen=True)
class NumberField:
    """A number within bounds, both included."""

    low: float
    high: int
    is_whole: bool = False

    def read(self, value: object) -> int | float:
        """Return the number, as an int where it must be whole.

        Raises:
            ValueError: not a number, or out of bounds; the message does not repeat the value.
        """
        if isinstance(value, int | float) and not isinstance(value, bool) and self._is_within(value):
            return int(value) if self.is_whole else value
        raise ValueError(f"must be {self.allowed}")

    def _is_within(self, value: int | float) -> bool:  # False for NaN
        return self.low <= value <= self.high and not (self.is_whole and value % 1)

    @property
    def allowed(self) -> str:
        """Describe the allowed values."""
        return f"a {'whole ' if self.is_whole else ''}number from {self.low} to {self.high}"


NUMBER_FIELDS: Mapping[str, NumberField] = {
    "max_tokens": NumberField(1, _MAX_INT, is_whole=True),
    "temperature": NumberField(0, 2),
    "top_p": NumberField(0, 1),
    "top_k": NumberField(-1, 2**31 - 1, is_whole=True),
    "min_p": NumberField(0, 1),
    "seed": NumberField(-(2**63), _MAX_INT, is_whole=True),
    "priority": NumberField(0, 9, is_whole=True),
    "frequency_penalty": NumberField(-2, 2),
    "presence_penalty": NumberField(-2, 2),
    "repetition_penalty": NumberField(0.01, 2),
}
# What routes may be asked for beside that: several answers, and logprobs.
ANSWER_FIELDS: Mapping[str, NumberField] = {
    "n": NumberField(1, MAX_CHOICES, is_whole=True),
    "top_logprobs": NumberField(0, MAX_LOGPROBS, is_whole=True),
}


_BIAS = NumberField(-100, 100)


def read_stop(value: object) -> tuple[str, ...]:
    """Return the stop strings without empty ones.

    Raises:
        ValueError: not a string or a list of strings, or too many, or too long.
    """
    strings = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(strings, list | tuple) or len(strings) > MAX_STOP_STRINGS:
        raise ValueError(f"must be a string or a list of up to {MAX_STOP_STRINGS} strings")
    if not all(isinstance(stop, str) and len(stop) <= MAX_STOP_LENGTH for stop in strings):
        raise ValueError(f"each stop string must be a string of up to {MAX_STOP_LENGTH} characters")
    return tuple(stop for stop in strings if stop)


def read_logit_bias(value: object) -> dict[int, float]:
    """Return the bias by token id; JSON has the ids as strings.

    Raises:
        ValueError: not such an object, or a bias that is no number from -100 to 100.
    """
    if not isinstance(value, Mapping) or len(value) > MAX_BIASED_TOKENS:
        raise ValueError(f"must be an object of up to {MAX_BIASED_TOKENS} token ids, each with its bias")
    bias = {}
    for name, number in value.items():
        if not re.fullmatch("[0-9]{1,10}", str(name)):
            raise ValueError("each name must be a token id")
        bias[int(name)] = float(_BIAS.read(number))
    return bias


def make_params(
    asked: Mapping[str, Any], *, max_tokens: int, seed: int, defaults: Mapping[str, float] | None = None
) -> SamplingParams:
    """Return the parameters of a request.

    Args:
        asked: checked fields, by name; None counts as missing.
        max_tokens, seed: the values where the request names none.
        defaults: checked values of other fields that the request does not name; None: neutral ones.
    """
    known: dict[str, Any] = {**(defaults or {})}
    known |= {name: value for name, value in asked.items() if value is not None}
    is_greedy = known.get("top_p") == 0  # only the likeliest token remains
    asked_seed = known.get("seed", NO_SEED)
    return SamplingParams(
        max_tokens=known.get("max_tokens", max_tokens),
        temperature=0.0 if is_greedy else float(known.get("temperature", 0.0)),
        top_p=1.0 if is_greedy else float(known.get("top_p", 1.0)),
        top_k=max(0, known.get("top_k", 0)),
        min_p=float(known.get("min_p", 0.0)),
        stop=known.get("stop", ()),
        seed=seed if asked_seed == NO_SEED else asked_seed,
        ignore_eos=known.get("ignore_eos", False),
        frequency_penalty=float(known.get("frequency_penalty", 0.0)),
        presence_penalty=float(known.get("presence_penalty", 0.0)),
        repetition_penalty=float(known.get("repetition_penalty", 1.0)),
        logit_bias=known.get("logit_bias", {}),
    )

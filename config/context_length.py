"""The context length: the most tokens of prompt and answer together, and the reason for that limit.

MAX_SEQUENCE_LENGTH is a number, which may exceed the model's own length, or `auto`: the model's own length,
at most 32,768, and at most what the KV reserve holds for two such requests. Rank 0 knows the reserve in
tokens and publishes the effective limit in run/ring.json:

    "context": {"max_tokens": 4096, "bound": "setting", "model_tokens": 8192}

Until then the front door uses the settings and config.json alone. Knows nothing of MLX or rings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from config.settings import Settings

MOST_AUTO_TOKENS = 32_768
UNKNOWN_MODEL_TOKENS = 4096  # for a model whose config names no length
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_RESTART = "in .env, then ./launch.sh restart"

Bound = Literal["setting", "auto", "model", "memory"]
_HINTS: Mapping[Bound, str] = {
    "setting": f"for more, as coding agents need, set MAX_SEQUENCE_LENGTH=auto or a larger number {_RESTART}",
    "auto": f"for more set MAX_SEQUENCE_LENGTH to a larger number {_RESTART}",
    "model": "this is the model's own length",
    "memory": f"KV_CACHE_RESERVED_MEMORY_MB sets this limit; for more, raise it {_RESTART}",
}


@dataclass(frozen=True)
class ContextLength:
    """The most tokens of prompt and answer together, and the bound that sets them.

    `model_tokens` is the model's own length; None where its config names none.
    """

    max_tokens: int
    bound: Bound = "setting"
    model_tokens: int | None = None

    @classmethod
    def from_json(cls, said: object) -> ContextLength | None:
        """Read what rank 0 published; None where it published nothing valid."""
        if not isinstance(said, dict) or said.get("bound") not in _HINTS:
            return None
        if type(said.get("max_tokens")) is not int:
            return None
        return cls(said["max_tokens"], said["bound"], said.get("model_tokens"))

    @property
    def hint(self) -> str:
        """How to raise the limit, or why it cannot be raised."""
        most_by_auto = min(self.model_tokens or UNKNOWN_MODEL_TOKENS, MOST_AUTO_TOKENS)
        return _HINTS["auto" if self.bound == "setting" and self.max_tokens >= most_by_auto else self.bound]

    def describe(self) -> str:
        """Describe the limit in one line, for people."""
        beyond = ""
        if self.model_tokens is not None and self.max_tokens > self.model_tokens:
            beyond = f"; beyond {self.model_tokens}, the model's own length, answers may be poor"
        return f"{self.max_tokens} tokens of prompt and answer together ({self.hint}){beyond}"

    def explain_too_long(self, num_prompt_tokens: int, *, is_least: bool = False) -> str:
        """Return the error for a prompt that leaves no room for an answer; clients search for these words.

        Args:
            is_least: `num_prompt_tokens` is a lower bound.
        """
        count = f"{'at least ' if is_least else ''}{num_prompt_tokens}"
        return (
            f"This model's maximum context length is {self.max_tokens} tokens. However, your messages "
            f"resulted in {count} tokens, and the answer needs one or more. Please reduce the length of the "
            f"messages. ({self.hint[0].upper()}{self.hint[1:]})"
        )


def limit_context(
    settings: Settings, model_tokens: int | None, memory_tokens: int | None = None
) -> ContextLength:
    """Return the effective limit.

    Args:
        model_tokens: the model's own length; None: its config names none.
        memory_tokens: the tokens that the KV reserve holds for one request (with `auto`: for each of two);
            None: unknown.
    """
    wanted = settings.max_sequence_length
    bounds: list[tuple[int, Bound]]
    if wanted == "auto":
        bounds = [(model_tokens or UNKNOWN_MODEL_TOKENS, "model"), (MOST_AUTO_TOKENS, "auto")]
    else:
        bounds = [(wanted, "setting")]
    if memory_tokens is not None:
        bounds.append((memory_tokens, "memory"))
    max_tokens, bound = min(bounds, key=lambda item: item[0])
    return ContextLength(max_tokens, bound, model_tokens)


def read_model_tokens(folder: Path) -> int | None:
    """Return the model's own length from its config.json; None where it is missing or names none."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return find_model_tokens(config) if isinstance(config, dict) else None


def find_model_tokens(config: Mapping[str, Any]) -> int | None:
    """Return the length that a config names, scaled by its rope scaling.

    As in vLLM 0.11 (config/model.py `_get_and_verify_max_len`): yarn multiplies the original length, linear
    and dynamic multiply the named length; for other kinds the named length is final.
    """
    inner = config.get("text_config")
    if isinstance(inner, dict):
        config = {**config, **inner}
    named = [config[key] for key in _LENGTH_KEYS if _is_length(config.get(key))]
    if not named:
        return None
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    return _stretch(int(named[0]), scaling if isinstance(scaling, dict) else {})


def _stretch(tokens: int, scaling: Mapping[str, Any]) -> int:
    kind, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor")
    if not isinstance(factor, int | float) or factor <= 0:
        return tokens
    original = scaling.get("original_max_position_embeddings")
    if kind == "yarn" and isinstance(original, int) and original > 0:
        return int(original * factor)
    return int(tokens * factor) if kind in ("linear", "dynamic") else tokens


def _is_length(value: object) -> bool:
    return type(value) is int and value > 0

"""How many tokens prompt and answer may have together, what bounds that, and how people hear of it.

MAX_SEQUENCE_LENGTH is a number, which is taken as it is even beyond the model's own length, or `auto`: the
model's own length, at most 32,768, and at most what the KV reserve holds for two such requests. Rank 0 knows
the reserve in tokens and publishes what counts, in run/ring.json:

    "context": {"max_tokens": 4096, "bound": "setting", "model_tokens": 8192}

Before that the front door assumes what settings and config.json alone say. Knows nothing of MLX or rings.
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
UNKNOWN_MODEL_TOKENS = 4096  # of a model whose config names no length
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_RESTART = "in .env, then ./launch.sh restart"

Bound = Literal["setting", "auto", "model", "memory"]
_HINTS: Mapping[Bound, str] = {
    "setting": f"for more, as coding agents need, set MAX_SEQUENCE_LENGTH=auto or a larger number {_RESTART}",
    "auto": f"for more set MAX_SEQUENCE_LENGTH to a larger number {_RESTART}",
    "model": "that is the model's own length",
    "memory": f"KV_CACHE_RESERVED_MEMORY_MB holds no more: for more raise it {_RESTART}",
}


@dataclass(frozen=True)
class ContextLength:
    """The most tokens of prompt and answer together, and what bounds them.

    `model_tokens` is the model's own length, where its config names one.
    """

    max_tokens: int
    bound: Bound = "setting"
    model_tokens: int | None = None

    @classmethod
    def from_json(cls, said: object) -> ContextLength | None:
        """Read what rank 0 published; None where that is nothing."""
        if not isinstance(said, dict) or said.get("bound") not in _HINTS:
            return None
        if type(said.get("max_tokens")) is not int:
            return None
        return cls(said["max_tokens"], said["bound"], said.get("model_tokens"))

    @property
    def hint(self) -> str:
        """How to get more, or why there is no more."""
        most_by_auto = min(self.model_tokens or UNKNOWN_MODEL_TOKENS, MOST_AUTO_TOKENS)
        return _HINTS["auto" if self.bound == "setting" and self.max_tokens >= most_by_auto else self.bound]

    def describe(self) -> str:
        """Say the length in one line, for people."""
        beyond = ""
        if self.model_tokens is not None and self.max_tokens > self.model_tokens:
            beyond = f"; beyond {self.model_tokens}, the model's own length, answers may be poor"
        return f"{self.max_tokens} tokens of prompt and answer together ({self.hint}){beyond}"

    def explain_too_long(self, num_prompt_tokens: int, *, is_least: bool = False) -> str:
        """Word the refusal of a prompt that leaves no room for an answer; clients look for these very words.

        Args:
            is_least: the prompt has so many tokens or more.
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
    """Return what counts.

    Args:
        model_tokens: the model's own length; None: its config names none.
        memory_tokens: what the KV reserve holds of one request, of each of two with `auto`; None: not known.
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
    """Return the model's own length by its config.json; None where that is missing or names none."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return find_model_tokens(config) if isinstance(config, dict) else None


def find_model_tokens(config: Mapping[str, Any]) -> int | None:
    """Return the length that a config names, stretched as its rope scaling says.

    As vLLM 0.11 reads it (config/model.py `_get_and_verify_max_len`): yarn multiplies the original length,
    linear and dynamic scaling what is named; other kinds are part of what is named.
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

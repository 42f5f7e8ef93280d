"""Brings the sliding windows of a config.json into one form, or refuses them.

The result is `layer_types`, one of KINDS for each layer, and `sliding_window`: how many tokens a layer of
the second kind sees, the newest among them. Both are absent if every layer sees all tokens. Beside them
stands what the class of mlx-lm reads in their place. Knows nothing of MLX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed.planning.families.config_types import BadValue
from distributed.planning.families.family import Family
from distributed.planning.model_errors import UnsupportedModel

KINDS = FULL, SLIDING = "full_attention", "sliding_attention"
_PATTERN = "sliding_window_pattern"
_KEYS = ("layer_types", "sliding_window", "use_sliding_window", "max_window_layers")


def layer_windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Return each layer's window of a config in the form above; empty: every layer sees all tokens."""
    kinds = config.get("layer_types") or ()
    return tuple(config["sliding_window"] if kind == SLIDING else None for kind in kinds)


def normalise_window(config: dict[str, Any], family: Family) -> None:
    """Replace the config's keys of windows by the form above.

    Raises:
        BadValue: values are missing or contradict each other.
        UnsupportedModel: a window, a kind of layer, or an order of kinds is not served.
    """
    given, num_layers = config.get("layer_types") or [], config["num_hidden_layers"]
    if len(given) not in (0, num_layers):
        raise BadValue(f"layer_types names {len(given)} layers, num_hidden_layers is {num_layers}")
    is_listed = family.window == "listed"
    served = KINDS if is_listed or (family.serves_windows and family.window != "always") else (FULL,)
    others = [kind for kind in given if kind not in served]
    if others:
        raise UnsupportedModel(f"layer_types holds {others[0]!r}; only {' and '.join(served)} is served")
    kinds = _kinds(config, family, given)
    window, longest = config.get("sliding_window"), config["max_position_embeddings"]
    for key in (*_KEYS, *((_PATTERN, f"_{_PATTERN}") if is_listed else ())):
        config.pop(key, None)
    has_windows = bool(window) and SLIDING in kinds
    if is_listed:
        _keep_listed(config, family, kinds, window)
    elif has_windows and window < longest:
        if not family.serves_windows:
            raise UnsupportedModel(
                f"sliding_window = {window} is not served; only attention over the whole context is "
                f"(max_position_embeddings = {longest})"
            )
        config |= {"layer_types": kinds, "sliding_window": window, "use_sliding_window": True}


def _kinds(config: Mapping[str, Any], family: Family, given: list[str]) -> list[str]:
    """Return each layer's kind."""
    num_layers = config["num_hidden_layers"]
    is_off = family.window == "switched" and not config.get("use_sliding_window")
    if family.window == "never" or is_off:
        return [FULL] * num_layers
    if given and family.window != "always":
        return given
    if family.window == "listed":
        return _kinds_by_pattern(config.get(f"_{_PATTERN}") or config.get(_PATTERN), num_layers)
    first = 0 if family.window == "always" else config["max_window_layers"]
    return [SLIDING if i >= first else FULL for i in range(num_layers)]


def _kinds_by_pattern(pattern: Any, num_layers: int) -> list[str]:
    """Complete the kinds as transformers does: every so many layers one sees all, or by letters."""
    if isinstance(pattern, str) and pattern and not pattern.strip("LG"):
        return [SLIDING if pattern[i % len(pattern)] == "L" else FULL for i in range(num_layers)]
    if isinstance(pattern, bool) or not isinstance(pattern, int) or pattern < 1:
        raise BadValue(f"{_PATTERN} = {pattern!r} is neither a whole number from 1 nor a text of L and G")
    return [SLIDING if (i + 1) % pattern else FULL for i in range(num_layers)]


def _keep_listed(config: dict[str, Any], family: Family, kinds: list[str], window: int | None) -> None:
    """Keep both kinds and the window, in the form that the class reads."""
    name = config["model_type"]
    if name == "exaone4" and (window is None or SLIDING not in kinds):
        if window is not None:
            raise UnsupportedModel(
                f"sliding_window = {window} without a layer that has one is not served for {name}"
            )
        config |= {"sliding_window": None, _PATTERN: None}  # positions are rotated in all layers then
        return
    if not window:
        raise BadValue(f"there is no sliding_window, but layers of type {SLIDING!r}")
    needed = {FULL} if name in ("laguna", "mellum") else {*KINDS}
    if not needed <= {*kinds}:
        raise UnsupportedModel(f"layers of one type alone ({kinds[0]!r}) are not served for {name}")
    config |= {"layer_types": kinds, "sliding_window": window}
    if name == "exaone4":
        config[_PATTERN] = "".join("L" if kind == SLIDING else "G" for kind in kinds)
    elif _PATTERN in family.honoured:
        config[_PATTERN] = 1 + kinds.index(FULL)
        if kinds != _kinds_by_pattern(config[_PATTERN], len(kinds)):
            raise UnsupportedModel(f"layer_types in an order that does not repeat is not served for {name}")

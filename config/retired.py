"""Retired keys and values of earlier releases: the loader warns about them and ignores them.

Knows no file.
"""

from __future__ import annotations

from config.sources import Layer

# The reason for the user, by key, or by key and value.
RETIRED_KEYS: dict[str, str] = {
    "SPARE_RANKS": "a rank starts as fast without a spare",
}
RETIRED_VALUES: dict[tuple[str, str], str] = {
    ("CPU_PRODUCTS", "onednn"): "compiled kernels have replaced it",
}


def drop_retired(layer: Layer) -> list[str]:
    """Remove retired keys and values from a source; return a warning for each."""
    warnings = []
    for key, entry in list(layer.entries.items()):
        value = entry.value or ""
        reason, written = RETIRED_KEYS.get(key), key
        if (key, value) in RETIRED_VALUES:
            reason, written = RETIRED_VALUES[key, value], f"{key} = {value}"
        if reason is not None:
            del layer.entries[key]
            warnings.append(
                f"{entry.origin}: {written} is retired and has no effect: {reason}; delete this line"
            )
    return warnings

"""Keys and values of earlier releases: a start warns about them, and goes on as if they were not written.

Knows no key of this release, and no file.
"""

from __future__ import annotations

from config.sources import Layer

# What a user should know, by key, or by key and value.
RETIRED_KEYS: dict[str, str] = {
    "SPARE_RANKS": "a rank starts as fast without one that waits",
}
RETIRED_VALUES: dict[tuple[str, str], str] = {}


def drop_retired(layer: Layer) -> list[str]:
    """Take what is retired out of a source; return a warning for each."""
    warnings = []
    for key, entry in list(layer.entries.items()):
        value = entry.value or ""
        reason, written = RETIRED_KEYS.get(key), key
        if (key, value) in RETIRED_VALUES:
            reason, written = RETIRED_VALUES[key, value], f"{key} = {value}"
        if reason is not None:
            del layer.entries[key]
            warnings.append(f"{entry.origin}: {written} is retired and has no effect: {reason}")
    return warnings

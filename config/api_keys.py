"""Reads API_KEYS_FILE: one key a line; a line that begins with # is a comment. Knows nothing of clients."""

from __future__ import annotations

from pathlib import Path


def read_api_keys(path: Path) -> list[str]:
    """Return the keys in the file's order. Raises: OSError, UnicodeDecodeError."""
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]

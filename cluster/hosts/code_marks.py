"""Marks of the project's own code, which change when somebody edits it."""

from __future__ import annotations

import hashlib
from pathlib import Path

RANK_FOLDERS = ("config", "distributed", "prompts", "spool")


def mark_rank(root: Path) -> tuple[tuple[str, int], ...]:
    """What changes when a program that ranks run is edited: other hosts have the old one."""
    files = [root / "server.py"]
    for name in RANK_FOLDERS:
        files += (root / name).rglob("*.py")
    return tuple(sorted((str(path), path.stat().st_mtime_ns) for path in files if path.exists()))


def mark_supervisor(root: Path) -> str:
    """What changes when the supervisor's own program is edited: a running one goes on with the old."""
    files = [path for name in ("cluster", "config") for path in (root / name).glob("*.py")]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()

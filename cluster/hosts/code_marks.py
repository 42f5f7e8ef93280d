"""Marks of the project's own code, which change when somebody edits it."""

from __future__ import annotations

import hashlib
from pathlib import Path

RANK_FOLDERS = ("config", "distributed", "prompts", "spool")
SUPERVISOR_FOLDERS = ("cluster/supervisor", "cluster/hosts", "config")


def mark_rank(root: Path) -> tuple[tuple[str, int], ...]:
    """Changes with the program that ranks run: other hosts then have the old one."""
    files = [root / "server.py", *_list_code(root, RANK_FOLDERS)]
    return tuple(sorted((str(path), path.stat().st_mtime_ns) for path in files if path.exists()))


def mark_supervisor(root: Path) -> str:
    """Changes with the supervisor's own program, which a running supervisor has loaded as it was."""
    digest = hashlib.sha256()
    files = [*(root / "cluster").glob("*.py"), *_list_code(root, SUPERVISOR_FOLDERS)]
    for path in sorted(files):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _list_code(root: Path, folders: tuple[str, ...]) -> list[Path]:
    return [path for name in folders for path in (root / name).rglob("*.py")]

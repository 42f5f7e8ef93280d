"""Computes the sha256 of a model folder's files, with a cache for unchanged ones. model_sums.py sends it to
hosts and runs it on this machine. Standard library only, any Python from 3.8.

    standard output   {"done_bytes": N} now and then, then one line {"folder", "free_bytes", "files": {name:
                      {"size", "sha256"}}}; sha256 is null for a file of an unexpected size
    .sums.json        {"version": 1, "files": {name: {"size", "mtime_ns", "sha256"}}}: valid while size and
                      time of the file are the same (distributed/planning/stage_files.py reads it too)
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
from typing import Any

CHUNK_BYTES = 1 << 20
REPORT_BYTES = 256 << 20


def main(question: dict[str, Any]) -> None:
    """Print the sums.
    Args:
        question: {"folder", "sums_file", "sizes": {name: expected size or null}, "makes_folder"}.
    """
    folder = os.path.abspath(os.path.expanduser(question["folder"]))
    if question["makes_folder"]:
        os.umask(0o077)
        os.makedirs(folder, exist_ok=True)
        remove_leftovers(folder, question["sizes"])
    sums_file = question["sums_file"] or os.path.join(folder, ".sums.json")
    known = read_known(sums_file)
    progress = Progress()
    files: dict[str, Any] = {}
    entries = dict(known)
    for name, expected in question["sizes"].items():
        entry = sum_file(os.path.join(folder, name), expected, known.get(name), progress)
        entries.pop(name, None)
        if entry is not None:
            files[name] = {"size": entry["size"], "sha256": entry["sha256"]}
            if entry["sha256"]:
                entries[name] = entry
    if entries != known:
        with contextlib.suppress(OSError):  # on a full disk the next run computes the sums again
            write_known(sums_file, entries)
    there = folder if os.path.isdir(folder) else os.path.expanduser("~")
    print(json.dumps({"folder": folder, "free_bytes": shutil.disk_usage(there).free, "files": files}))


class Progress:
    """Prints how many bytes were read."""

    def __init__(self) -> None:
        self._total = 0
        self._printed = 0

    def add(self, num_bytes: int) -> None:
        self._total += num_bytes
        if self._total - self._printed >= REPORT_BYTES:
            self._printed = self._total
            print(json.dumps({"done_bytes": self._total}), flush=True)


def sum_file(
    path: str, expected: int | None, known: dict[str, Any] | None, progress: Progress
) -> dict[str, Any] | None:
    """Return a file's entry; None without such a file."""
    try:
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            entry: dict[str, Any] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": None}
            if known and (known["size"], known["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns):
                return known
            if expected is not None and expected != stat.st_size:
                return entry
            digest = hashlib.sha256()
            while True:
                data = file.read(CHUNK_BYTES)
                if not data:
                    return dict(entry, sha256=digest.hexdigest())
                digest.update(data)
                progress.add(len(data))
    except FileNotFoundError:
        return None


def remove_leftovers(folder: str, names: dict[str, Any]) -> None:
    """Remove the temporary files of a killed rsync."""
    for name in names:
        for path in glob.glob(os.path.join(glob.escape(folder), f".{glob.escape(name)}.??????")):
            os.unlink(path)


def read_known(sums_file: str) -> dict[str, Any]:
    """Return the entries of a sums file; empty if it is missing or damaged."""
    try:
        with open(sums_file, encoding="utf-8") as file:
            entries = json.load(file)["files"]
        return {name: entry for name, entry in entries.items() if len(entry["sha256"]) == 64}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_known(sums_file: str, entries: dict[str, Any]) -> None:
    """Replace a sums file."""
    os.makedirs(os.path.dirname(sums_file), exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".sums-", dir=os.path.dirname(sums_file))
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"version": 1, "files": entries}, file)
        os.replace(temporary, sums_file)
    except OSError:
        os.unlink(temporary)
        raise

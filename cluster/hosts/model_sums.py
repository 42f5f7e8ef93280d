"""Computes the sha256 of a model folder's files, here or on a worker, and reports the progress.

remote_scripts/file_sums.py does the work. It keeps each sum with the size and time of its file, so that a
start without changes asks each host once and reads no file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.hosts.hosts import Host
from cluster.hosts.probe import make_python_command, read_answer
from cluster.hosts.remote_program import make_program
from cluster.hosts.ssh import Completed, HostUnreachable, run_for, shell_words
from cluster.hosts.worker_setup import Worker
from cluster.log_files import LineBuffer
from config import Settings
from distributed.planning.stage_files import local_sums_file

COPY_LIMIT_S = 24 * 3600.0

# Takes each step on a host: its name, bytes done, bytes in all, what is done.
Report = Callable[[str, int, int, str], None]


class ModelFilesRefused(ClusterError):
    """The files cannot be copied to a host; the message names host, file or sizes, and the fix."""


@dataclass(frozen=True)
class FileSum:
    """A file on some host; sha256 is None if only its size was read."""

    size: int
    sha256: str | None


@dataclass(frozen=True)
class FolderSums:
    """A model folder on some host."""

    folder: str
    free_bytes: int
    files: Mapping[str, FileSum]


async def sum_local(
    host: Host, settings: Settings, folder: Path, names: Sequence[str], report: Report
) -> FolderSums:
    """The sums of files here, cached in STATE_DIR.

    Raises:
        ModelFilesRefused: one is missing.
    """
    question = {
        "folder": str(folder),
        "sums_file": str(local_sums_file(folder, settings.state_dir)),
        "sizes": dict.fromkeys(names),
        "makes_folder": False,
    }
    total = sum((folder / name).stat().st_size for name in names if (folder / name).is_file())
    found = await _ask(host, settings, question, total, report)
    if missing := sorted(set(names) - found.files.keys()):
        raise ModelFilesRefused(f"{folder}/{missing[0]} is missing here: ./launch.sh start fetches it")
    return found


async def sum_on_worker(
    worker: Worker, settings: Settings, target: str, files: Mapping[str, FileSum], report: Report
) -> FolderSums:
    """The sums of files on a worker; makes the folder `target` below WORKER_DIR."""
    question = {
        "folder": f"{worker.folder}/{target}",
        "sums_file": None,
        "sizes": {name: entry.size for name, entry in files.items()},
        "makes_folder": True,
    }
    total = sum(entry.size for entry in files.values())
    return await _ask(worker.host, settings, question, total, report)


async def _ask(
    host: Host, settings: Settings, question: Mapping[str, Any], total_bytes: int, report: Report
) -> FolderSums:
    lines = ProgressLines(lambda num: report(host.name, num, total_bytes, "checking"))
    words = shell_words(host, make_python_command(host, settings))
    done = await run_long(host, words, lines.feed, input=make_program("file_sums", question))
    answer = read_answer(host, Completed(done.code, lines.last.encode(), done.stderr))
    files = {name: FileSum(entry["size"], entry["sha256"]) for name, entry in answer["files"].items()}
    return FolderSums(answer["folder"], answer["free_bytes"], files)


async def run_long(
    host: Host, words: Sequence[str], on_output: Callable[[bytes], None], *, input: bytes = b""
) -> Completed:
    """Run a program that may take hours. Raises: HostUnreachable."""
    late = HostUnreachable(host, f"not finished in {COPY_LIMIT_S / 3600:.0f} hours", "./launch.sh start")
    return await run_for(host, words, late, input=input, timeout_s=COPY_LIMIT_S, on_output=on_output)


class ProgressLines(LineBuffer):
    """Reads the output of file_sums.py and prepare: progress, and at last the sums in one long line."""

    max_line_bytes = 1 << 26

    def __init__(self, on_done: Callable[[int], None]) -> None:
        super().__init__()
        self._on_done = on_done
        self.last = ""

    def put_line(self, line: str) -> None:
        self.last = line
        if line.startswith('{"done_bytes"'):
            self._on_done(int(json.loads(line)["done_bytes"]))

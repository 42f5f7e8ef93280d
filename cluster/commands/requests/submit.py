"""`submit FILE.jsonl`: makes a batch of a file's lines, and prints their answers on demand.

A line is one of a batch, {"custom_id", "method", "url", "body"}, or simple, with the fields of a prompt file
(spool/prompt_files.py), which is asked as POST /generate. Checks all lines before the batch begins. Needs no
running service: the batch waits for a front door. Prints one JSON object per line; with --wait the answers as
they come, and at the end all outputs and errors lie in two files beside FILE.
"""

from __future__ import annotations

import contextlib
import json
import select
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.supervisor.service import read_service
from cluster.terminal import Terminal
from config import Settings
from spool import Spool, SpoolError, make_door_name
from spool.batches import (
    Batch,
    BatchStore,
    BatchView,
    LineChecker,
    RawLine,
    follow_journal,
    line_request_id,
    make_batch_id,
    make_record,
)
from spool.prompt_files import PromptFileDefaults, read_prompt

LOOK_INTERVAL_S = 0.3
WINDOW_HOURS = 8760
SIMPLE_ENDPOINT = "/generate"


@dataclass
class CheckedFile:
    """The lines of a file as a batch has them: each with its number there, and the file's endpoint."""

    endpoint: str
    lines: list[bytes] = field(default_factory=list)

    @property
    def is_simple(self) -> bool:
        return self.endpoint == SIMPLE_ENDPOINT


def submit_file(settings: Settings, terminal: Terminal, path: Path, *, waits: bool) -> int:
    """Begin a batch; with `waits`, print each answer as it comes. 0, or 1 if an answer is an error.

    Raises:
        ClusterError: a line is wrong (then nothing was begun), or the spool refuses.
    """
    checked = read_lines(path, settings.max_body_bytes)
    try:
        store = BatchStore(open_spool(settings))
        batch = begin(store, path.name, checked)
        for number in range(1, len(checked.lines) + 1):
            id = line_request_id(batch.id, number)
            terminal.line(json.dumps({"number": number, "id": id, "batch": batch.id}))
        if read_service(settings).holder is None:
            print("Nothing is running: answers come after ./launch.sh start", file=sys.stderr)
        return Waiting(store, terminal, batch, checked).run(path) if waits else 0
    except SpoolError as error:
        raise ClusterError(f"the spool refuses: {error}") from error


def open_spool(settings: Settings) -> Spool:
    """Open the spool of STATE_DIR with the settings' limits. Raises SpoolError."""
    return Spool.open(
        settings.spool_dir,
        durability=settings.spool_durability,
        max_depth=settings.max_queue_depth,
        max_bytes=settings.max_queue_mb * 2**20,
    )


def read_lines(path: Path, max_line_bytes: int) -> CheckedFile:
    """Read the lines of a file as lines of a batch; empty lines are skipped.

    Raises:
        ClusterError: naming the line, without its text.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ClusterError(f"{path} cannot be read: {error.strerror}") from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ClusterError(f"{path} has no lines")
    checked = CheckedFile(_find_endpoint(numbered[0][1]))
    checker = LineChecker(checked.endpoint, max_line_bytes)
    for number, line in numbered:
        try:
            text = _as_batch_line(number, line) if checked.is_simple else line
        except ValueError as error:
            raise ClusterError(f"{path}:{number}: {error}") from None
        problem = checker.check(RawLine(number, 0, len(text), text if len(text) <= max_line_bytes else None))
        if problem is not None:
            raise ClusterError(f"{path}:{number}: {problem.message}")
        checked.lines.append(text)
    return checked


def _find_endpoint(line: bytes) -> str:
    """Return the endpoint of a file whose first line is this; that of simple lines unless it names one."""
    with contextlib.suppress(ValueError, RecursionError):
        first = json.loads(line)
        if isinstance(first, dict) and "custom_id" in first and isinstance(first.get("url"), str):
            return str(first["url"])
    return SIMPLE_ENDPOINT


def _as_batch_line(number: int, line: bytes) -> bytes:
    """Return a simple line as a line of a batch, and one of a batch as it is. Raises ValueError."""
    with contextlib.suppress(ValueError, RecursionError):
        if "custom_id" in json.loads(line):
            return line
    read_prompt("line.json", line, PromptFileDefaults("", 1))
    line_of_batch = {"custom_id": f"line-{number}", "method": "POST", "url": SIMPLE_ENDPOINT}
    return json.dumps({**line_of_batch, "body": json.loads(line)}).encode()


def begin(store: BatchStore, filename: str, checked: CheckedFile) -> Batch:
    """Store the lines as a file, and begin its batch. Raises SpoolError."""
    with store.files.begin() as upload:
        upload.append(b"".join(line + b"\n" for line in checked.lines))
        file = upload.publish(make_record(filename, "batch", owner=""))
    now = time.time()
    expires_unix = now + WINDOW_HOURS * 3600
    return store.create(
        Batch(make_batch_id(), checked.endpoint, file.id, f"{WINDOW_HOURS}h", now, expires_unix)
    )


class Waiting:
    """Follows a batch to its end."""

    def __init__(self, store: BatchStore, terminal: Terminal, batch: Batch, checked: CheckedFile) -> None:
        self._store, self._terminal, self._batch, self._checked = store, terminal, batch, checked
        self._shown: set[str] = set()
        self._offset = 0

    def run(self, path: Path) -> int:
        """Print each answer when it comes; 1 if one is an error, or the batch did not complete."""
        with self._store.spool.listen(make_door_name()) as bell:
            while True:
                view = self._store.find(self._batch.id)
                if view is None:
                    raise ClusterError(f"{self._batch.id} was removed")
                self._show_new()
                if view.state.has_ended:
                    return self._end(view, path)
                self._terminal.live(f"{len(self._shown)} of {len(self._checked.lines)} answered")
                select.select([bell], [], [], LOOK_INTERVAL_S)
                bell.drain()

    def _show_new(self) -> None:
        path = self._store.journal_path(self._batch.id)
        for entry, offset in follow_journal(path, self._store.spool.fs, self._offset):
            self._offset = offset
            self._show(entry.output)

    def _show(self, text: bytes) -> None:
        output = json.loads(text)
        if output["id"] not in self._shown:
            self._shown.add(output["id"])
            shown = make_answer(output) if self._checked.is_simple else output
            self._terminal.line(json.dumps(shown, ensure_ascii=False))

    def _end(self, view: BatchView, path: Path) -> int:
        """Print what is left, and copy both files beside the input."""
        state = view.state
        for error in state.errors:
            print(f"{path}:{error.line or ''}: {error.message}", file=sys.stderr)
        for id, kind in ((state.output_file_id, "output"), (state.error_file_id, "errors")):
            if id is None:
                continue
            target = path.with_suffix(f".{kind}.jsonl")
            with target.open("wb") as copy:
                for line in self._read(id):
                    self._show(line)
                    copy.write(line)
            print(f"{target} has the {kind}", file=sys.stderr)
        return 0 if state.status == "completed" and not state.num_failed else 1

    def _read(self, file_id: str) -> Iterator[bytes]:
        with self._store.files.path(file_id).open("rb") as lines:
            yield from lines


def make_answer(output: dict[str, Any]) -> dict[str, Any]:
    """An output of a simple line as one flat object."""
    response = output["response"] or {}
    body = response.get("body", {})
    if response.get("status_code") == 200:
        return {name: body[name] for name in ("id", "finish_reason", "text", "usage")}
    error = output["error"] or body.get("error")
    return {
        "id": output["id"].removeprefix("batch_req_"),
        "finish_reason": "error",
        "text": "",
        "error": error,
    }

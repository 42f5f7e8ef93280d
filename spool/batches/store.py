"""The batches of one spool.

    batches/lock         the one runner of all front doors holds it with flock
    batches/{id}/
        batch.json       what was asked for; written last at the creation, so the batch exists while this does
        input            a second name of the input file: deleting the file does not touch the batch
        cancel           a marker: somebody cancelled the batch at the time of this file
        state.json       status, counts and times; written by the runner alone
        counts.json      newer counts of a batch in progress; not synced, and without a loss if it is damaged
        journal          the lines that have ended (journal.py)

An id is "batch_" and 32 characters of 0-9a-f. Journal and input go when the batch has ended: its output is in
two files (files.py) by then. Knows nothing of HTTP or of what a line asks for.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from spool.batches.files import FileStore, StoredFile, make_record
from spool.batches.journal import Journal
from spool.batches.lines import CHUNK_BYTES, LineError
from spool.batches.records import read_record, write_record
from spool.errors import CorruptRequest, SpoolUnavailable, system_trouble
from spool.names import make_id
from spool.spool import Spool
from spool.sweep import STALE_SECONDS

ENDED_STATUSES = frozenset({"failed", "completed", "expired", "cancelled"})
_ID = re.compile(r"batch_[0-9a-f]{32}")


class Batch(msgspec.Struct, frozen=True):
    """What a client asked for. output_lives_seconds: when the files that it writes expire."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_unix: float
    expires_unix: float
    owner: str = ""
    metadata: dict[str, str] | None = None
    output_lives_seconds: int | None = None


class BatchState(msgspec.Struct, frozen=True):
    """How far a batch is.

    `ended_unix`: the time of its last status; `closing`: the status that it is about to end with, before all
    its lines have run.
    """

    status: str = "validating"
    num_total: int = 0
    num_completed: int = 0
    num_failed: int = 0
    in_progress_unix: float | None = None
    finalizing_unix: float | None = None
    ended_unix: float | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    closing: str | None = None
    errors: tuple[LineError, ...] = ()

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED_STATUSES


class BatchCounts(msgspec.Struct, frozen=True):
    """How many lines of a batch have ended."""

    num_completed: int
    num_failed: int


@dataclass(frozen=True)
class BatchView:
    """A batch as anybody sees it; `cancelling_unix`: when somebody cancelled it."""

    batch: Batch
    state: BatchState
    cancelling_unix: float | None = None

    @property
    def status(self) -> str:
        """The status, where a marker that the runner has not seen yet counts."""
        is_cancelling = self.cancelling_unix is not None and not self.state.has_ended
        return "cancelling" if is_cancelling else self.state.status


def make_batch_id(owner: str = "", key: str | None = None) -> str:
    """Return a new id; under an idempotency key always the same one."""
    if key is None:
        return f"batch_{make_id()}"
    return f"batch_{hashlib.sha256(msgspec.json.encode([owner, key])).hexdigest()[:32]}"


def line_request_id(batch_id: str, number: int) -> str:
    """Return the id of the request of a line, always the same one."""
    return hashlib.blake2b(f"{batch_id}/{number}".encode(), digest_size=16).hexdigest()


class BatchStore:
    """The batches and files of one spool."""

    def __init__(self, spool: Spool) -> None:
        self.spool, self._fs, self._folder = spool, spool.fs, spool.folder.batches
        self.files = FileStore(spool)
        self._lock_fd: int | None = None

    def create(self, batch: Batch) -> Batch:
        """Begin a batch, which the runner then finds. A batch that exists under this id stays.

        Raises:
            FileNotFoundError: the input file does not exist.
            SpoolUnavailable: the disk refused.
        """
        folder = self._folder / batch.id
        try:
            with system_trouble("begin a batch"):
                self._fs.make_folder(folder)
                self._fs.link(self.files.path(batch.input_file_id), folder / "input")
                if self.spool.is_synced:
                    self._fs.sync_folder(self._folder)
                    self._fs.sync_folder(folder)
                write_record(self.spool, folder / "batch.json", batch, is_synced=self.spool.is_synced)
        except SpoolUnavailable as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise FileNotFoundError(batch.input_file_id) from None
            raise
        return batch

    def find(self, id: str) -> BatchView | None:
        """Return a batch of any owner; None where it is unknown. Raises CorruptRequest, SpoolUnavailable."""
        if _ID.fullmatch(id) is None:
            return None
        folder = self._folder / id
        # The marker first: a state that is read later may have taken it in.
        marked_unix = self._marked_unix(folder / "cancel")
        batch = read_record(self._fs, folder / "batch.json", Batch)
        if batch is None:
            return None
        state = read_record(self._fs, folder / "state.json", BatchState) or BatchState()
        return BatchView(batch, self._with_counts(id, state), marked_unix)

    def list_all(self) -> list[BatchView]:
        """Return all batches, the newest first; damaged ones are left out. Raises SpoolUnavailable."""
        found = []
        for name in self.names():
            with contextlib.suppress(CorruptRequest):
                found.append(self.find(name))
        known = [view for view in found if view is not None]
        return sorted(known, key=lambda view: (view.batch.created_unix, view.batch.id), reverse=True)

    def cancel(self, id: str) -> None:
        """Cancel a batch that exists; without effect on one that has ended. Raises SpoolUnavailable."""
        with system_trouble("cancel a batch"), contextlib.suppress(FileExistsError):
            self._fs.write_new(self._folder / id / "cancel", b"", is_synced=self.spool.is_synced)
            if self.spool.is_synced:
                self._fs.sync_folder(self._folder / id)

    def names(self) -> list[str]:
        """Return the ids of all batches, and what else is in their folder. Raises SpoolUnavailable."""
        return self.spool.names(self._folder)

    def is_cancelled(self, id: str) -> bool:
        """Whether somebody cancelled the batch. Raises SpoolUnavailable."""
        return self._marked_unix(self._folder / id / "cancel") is not None

    def input(self, id: str) -> Path:
        """Return the path of a batch's input."""
        return self._folder / id / "input"

    def journal_path(self, id: str) -> Path:
        """Return the path of a batch's journal, for readers."""
        return self._folder / id / "journal"

    def try_lock(self) -> bool:
        """Become the one runner; False while another process is it. Raises SpoolUnavailable."""
        if self._lock_fd is None:
            with system_trouble("lock the batches"):
                self._lock_fd = self._fs.try_lock(self._folder / "lock")
        return self._lock_fd is not None

    def unlock(self) -> None:
        """Let another process become the runner."""
        if self._lock_fd is not None:
            with contextlib.suppress(OSError):
                self._fs.close(self._lock_fd)
            self._lock_fd = None

    def write_state(self, id: str, state: BatchState) -> None:
        """Replace a batch's state; only for the runner. Raises SpoolUnavailable."""
        with system_trouble("write a batch's state"):
            path = self._folder / id / "state.json"
            write_record(self.spool, path, state, is_synced=self.spool.is_synced)

    def write_counts(self, id: str, num_completed: int, num_failed: int) -> None:
        """Replace a batch's counts until its next state; only for the runner. Raises SpoolUnavailable."""
        with system_trouble("write a batch's counts"):
            counts = BatchCounts(num_completed, num_failed)
            write_record(self.spool, self._folder / id / "counts.json", counts, is_synced=False)

    def open_journal(self, id: str) -> Journal:
        """Open a batch's journal; only for the runner. Raises SpoolUnavailable."""
        return Journal(self.journal_path(id), self._fs, is_synced=self.spool.is_synced)

    def publish_outputs(self, batch: Batch, journal: Journal) -> dict[bool, str]:
        """Write the outputs of a batch to two files, in the order of its lines; only for the runner.

        A repetition after a crash replaces the files.

        Returns:
            The ids of the file of outputs (False) and of errors (True), each only where it has a line.

        Raises:
            SpoolUnavailable: the disk refused; repeat the call.
        """
        ids = {}
        for is_error, name in ((False, "output"), (True, "error")):
            numbers = sorted(number for number, place in journal.ended.items() if place.is_error is is_error)
            if numbers:
                ids[is_error] = f"file-{line_request_id(batch.id, -1 - is_error)}"
                record = make_record(
                    f"{batch.id}_{name}.jsonl",
                    "batch_output",
                    owner=batch.owner,
                    id=ids[is_error],
                    lives_seconds=batch.output_lives_seconds,
                )
                self._publish(journal, numbers, record)
        return ids

    def _publish(self, journal: Journal, numbers: Sequence[int], record: StoredFile) -> None:
        with self.files.begin() as upload:
            held = bytearray()
            for number in numbers:
                held += journal.read(journal.ended[number]) + b"\n"
                if len(held) >= CHUNK_BYTES:
                    upload.append(held)
                    held = bytearray()
            upload.append(held)
            upload.publish(record)

    def tidy(self, id: str) -> None:
        """Remove what an ended batch needs no more. Raises SpoolUnavailable."""
        with system_trouble("tidy a batch"):
            for name in ("journal", "input", "counts.json"):
                self._fs.unlink(self._folder / id / name)

    def sweep(self, now: float, retention_seconds: float) -> int:
        """Remove old batches that have ended, and unfinished creations; only for the runner.

        Args:
            retention_seconds: 0 keeps all.
        """
        num_removed = 0
        for name in self.names():
            if _ID.fullmatch(name) is None:
                continue
            with contextlib.suppress(CorruptRequest, FileNotFoundError):
                view = self.find(name)
                if view is None:
                    is_old = now - self._modified_unix(name) > STALE_SECONDS
                else:
                    ended_unix = view.state.ended_unix if view.state.has_ended else None
                    is_old = bool(retention_seconds) and ended_unix is not None
                    is_old = is_old and now - (ended_unix or 0) > retention_seconds
                if is_old:
                    self._remove(name)
                    num_removed += 1
        return num_removed

    def _with_counts(self, id: str, state: BatchState) -> BatchState:
        if state.has_ended:
            return state
        counts = None
        with contextlib.suppress(CorruptRequest):
            counts = read_record(self._fs, self._folder / id / "counts.json", BatchCounts)
        if (
            counts is None
            or counts.num_completed + counts.num_failed <= state.num_completed + state.num_failed
        ):
            return state
        return msgspec.structs.replace(
            state, num_completed=counts.num_completed, num_failed=counts.num_failed
        )

    def _modified_unix(self, name: str) -> float:
        return self._fs.stat(self._folder / name).st_mtime

    def _remove(self, id: str) -> None:
        with system_trouble("remove a batch"):
            self._fs.unlink(self._folder / id / "batch.json")
            self._fs.remove_tree(self._folder / id)

    def _marked_unix(self, path: Path) -> float | None:
        try:
            return self._fs.stat(path).st_mtime
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SpoolUnavailable.from_os_error("look for a cancelled batch", error) from error

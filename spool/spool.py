"""Spool: the file queue for front doors. Submit, cancel and look up, from any number of processes at once.

A request is one file. It is accepted when its file is linked into incoming/ (with durability "power": when
both are on the disk). From then on it ends in exactly one done/{id}.json, whichever process dies. The synced
name in incoming/ stays until then. A second name in active/ means that rank 0 works on it; at the end the
file moves to asked/, and stays as long as the result. `SpoolOwner` in owner.py is rank 0's side.

A look-up has no index: it scans done, active, incoming, and then once more, because a request may move ahead
of the scan. Knows nothing of HTTP, models or tokens.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from spool.admission import MAX_REQUEST_BYTES, Admission, DiskLimits
from spool.doorbell import RANK0, Doorbell, ring
from spool.errors import CorruptRequest, SpoolUnavailable, system_trouble
from spool.folder import SpoolFolder, list_names, open_folder
from spool.fsio import FileSystem, NotPlainFile, join
from spool.idempotency import KeyRecord, Keys, check_same
from spool.messages import Request, Result
from spool.names import EntryName, NameClock, check_id, id_of, is_entry_name, is_id, marked_id, marker_name
from spool.token_log import TokenLogReader
from spool.write_trouble import WriteTrouble

Durability = Literal["power", "process"]
State = Literal["waiting", "active", "done"]
MAX_RESULT_BYTES = 1 << 30
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Depth:
    """The size of the queue. num_bytes counts the waiting request files."""

    num_waiting: int
    num_active: int
    num_bytes: int
    oldest_wait_s: float = 0.0


class Spool:
    """One spool folder. Safe to use from several threads and processes; make it with `Spool.open`."""

    def __init__(self, folder: SpoolFolder, fs: FileSystem, admission: Admission, *, is_synced: bool) -> None:
        self.folder = folder
        self.fs = fs
        self.is_synced = is_synced
        self.admission = admission
        self.clock = NameClock()
        self._keys = Keys(folder, fs, is_synced=is_synced)
        self._trouble = WriteTrouble(folder, fs, is_synced=is_synced)

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        durability: Durability = "power",
        max_depth: int = 1000,
        max_bytes: int = 256 * 2**20,
        disk: DiskLimits | None = None,
        fs: FileSystem | None = None,
    ) -> Spool:
        """Open a spool; make it where the folder is empty or missing.

        Raises:
            SpoolRefused: another version, a network or FAT file system, another user's folder.
            SpoolUnavailable: the disk refused.
        """
        if durability not in ("power", "process"):
            raise ValueError(f"durability is {durability!r}; allowed: power, process")
        fs = fs or FileSystem()
        is_synced = durability == "power"
        folder = open_folder(Path(root), fs, is_synced=is_synced)
        limits = disk or DiskLimits()
        admission = Admission(folder, fs, max_depth=max_depth, max_bytes=max_bytes, disk=limits)
        return cls(folder, fs, admission, is_synced=is_synced)

    def submit(self, request: Request, idempotency_key: str | None = None, *, body_hash: str = "") -> str:
        """Accept a request and wake rank 0. An accepted request is answered, whichever process dies.

        Args:
            idempotency_key: of the request's owner. A retry under it gets the first request.
            body_hash: of the client's body; it distinguishes a retry from another request.

        Returns:
            The id of this request, or of the first one under this key.

        Raises:
            SpoolFull: over the count or byte limit.
            IdempotencyConflict: the key was used with another body.
            SpoolUnavailable: too little space, or the disk or the system refused. Without a key nothing was
                accepted; with a key, retry safely to find out.
            CorruptRequest: the disk damaged the record of the key.
        """
        try:
            if idempotency_key is None:
                return self._submit_new(request)
            path = self._keys.path(request.owner, idempotency_key)
            return self._submit_once(request, path, body_hash).id
        except SpoolUnavailable as error:
            self._trouble.note(error)
            raise

    def find_first(self, owner: str, idempotency_key: str, *, body_hash: str) -> str | None:
        """Return the id of the first request under a key; None where it is unknown or was removed.

        Raises: as `submit`, but never because the queue or the disk is full.
        """
        record = self._look_up(self._keys.path(owner, idempotency_key), body_hash)
        return record.id if record is not None and self._is_accepted(record) else None

    def check_room(self) -> None:
        """Raise SpoolUnavailable where the disk would refuse even the smallest request."""
        self.admission.check_disk()
        self._trouble.check()

    def cancel(self, id: str, *, after_seconds: float = 0.0) -> bool:
        """Cancel a request, now or after a time in which `keep` can revoke that.

        Return False where the request is unknown or done.
        """
        if self.state(id) not in ("waiting", "active"):
            return False
        moment = time.time_ns() + int(after_seconds * 1e9) if after_seconds > 0 else None
        marker = self.folder.cancel / marker_name(id, moment)
        with system_trouble("cancel a request"):
            with contextlib.suppress(FileExistsError):
                self.fs.write_new(marker, b"", is_synced=False)
            if self.fs.exists(self.folder.result(id)):
                self.fs.unlink(marker)
                return False
        if moment is None:
            ring(self.folder.bell, RANK0, self.fs)
        return True

    def ending_later(self) -> set[str]:
        """Return the ids of requests with a later cancel. Raises SpoolUnavailable."""
        return {marked_id(name) for name in self.names(self.folder.cancel) if not is_id(name)}

    def keep(self, id: str) -> bool:
        """Revoke the later cancel of a request; False where it has none."""
        check_id(id)
        markers = [name for name in self.names(self.folder.cancel) if name != id and marked_id(name) == id]
        with system_trouble("keep a request"):
            for name in markers:
                self.fs.unlink(join(self.folder.cancel, name))
        return bool(markers)

    def state(self, id: str) -> State | None:
        """Return a request's state; None where it is unknown, or its result was removed."""
        check_id(id)
        for _ in range(2):
            if self._has_result(id):
                return "done"
            if self._paths(self.folder.active, id):
                return "active"
            if self._paths(self.folder.incoming, id):
                return "waiting"
        return "done" if self._has_result(id) else None

    def read_result(self, id: str) -> Result | None:
        """Return the result, or None while it does not exist. Raises CorruptRequest, SpoolUnavailable."""
        path = self.folder.result(check_id(id))
        try:
            result = Result.from_json(self.fs.read(path, MAX_RESULT_BYTES))
        except FileNotFoundError:
            return None
        except NotPlainFile as error:
            raise CorruptRequest(f"the result is {error}") from error
        except OSError as error:
            raise SpoolUnavailable.from_os_error("read a result", error) from error
        if result.id != id:
            raise CorruptRequest("the result belongs to another request")
        return result

    def read_request(self, id: str) -> Request | None:
        """Return the request of an id, answered or not; None where it is unknown or was not kept.

        Raises CorruptRequest, SpoolUnavailable.
        """
        kept = self.folder.request(check_id(id))
        for _ in range(2):  # it may move ahead of the scan
            for path in (kept, *self._paths(self.folder.active, id), *self._paths(self.folder.incoming, id)):
                try:
                    return Request.from_json(self.fs.read(path, MAX_REQUEST_BYTES))
                except FileNotFoundError:
                    continue
                except NotPlainFile as error:
                    raise CorruptRequest(f"the request's file is {error}") from error
                except OSError as error:
                    raise SpoolUnavailable.from_os_error("read a request", error) from error
        return None

    def open_log(self, id: str) -> TokenLogReader:
        """Follow a request's tokens from the first one; the log need not exist yet."""
        return TokenLogReader(join(self.folder.stream, check_id(id)), self.fs)

    def listen(self, name: str) -> Doorbell:
        """Listen at a doorbell of this spool; a front door's name comes from `make_door_name()`."""
        return Doorbell(self.folder.bell, name, self.fs)

    def depth(self) -> Depth:
        """Count the waiting and the active requests."""
        sizes = self.admission.measure()
        num_active = sum(map(is_entry_name, self.names(self.folder.active)))
        accepted_ns = [name.time_ns for name in map(EntryName.parse, sizes) if name is not None]
        oldest_wait_s = max(0.0, (time.time_ns() - min(accepted_ns)) / 1e9) if accepted_ns else 0.0
        return Depth(len(sizes), num_active, sum(sizes.values()), oldest_wait_s)

    def waiting_ids(self) -> list[str]:
        """Return the queue in the order of its claims. Raises SpoolUnavailable."""
        return [id_of(name) for name in sorted(self.admission.waiting_names())]

    def active_ids(self) -> set[str]:
        """Return the ids of requests that are claimed. Raises SpoolUnavailable."""
        return {id_of(name) for name in self.names(self.folder.active) if is_entry_name(name)}

    def position(self, id: str) -> int | None:
        """Return how many requests will be claimed before this one; None where it does not wait."""
        check_id(id)
        waiting = self.waiting_ids()
        return waiting.index(id) if id in waiting else None

    def known_ids(self) -> set[str]:
        """Return the ids of all requests that wait, run or have a result. Raises SpoolUnavailable."""
        # In the order of a request's way, so that none moves past the scan.
        entries = [*self.names(self.folder.incoming), *self.names(self.folder.active)]
        done = {name.removesuffix(".json") for name in self.names(self.folder.done)}
        return done | {id_of(name) for name in entries if is_entry_name(name)}

    def make_sure(self) -> None:
        """Sync the folders for a process that may have died before its own sync. Raises OSError."""
        if self.is_synced:
            for folder in (self.folder.idem, self.folder.incoming, self.folder.active):
                self.fs.order_folder(folder)
            self.fs.sync_folder(self.folder.done)

    def names(self, folder: Path) -> list[str]:
        """List one of the spool's folders. Raises SpoolUnavailable."""
        return list_names(folder, self.fs)

    def _paths(self, folder: Path, id: str) -> list[str]:
        """Return a request's files in incoming/ or active/."""
        return [join(folder, name) for name in self.names(folder) if id in name and is_entry_name(name)]

    def _has_result(self, id: str) -> bool:
        try:
            return self.fs.exists(self.folder.result(id))
        except OSError as error:
            raise SpoolUnavailable.from_os_error("look for a result", error) from error

    def _submit_new(self, request: Request) -> str:
        name, data = EntryName(request.priority, self.clock.next_ns(), request.id), request.to_json()
        with self.admission.holding(len(data)):
            self._publish(name, data, is_shared=False)
        return name.id

    def _look_up(self, path: Path, body_hash: str) -> KeyRecord | None:
        with system_trouble("look up an idempotency key"):
            record = self._keys.find(path)
        if record is not None:
            check_same(record, body_hash)
        return record

    def _is_accepted(self, record: KeyRecord) -> bool:
        """Whether the first request under a key exists; sync it and wake rank 0."""
        if self.state(record.id) is None:
            return False
        with system_trouble("accept a request"):
            self.make_sure()
        ring(self.folder.bell, RANK0, self.fs)
        return True

    def _submit_once(self, request: Request, path: Path, body_hash: str) -> EntryName:
        """Accept the first request under a key, and return its name."""
        record = self._look_up(path, body_hash)
        if record is not None and self._is_accepted(record):
            return record.name
        name = EntryName(request.priority, self.clock.next_ns(), request.id)
        with self.admission.holding(len(request.to_json())):
            with system_trouble("write an idempotency key"):
                record = self._keys.take(path, record or KeyRecord(name, body_hash))
            check_same(record, body_hash)
            first = replace(request, id=record.id)
            self._publish(record.name, first.to_json(), is_shared=True)
        return record.name

    def _publish(self, name: EntryName, data: bytes, *, is_shared: bool) -> None:
        """Link the request's whole file into incoming/, or nothing; wake rank 0.

        A shared name belongs to a key: the first process to link it publishes for all. None may withdraw it,
        because another may have answered its client already.
        """
        temporary = self.folder.temporary()
        try:
            self.fs.write_new(temporary, data, is_synced=self.is_synced)
            self.fs.link(temporary, join(self.folder.incoming, name.waiting))
            if self.is_synced:
                self.fs.sync_folder(self.folder.incoming)
            # `ring` never raises.
            ring(self.folder.bell, RANK0, self.fs)
        except OSError as error:
            if not is_shared:
                self._withdraw(name)
            raise SpoolUnavailable.from_os_error("accept a request", error) from error
        finally:
            with contextlib.suppress(OSError):
                self.fs.unlink(temporary)

    def _withdraw(self, name: EntryName) -> None:
        """Undo a submit that failed half-way. If rank 0 has claimed it already, cancel it."""
        try:
            self.fs.unlink(self.folder.incoming / name.waiting)
            self.cancel(name.id)
        except (OSError, SpoolUnavailable) as error:
            _log.warning("request %s was refused, but its file cannot be removed: %s", name.id, error)

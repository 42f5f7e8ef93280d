"""Spool: the file queue as a front door sees it. Submit, cancel and look up; any number of processes at once.

A request is one file. It is accepted when it has been linked into incoming/ (and, with durability "power",
both are on the disk); from then on it ends in exactly one done/{id}.json, whatever dies. Its name in
incoming/ stays until then: it is the one that is sure to be on the disk. A second name in active/ says that
rank 0 works on it; at the end the file moves to asked/, kept as long as the result. What rank 0 does with it
(claim, complete, recover) is `SpoolOwner` in owner.py. This room knows nothing of HTTP, models or tokens.

A look-up has no index to ask: it scans in the order done, active, incoming, and once more, because a
request may move on ahead of the scan.
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
    """How much there is to do. num_bytes is of the waiting request files."""

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
        """Open a spool, made if the folder is empty or absent.

        Raises:
            SpoolRefused: another version, a network or FAT file system, someone else's folder.
            SpoolUnavailable: the disk said no.
        """
        if durability not in ("power", "process"):
            raise ValueError("durability is power or process")
        fs = fs or FileSystem()
        is_synced = durability == "power"
        folder = open_folder(Path(root), fs, is_synced=is_synced)
        limits = disk or DiskLimits()
        admission = Admission(folder, fs, max_depth=max_depth, max_bytes=max_bytes, disk=limits)
        return cls(folder, fs, admission, is_synced=is_synced)

    def submit(self, request: Request, idempotency_key: str | None = None, *, body_hash: str = "") -> str:
        """Accept a request: when this returns it will be answered, whatever dies. Wakes rank 0.

        Args:
            idempotency_key: of the request's owner. Asked again under it, the first request is the one.
            body_hash: of what the client sent, which tells a retry from another request.

        Returns:
            The id that counts: the request's, or that of the first one under this key.

        Raises:
            SpoolFull: over the count or byte limit.
            IdempotencyConflict: the key was used with another body.
            SpoolUnavailable: too little disk, or the disk or system said no. Nothing was accepted; with a
                key, ask again to find out.
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
        """The id of the request that came first under a key; None where there is none, or not any more.

        Raises: as `submit`, but never for want of room.
        """
        record = self._look_up(self._keys.path(owner, idempotency_key), body_hash)
        return record.id if record is not None and self._is_accepted(record) else None

    def check_room(self) -> None:
        """Raise SpoolUnavailable where no request would be accepted now, however small."""
        self.admission.check_disk()
        self._trouble.check()

    def cancel(self, id: str, *, after_seconds: float = 0.0) -> bool:
        """Ask for a request to be stopped, now or after a time in which `keep` takes that back.

        False when there is nothing to stop: unknown or done.
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
        """The ids that are to be stopped at a later time. Raises SpoolUnavailable."""
        return {marked_id(name) for name in self.names(self.folder.cancel) if not is_id(name)}

    def keep(self, id: str) -> bool:
        """Take back that a request be stopped later; False where nobody had asked for it."""
        check_id(id)
        markers = [name for name in self.names(self.folder.cancel) if name != id and marked_id(name) == id]
        with system_trouble("keep a request"):
            for name in markers:
                self.fs.unlink(join(self.folder.cancel, name))
        return bool(markers)

    def state(self, id: str) -> State | None:
        """Where a request is; None when it is unknown (or so old that its result was removed)."""
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
        """The answer, or None while there is none. Raises CorruptRequest if the disk has damaged it."""
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
            raise CorruptRequest("the result is of another request")
        return result

    def read_request(self, id: str) -> Request | None:
        """What was asked under an id, answered or not; None when it is unknown or was not kept.

        Raises CorruptRequest, SpoolUnavailable.
        """
        kept = self.folder.request(check_id(id))
        for _ in range(2):  # it may move on ahead of the scan
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
        """Follow a request's tokens from the first on; the log need not be there yet."""
        return TokenLogReader(join(self.folder.stream, check_id(id)), self.fs)

    def listen(self, name: str) -> Doorbell:
        """Listen at a doorbell of this spool: `make_door_name()` for a front door."""
        return Doorbell(self.folder.bell, name, self.fs)

    def depth(self) -> Depth:
        """Count what waits and what is worked on."""
        sizes = self.admission.measure()
        num_active = sum(map(is_entry_name, self.names(self.folder.active)))
        accepted_ns = [name.time_ns for name in map(EntryName.parse, sizes) if name is not None]
        oldest_wait_s = max(0.0, (time.time_ns() - min(accepted_ns)) / 1e9) if accepted_ns else 0.0
        return Depth(len(sizes), num_active, sum(sizes.values()), oldest_wait_s)

    def waiting_ids(self) -> list[str]:
        """The queue in the order in which it is claimed. Raises SpoolUnavailable."""
        return [id_of(name) for name in sorted(self.admission.waiting_names())]

    def position(self, id: str) -> int | None:
        """How many requests will be claimed before this one; None when it does not wait."""
        check_id(id)
        waiting = self.waiting_ids()
        return waiting.index(id) if id in waiting else None

    def make_sure(self) -> None:
        """Put on the disk what a process did that may have died before it could. Raises OSError."""
        if self.is_synced:
            for folder in (self.folder.idem, self.folder.incoming, self.folder.active, self.folder.done):
                self.fs.sync_folder(folder)

    def names(self, folder: Path) -> list[str]:
        """List one of the spool's folders. Raises SpoolUnavailable."""
        return list_names(folder, self.fs)

    def _paths(self, folder: Path, id: str) -> list[str]:
        """The files of a request in incoming/ or active/."""
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
        """Whether the first request under a key is there, sure to stay; rank 0 is woken for it."""
        if self.state(record.id) is None:
            return False
        with system_trouble("accept a request"):
            self.make_sure()
        ring(self.folder.bell, RANK0, self.fs)
        return True

    def _submit_once(self, request: Request, path: Path, body_hash: str) -> EntryName:
        """Accept the first request under a key; the name of that one."""
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
        """Make the request's file appear whole in incoming/, or not at all; wake rank 0.

        A shared name is that of a key: whoever links it first publishes for all, and nobody may take it
        back, because another may have told its client already.
        """
        temporary = self.folder.temporary()
        try:
            self.fs.write_new(temporary, data, is_synced=self.is_synced)
            self.fs.link(temporary, join(self.folder.incoming, name.waiting))
            if self.is_synced:
                self.fs.sync_folder(self.folder.incoming)
            # It never raises; what is left to do here can wait.
            ring(self.folder.bell, RANK0, self.fs)
        except OSError as error:
            if not is_shared:
                self._withdraw(name)
            raise SpoolUnavailable.from_os_error("accept a request", error) from error
        finally:
            with contextlib.suppress(OSError):
                self.fs.unlink(temporary)

    def _withdraw(self, name: EntryName) -> None:
        """Undo a submit that failed half way. Where rank 0 was quicker, nobody waits for the answer."""
        try:
            self.fs.unlink(self.folder.incoming / name.waiting)
            self.cancel(name.id)
        except (OSError, SpoolUnavailable) as error:
            _log.warning("request %s was refused, but its file could not be removed: %s", name.id, error)

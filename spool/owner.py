"""SpoolOwner: the spool as rank 0 sees it, the one process that holds its lock. Claim, complete, recover,
sweep.

    acquire ─ recover ─┬─ claim:     incoming/ → active/ (rename)
                       ├─ complete:  tmp/ → done/ (link: never a second answer), then the claim is removed
                       └─ put_back:  active/ → incoming/, the same attempt (drain)

Whatever dies in between, `recover` finds a request either answered (its claim is only cleaned up) or not
(it goes back to incoming/ with the next attempt number). This room knows nothing of sequences, sampling or
HTTP.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from spool.doorbell import DOOR_PREFIX, RANK0, Doorbell, ring_all
from spool.errors import DISK_FULL, CorruptRequest, SpoolError, SpoolLocked, SpoolUnavailable, system_trouble
from spool.fsio import NotPlainFile
from spool.messages import Request, Result
from spool.names import EntryName, check_id, is_entry_name, is_id
from spool.spool import MAX_REQUEST_BYTES, Spool
from spool.sweep import sweep
from spool.token_log import LogHeader, TokenLogWriter

_MAX_NOTE_BYTES = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claim:
    """A request that is ours to answer. attempt counts claims, from 1; waited_s is since it was accepted."""

    request: Request
    name: EntryName
    waited_s: float

    @property
    def attempt(self) -> int:
        """Which try this is."""
        return self.name.attempt


class SpoolOwner:
    """Holds the lock from `acquire` to `close`. Used by one thread."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self._fs = spool.fs
        self._folder = spool.folder
        self._lock_fd: int | None = None
        self._is_recovered = False
        self._claims: dict[str, Claim] = {}
        self._immovable: set[Path] = set()  # foreign things that cannot even be moved: told once

    def acquire(self) -> None:
        """Take the lock. Raises SpoolLocked, which names the holder."""
        assert self._lock_fd is None, "acquired twice"
        with system_trouble("lock the spool"):
            self._lock_fd = self._fs.try_lock(self._folder.lock)
        if self._lock_fd is None:
            raise SpoolLocked(str(self._folder.root), self._read_number(self._folder.lock))
        with contextlib.suppress(OSError):  # a note to people: a full disk must not stop us here
            self._fs.overwrite(self._lock_fd, b"%d\n" % os.getpid())
        self.restore_ballast()

    def close(self) -> None:
        """Give the lock back. What is claimed stays in active/ for the next owner's `recover`."""
        if self._lock_fd is not None:
            self._fs.close(self._lock_fd)
            self._lock_fd = None
        self._is_recovered = False
        self._claims.clear()

    def __enter__(self) -> SpoolOwner:
        if self._lock_fd is None:
            self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def recover(self) -> list[str]:
        """Put back what an earlier owner left unanswered; the ids in order. Once, before the first claim."""
        assert self._lock_fd is not None, "recover without the lock"
        assert not self._claims, "recover with claims"
        put_back: list[str] = []
        for text in sorted(self.spool.names(self._folder.active)):
            name = EntryName.parse(text)
            if name is None:
                self._quarantine(self._folder.active / text, "not a name of ours")
            elif self._is_answered(name.id):
                with system_trouble("recover a request"):
                    self._sync_done()  # its owner may have died before it could
                self._remove_claim(name)
            else:
                self._move("recover a request", self._folder.active / text, name.next_attempt())
                put_back.append(name.id)
        self._is_recovered = True
        return put_back

    def next_epoch(self) -> int:
        """Begin a new life of the ring: a number larger than all before it."""
        assert self._lock_fd is not None, "an epoch without the lock"
        last = self._read_number(self._folder.epoch)
        if last is None and self._fs.exists(self._folder.epoch):
            last = int(time.time())  # damaged: continue above anything that counting from 1 can have reached
        epoch = (last or 0) + 1
        fresh = self._folder.tmp / "epoch"
        with system_trouble("write the epoch"):
            self._fs.unlink(fresh)
            self._fs.write_new(fresh, b"%d\n" % epoch, is_synced=self.spool.is_synced)
            self._fs.rename(fresh, self._folder.epoch)
            if self.spool.is_synced:
                self._fs.sync_folder(self._folder.root)
        return epoch

    def claim(self, max_claims: int, only: Collection[str] | None = None) -> list[Claim]:
        """Take up to `max_claims` requests, lowest priority number and oldest first.

        `only` limits it to these ids, wherever they stand in the queue (so that cancelled ones need not
        wait their turn). Damaged and foreign files are quarantined on the way. Raises SpoolUnavailable when
        nothing could be claimed because the disk or system said no: try again at the next poll.
        """
        assert self._is_recovered, "claim before recover"
        claims: list[Claim] = []
        trouble: SpoolError | None = None
        for name in self._waiting() if max_claims > 0 else []:
            if len(claims) >= max_claims:
                break
            if only is not None and name.id not in only:
                continue
            try:
                claim = self._take(name)
            except SpoolUnavailable as error:
                trouble = error
                continue
            if claim is not None:
                claims.append(claim)
        if trouble is not None and not claims:
            raise trouble
        return claims

    def complete(self, claim: Claim, result: Result) -> bool:
        """Publish the one answer and give the claim up; False when there was an answer already (which
        stands).

        A claim whose file someone deleted is answered failed(lost). May be repeated after SpoolUnavailable.
        """
        if result.id != claim.request.id:
            raise ValueError("the result is of another request")
        with system_trouble("write a result"):
            if not self._fs.exists(self._folder.active / claim.name.active):
                message = "the request's file was deleted while it ran"
                result = _failed(result.id, result.model, "lost", message)
            is_first = self._publish_with_ballast(result)
        self._remove_claim(claim.name)
        self._claims.pop(result.id, None)
        return is_first

    def put_back(self, claim: Claim) -> None:
        """Return a claim unanswered, the attempt not counted: for a drain. Its token log stays."""
        self._move("put a request back", self._folder.active / claim.name.active, claim.name)
        self._claims.pop(claim.request.id, None)

    def cancelled(self) -> set[str]:
        """The ids that someone wants stopped, claimed or not."""
        return {name for name in self.spool.names(self._folder.cancel) if is_id(name)}

    def clear_cancel(self, id: str) -> None:
        """Forget a wish to stop; `complete` does it too."""
        with contextlib.suppress(OSError):
            self._fs.unlink(self._folder.cancel / check_id(id))

    def append_log(self, id: str, header: LogHeader | None = None) -> TokenLogWriter:
        """Open a request's token log for appending; `resumed` has the tokens that are in it already."""
        return TokenLogWriter(self._folder.stream / check_id(id), self._fs, header=header)

    def listen(self) -> Doorbell:
        """Rank 0's own doorbell."""
        return self.spool.listen(RANK0)

    def ring_doors(self) -> int:
        """Wake every front door: there are new tokens or results. How many heard."""
        return ring_all(self._folder.bell, DOOR_PREFIX, self._fs)

    def sweep(self, now: float, retention_seconds: float) -> int:
        """Remove what is older than the retention, and leftovers; how many. `now` is in Unix seconds."""
        assert self._is_recovered, "sweep before recover"
        self.restore_ballast()
        return sweep(self.spool, now, retention_seconds)

    def restore_ballast(self) -> None:
        """Set space aside for results, if it is not and there is plenty."""
        path, fresh, limits = self._folder.ballast, self._folder.tmp / "ballast", self.spool.disk
        with contextlib.suppress(OSError):  # later: submit asks for this much more space meanwhile
            space = self._fs.disk_space(self._folder.root)
            if self._fs.exists(path) or space.num_free_bytes < limits.min_free_bytes + limits.ballast_bytes:
                return
            self._fs.unlink(fresh)
            # Random bytes: neither compression nor sparse files may make them smaller than they look.
            self._fs.write_new(fresh, os.urandom(limits.ballast_bytes), is_synced=True)
            self._fs.rename(fresh, path)

    def _waiting(self) -> Iterator[EntryName]:
        """The queue in order. What does not belong there is moved out of the way, once."""
        ours: list[str] = []
        for text in self.spool.names(self._folder.incoming):
            if is_entry_name(text):
                ours.append(text)
            else:
                self._take_in_foreign(text)
        return filter(None, map(EntryName.parse, sorted(ours)))

    def _take_in_foreign(self, text: str) -> None:
        """Deal with a file that no front door wrote.

        This is the place for prompt files dropped in by hand ("<anything>.json" with {"prompt": …}): make a
        Request of one, publish it under a name of ours, then remove it. A file that is still being copied
        must be waited for.
        """
        self._quarantine(self._folder.incoming / text, "not a name of ours")

    def _take(self, name: EntryName) -> Claim | None:
        """Claim one file; None when it is gone, answered, a duplicate or damaged."""
        path = self._folder.incoming / name.waiting
        try:
            if name.id in self._claims:
                self._quarantine(path, "a second file of a request that is being worked on")
                return None
            if self._fs.exists(self._folder.result(name.id)):
                self._sync_done()
                self._fs.unlink(path)
                return None
            request = Request.from_json(self._fs.read(path, MAX_REQUEST_BYTES))
            if request.id != name.id:
                raise CorruptRequest("the id in the file is not the one in its name")
            self._fs.rename(path, self._folder.active / name.active)
        except FileNotFoundError:
            return None
        except (CorruptRequest, NotPlainFile) as error:
            self._fail_corrupt(name, path, str(error))
            return None
        except OSError as error:
            raise SpoolUnavailable.from_os_error("claim a request", error) from error
        waited_s = max(0.0, (time.time_ns() - name.time_ns) / 1e9)
        self._claims[name.id] = Claim(request, name, waited_s)
        return self._claims[name.id]

    def _fail_corrupt(self, name: EntryName, path: Path, reason: str) -> None:
        """Answer first, then move the file away: dying in between, the answer is found."""
        if path in self._immovable:
            return
        with system_trouble("write a result"):
            self._publish_with_ballast(
                _failed(name.id, "", "corrupt", "the request's file was damaged in the spool")
            )
        self._quarantine(path, reason)
        self.clear_cancel(name.id)

    def _quarantine(self, path: Path, reason: str) -> None:
        """Move something into bad/ under a name that is free, as it is and whatever it is."""
        if path in self._immovable:
            return
        stem = os.fsdecode(os.fsencode(path.name)[:180])
        try:
            self._fs.rename(path, self._folder.bad / f"{stem}.{self.spool.clock.next_ns()}")
        except FileNotFoundError:
            return
        except OSError as error:
            self._immovable.add(path)
            _log.error(
                "%a in %s/ is foreign (%s) and cannot be moved: %s",
                path.name,
                path.parent.name,
                reason,
                error,
            )
            return
        _log.warning("moved %a from %s/ to bad/: %s", path.name, path.parent.name, reason)

    def _is_answered(self, id: str) -> bool:
        """Whether a whole result is there. A damaged one is put aside, and the request runs again."""
        try:
            return self.spool.read_result(id) is not None
        except CorruptRequest as error:
            self._quarantine(self._folder.result(id), str(error))
            return False

    def _move(self, doing: str, path: Path, name: EntryName) -> None:
        try:
            self._fs.rename(path, self._folder.incoming / name.waiting)
        except FileNotFoundError:
            _log.warning("cannot %s: the file of %s is gone", doing, name.id)
        except OSError as error:
            raise SpoolUnavailable.from_os_error(doing, error) from error

    def _remove_claim(self, name: EntryName) -> None:
        """The answer is there: what is left of the request goes, now or at the next recovery."""
        try:
            self._fs.unlink(self._folder.active / name.active)
        except OSError as error:
            _log.warning("the claim of %s could not be removed: %s", name.id, error)
        self.clear_cancel(name.id)

    def _publish_with_ballast(self, result: Result) -> bool:
        try:
            return self._publish(result)
        except OSError as error:
            if error.errno not in DISK_FULL or not self._fs.unlink(self._folder.ballast):
                raise
            _log.warning("the disk is full: the ballast was released to write a result")
            return self._publish(result)

    def _publish(self, result: Result) -> bool:
        """Link a finished file into done/; False when a result is there already."""
        target = self._folder.result(result.id)
        temporary = self._folder.tmp / f"{result.id}.result"
        try:
            self._fs.unlink(temporary)
            self._fs.write_new(temporary, result.to_json(), is_synced=self.spool.is_synced)
            is_first = self._link(temporary, target)
            self._sync_done()
        finally:
            with contextlib.suppress(OSError):
                self._fs.unlink(temporary)
        return is_first

    def _link(self, source: Path, target: Path) -> bool:
        try:
            self._fs.link(source, target)
        except FileExistsError:
            return False
        return True

    def _sync_done(self) -> None:
        """Make results sure to stay, before the files of their requests go."""
        if self.spool.is_synced:
            self._fs.sync_folder(self._folder.done)

    def _read_number(self, path: Path) -> int | None:
        try:
            return int(self._fs.read(path, _MAX_NOTE_BYTES))
        except (OSError, NotPlainFile, ValueError):
            return None


def _failed(id: str, model: str, code: str, message: str) -> Result:
    return Result.failed(id, model=model, code=code, message=message, finished_unix=time.time())

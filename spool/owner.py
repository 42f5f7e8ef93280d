"""SpoolOwner: the spool for rank 0, the one process that holds its lock.

    acquire ─ recover ─┬─ claim:     link a second name into active/; the name in incoming/ stays
                       ├─ complete:  link the result from tmp/ into done/, then move the file to asked/
                       └─ put_back:  remove the name in active/; the attempt does not count (drain)

The name in incoming/ was synced at acceptance, so a claim needs no sync. After a crash, `recover` finds a
request answered (and cleans up) or unanswered (and requeues it for its next attempt: link, sync, unlink).

A request is a suspect if its owner died while it was active without a new token. It runs alone (`mark_solo`)
until it has one; a crash meanwhile counts against it alone. The files' names hold the counts (names.py).
Knows nothing of sequences, sampling or HTTP.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from spool.admission import MAX_REQUEST_BYTES
from spool.claim import Claim
from spool.doorbell import DOOR_PREFIX, RANK0, Doorbell, ring_all
from spool.errors import CorruptRequest, SpoolUnavailable, system_trouble
from spool.fsio import NotPlainFile, join
from spool.lock import SpoolLock
from spool.messages import Request, Result
from spool.names import LAST_PRIORITY, EntryName, check_id, is_due, is_entry_name, judge, marked_id
from spool.prompt_files import PromptFileDefaults, PromptFiles
from spool.quarantine import Quarantine
from spool.results import ResultWriter, make_failed
from spool.spool import Spool
from spool.sweep import Swept, sweep
from spool.token_log import LogHeader, TokenLogWriter, read_log

_log = logging.getLogger(__name__)


class SpoolOwner:
    """Holds the lock from `acquire` to `close`. Used by one thread.

    `file_defaults` are the defaults of prompt files; without them the files are quarantined. They may change
    at any time.
    """

    def __init__(self, spool: Spool, file_defaults: PromptFileDefaults | None = None) -> None:
        self.spool = spool
        self._fs = spool.fs
        self._folder = spool.folder
        self._lock = SpoolLock(spool.folder, spool.fs, is_synced=spool.is_synced)
        self._is_recovered = False
        self._claims: dict[str, Claim] = {}
        self._results = ResultWriter(spool)
        self._quarantine = Quarantine(spool)
        self._prompt_files = PromptFiles(spool, self._quarantine)
        self.file_defaults = file_defaults

    def acquire(self) -> None:
        """Take the lock. Raises SpoolLocked, which names the holder."""
        self._lock.acquire()
        self._results.restore_ballast()

    def close(self) -> None:
        """Release the lock. Claimed requests stay in active/ for the next owner's `recover`."""
        self._lock.release()
        self._is_recovered = False
        self._claims.clear()

    def __enter__(self) -> SpoolOwner:
        if not self._lock.is_held:
            self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def recover(self) -> list[str]:
        """Requeue the requests that an earlier owner left unanswered; return their ids in order.

        Call it once, before the first claim.
        """
        assert self._lock.is_held, "recover without the lock"
        assert not self._claims, "recover with claims"
        unanswered: list[EntryName] = []
        with system_trouble("recover a request"):
            self._results.sync()  # an earlier owner may have died before its sync
            for text in sorted(self.spool.names(self._folder.active)):
                name = EntryName.parse(text)
                if name is None or name.active != text:
                    self._quarantine.take(self._folder.active / text, "it is not a request's file name")
                elif self._is_answered(name.id):
                    self._remove_claim(name)
                else:
                    unanswered.append(name)
            entries = [(name, self._num_logged(name.id)) for name in unanswered]
            self._requeue(judge(entries, was_power_cut=self._lock.was_power_cut))
        self._is_recovered = True
        self._lock.note_recovered()
        return [name.id for name in unanswered]

    def next_epoch(self) -> int:
        """Return a new epoch, larger than all earlier ones."""
        return self._lock.next_epoch()

    def claim(
        self, max_claims: int, only: Collection[str] | None = None, *, max_yielding: int | None = None
    ) -> list[Claim]:
        """Take up to `max_claims` requests, lowest priority number first, then oldest first.

        Damaged and foreign files are quarantined. Raises SpoolUnavailable where the disk or the system
        refused and nothing was claimed: retry at the next poll.

        Args:
            only: ids, at any place in the queue (so that cancelled requests need not wait).
            max_yielding: requests of LAST_PRIORITY are taken only up to so many claims in all.
        """
        assert self._is_recovered, "claim before recover"
        names = self._waiting() if max_claims > 0 else iter(())
        if only is not None:
            names = (name for name in names if name.id in only)
        claims: list[Claim] = []
        trouble: SpoolUnavailable | None = None
        for name in names:
            if name.priority == LAST_PRIORITY and max_yielding is not None and len(claims) >= max_yielding:
                break  # all others go first
            try:
                claim = self._take(name)
            except SpoolUnavailable as error:
                trouble = error
                continue
            if claim is not None:
                claims.append(claim)
            if len(claims) == max_claims:
                break
        if trouble is not None and not claims:
            raise trouble
        return claims

    def complete(self, claim: Claim, result: Result) -> bool:
        """Publish the one answer and release the claim; False where an answer exists already, which stands.

        If somebody deleted the claim's file, the answer is the error "lost". After SpoolUnavailable, repeat
        the call.
        """
        if result.id != claim.request.id:
            raise ValueError("the result belongs to another request")
        name = self._claims.get(result.id, claim).name
        with system_trouble("write a result"):
            if not self._fs.exists(join(self._folder.active, name.active)):
                message = "the request's file was deleted while it ran"
                result = make_failed(result.id, claim.request, "lost", message)
            is_first = self._results.publish(result)
        self._remove_claim(name)
        self._claims.pop(result.id, None)
        return is_first

    def put_back(self, claim: Claim) -> None:
        """Return a claim unanswered, for a drain: the attempt does not count, and the token log stays."""
        id = claim.request.id
        name = self._claims.get(id, claim).name
        with system_trouble("put a request back"):
            self._requeue([(name, name.put_back(self._num_logged(id)))])
        self._claims.pop(id, None)

    def mark_solo(self, claim: Claim) -> Claim:
        """Record that a suspect now runs alone; return the new claim (the old one works as well).

        No other request may run until this one has a new token or ends: if the ring crashes meanwhile, the
        crash counts against this request. Raises SpoolUnavailable.
        """
        name = self._claims[claim.request.id].name
        solo = replace(name, is_solo=True, num_tokens=self._num_logged(name.id))
        with system_trouble("mark a request"), contextlib.suppress(FileNotFoundError):
            self._fs.rename(self._folder.active / name.active, self._folder.active / solo.active)
        self._claims[name.id] = replace(claim, name=solo)
        return self._claims[name.id]

    def cancelled(self) -> set[str]:
        """Return the ids of requests to be stopped now, claimed or not."""
        now_ns = time.time_ns()
        return {marked_id(name) for name in self.spool.names(self._folder.cancel) if is_due(name, now_ns)}

    def clear_cancel(self, id: str) -> None:
        """Remove a request's cancel markers; `complete` does it too."""
        check_id(id)
        with contextlib.suppress(OSError, SpoolUnavailable):
            for name in self.spool.names(self._folder.cancel):
                if marked_id(name) == id:
                    self._fs.unlink(join(self._folder.cancel, name))

    def append_log(self, id: str, header: LogHeader | None = None) -> TokenLogWriter:
        """Open a request's token log for appending; `resumed` has its existing tokens."""
        return TokenLogWriter(join(self._folder.stream, check_id(id)), self._fs, header=header)

    def make_log_room(self) -> bool:
        """Release the ballast's share for token logs on a full disk; False where it is used up."""
        return self._results.give_up_half()

    def listen(self) -> Doorbell:
        """Listen at rank 0's doorbell."""
        return self.spool.listen(RANK0)

    def ring_doors(self) -> int:
        """Wake every front door for new tokens or results; return how many heard."""
        return ring_all(self._folder.bell, DOOR_PREFIX, self._fs)

    def sweep(self, now: float, retention_seconds: float, max_bytes: int = 0) -> Swept:
        """Remove results older than the retention, the oldest ones above `max_bytes`, and leftovers.

        Args:
            now: in Unix seconds.
            max_bytes: the limit for finished requests; 0: no limit.
        """
        assert self._is_recovered, "sweep before recover"
        self._results.restore_ballast()
        return sweep(self.spool, now, retention_seconds, max_bytes)

    def _waiting(self) -> Iterator[EntryName]:
        """Yield the queue in order. Take in prompt files, and quarantine other files."""
        ours: list[str] = []
        foreign: list[str] = []
        for text in self.spool.names(self._folder.incoming):
            (ours if is_entry_name(text) else foreign).append(text)
        self._prompt_files.take_in(foreign, self.file_defaults)
        for text in sorted(ours):
            name = EntryName.parse(text)
            if name is not None and name.waiting == text:
                yield name
            else:
                self._quarantine.take(self._folder.incoming / text, "it is not a request's file name")

    def _take(self, name: EntryName) -> Claim | None:
        """Claim one file; None where it is claimed, gone, answered, a duplicate or damaged."""
        path = join(self._folder.incoming, name.waiting)
        if name.id in self._claims:  # this name, or a second one, is removed after its end
            return None
        try:
            if self._is_answered(name.id):
                self._results.sync()
                self._retire(name)
                return None
            request = Request.from_json(self._fs.read(path, MAX_REQUEST_BYTES))
            if request.id != name.id:
                raise CorruptRequest("the id in the file differs from the id in its name")
            num_logged = self._num_logged(name.id)
            name = replace(name, num_tokens=num_logged) if num_logged != name.num_tokens else name
            # The second name may exist: an earlier removal may have failed.
            self._fs.link(path, join(self._folder.active, name.active))
        except FileNotFoundError:
            return None
        except (CorruptRequest, NotPlainFile) as error:
            self._fail_corrupt(name, Path(path), str(error))
            return None
        except OSError as error:
            raise SpoolUnavailable.from_os_error("claim a request", error) from error
        waited_s = max(0.0, (time.time_ns() - name.time_ns) / 1e9)
        self._claims[name.id] = Claim(request, name, waited_s)
        return self._claims[name.id]

    def _fail_corrupt(self, name: EntryName, path: Path, reason: str) -> None:
        """Answer first, then move the file away: after a crash in between, the answer is found."""
        if self._quarantine.is_immovable(path):
            return
        with system_trouble("write a result"):
            message = "the request's file was damaged in the spool"
            self._results.publish(make_failed(name.id, None, "corrupt", message))
        self._quarantine.take(path, reason)
        self.clear_cancel(name.id)

    def _is_answered(self, id: str) -> bool:
        """Whether a whole result exists. Quarantine a damaged one, so that the request runs again."""
        if not self._fs.exists(self._folder.result(id)):
            return False
        try:
            return self.spool.read_result(id) is not None
        except CorruptRequest as error:
            self._quarantine.take(Path(self._folder.result(id)), str(error))
            return False

    def _num_logged(self, id: str) -> int:
        """Count a request's logged tokens; 0 where its log cannot be read, so that nothing is cleared."""
        path = join(self._folder.stream, id)
        try:
            return len(read_log(path, self._fs).records) if self._fs.exists(path) else 0
        except (OSError, SpoolUnavailable):
            return 0

    def _requeue(self, moves: list[tuple[EntryName, EntryName]]) -> None:
        """Requeue claimed requests under new names; sync these before the old names are removed."""
        moves = [(name, back) for name, back in moves if self._has_waiting_name(name, back)]
        if moves and self.spool.is_synced:
            self._fs.sync_folder(self._folder.incoming)
        for name, back in moves:
            if name.waiting != back.waiting:
                self._fs.unlink(self._folder.incoming / name.waiting)
            self._fs.unlink(join(self._folder.active, name.active))
        if moves and self.spool.is_synced:
            with contextlib.suppress(OSError):  # at worst a power cut makes one crash count twice
                self._fs.sync_folder(self._folder.active)

    def _has_waiting_name(self, name: EntryName, back: EntryName) -> bool:
        """Link a claimed request into incoming/; False where somebody deleted the file in active/."""
        try:
            # The name may exist: the request kept it, or an owner died here before.
            self._fs.link(self._folder.active / name.active, self._folder.incoming / back.waiting)
        except FileNotFoundError:
            _log.warning("somebody deleted the active file of request %s; its old name waits", name.id)
            return False
        return True

    def _remove_claim(self, name: EntryName) -> None:
        """Remove an answered request from the queue, now or at the next recovery."""
        try:
            self._retire(name)
            self._fs.unlink(join(self._folder.active, name.active))
        except OSError as error:
            _log.warning("cannot remove the claim of request %s: %s", name.id, error)
        self.clear_cancel(name.id)

    def _retire(self, name: EntryName) -> None:
        """Move an answered request from incoming/ to asked/, for a replay.

        A power cut may undo the move; the next owner finds the request answered and repeats it.
        """
        path = join(self._folder.incoming, name.waiting)
        with contextlib.suppress(OSError):  # gone, or no room for a name: nothing is kept
            self._fs.rename(path, self._folder.request(name.id))
        self._fs.unlink(path)  # a rename to a second name of the same file leaves both

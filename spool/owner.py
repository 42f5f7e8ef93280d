"""SpoolOwner: the spool as rank 0 sees it, the one process that holds its lock. Claim, complete, recover,
sweep.

    acquire ─ recover ─┬─ claim:     a second name, in active/ (link); the one in incoming/ stays
                       ├─ complete:  tmp/ → done/ (link: never a second answer), then the file goes to asked/
                       └─ put_back:  the name in active/ is removed, the attempt not counted (drain)

The name in incoming/ is what was synced when the request was accepted, so a claim needs no sync: whatever a
power cut leaves of active/, the request is still there. Whatever dies in between, `recover` finds a request
either answered (its names are only cleaned up) or not (its name in incoming/ becomes that of the next
attempt: link, sync, unlink).

A request that may have brought its owner down is a suspect: it was active and made no new token. It should
run alone (`mark_solo`) until it has one; what dies while it is alone counts against it and against nobody
else, and a new token clears it. The counts are in the files' names (names.py), so they live as long as the
request. This room knows nothing of sequences, sampling or HTTP.
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
from spool.names import EntryName, check_id, is_due, is_entry_name, judge, marked_id
from spool.prompt_files import PromptFileDefaults, PromptFiles
from spool.quarantine import Quarantine
from spool.results import ResultWriter, make_failed
from spool.spool import Spool
from spool.sweep import Swept, sweep
from spool.token_log import LogHeader, TokenLogWriter, read_log

_log = logging.getLogger(__name__)


class SpoolOwner:
    """Holds the lock from `acquire` to `close`. Used by one thread."""

    def __init__(self, spool: Spool, hand_defaults: PromptFileDefaults | None = None) -> None:
        """
        Args:
            hand_defaults: what prompt files dropped by hand need not say; without it they are quarantined. It
                may be changed at any time.
        """
        self.spool = spool
        self._fs = spool.fs
        self._folder = spool.folder
        self._lock = SpoolLock(spool.folder, spool.fs, is_synced=spool.is_synced)
        self._is_recovered = False
        self._claims: dict[str, Claim] = {}
        self._results = ResultWriter(spool)
        self._quarantine = Quarantine(spool)
        self._by_hand = PromptFiles(spool, self._quarantine)
        self.hand_defaults = hand_defaults

    def acquire(self) -> None:
        """Take the lock. Raises SpoolLocked, which names the holder."""
        self._lock.acquire()
        self._results.restore_ballast()

    def close(self) -> None:
        """Give the lock back. What is claimed stays in active/ for the next owner's `recover`."""
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
        """Put back what an earlier owner left unanswered; the ids in order. Once, before the first claim."""
        assert self._lock.is_held, "recover without the lock"
        assert not self._claims, "recover with claims"
        unanswered: list[EntryName] = []
        with system_trouble("recover a request"):
            self._results.sync()  # an earlier owner may have died before it could
            for text in sorted(self.spool.names(self._folder.active)):
                name = EntryName.parse(text)
                if name is None or name.active != text:
                    self._quarantine.take(self._folder.active / text, "not a name of ours")
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
        """Begin a new life of the ring: a number larger than all before it."""
        return self._lock.next_epoch()

    def claim(self, max_claims: int, only: Collection[str] | None = None) -> list[Claim]:
        """Take up to `max_claims` requests, lowest priority number and oldest first.

        `only` limits it to these ids, wherever they stand in the queue (so that cancelled ones need not
        wait their turn). Damaged and foreign files are quarantined on the way. Raises SpoolUnavailable when
        nothing could be claimed because the disk or system said no: try again at the next poll.
        """
        assert self._is_recovered, "claim before recover"
        names = self._waiting() if max_claims > 0 else iter(())
        if only is not None:
            names = (name for name in names if name.id in only)
        claims: list[Claim] = []
        trouble: SpoolUnavailable | None = None
        for name in names:
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
        """Publish the one answer and give the claim up; False when there was an answer already (which
        stands).

        A claim whose file someone deleted is answered failed(lost). May be repeated after SpoolUnavailable.
        """
        if result.id != claim.request.id:
            raise ValueError("the result is of another request")
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
        """Return a claim unanswered, the attempt not counted: for a drain. Its token log stays."""
        id = claim.request.id
        name = self._claims.get(id, claim).name
        with system_trouble("put a request back"):
            self._requeue([(name, name.put_back(self._num_logged(id)))])
        self._claims.pop(id, None)

    def mark_solo(self, claim: Claim) -> Claim:
        """Note that a suspect runs alone from here on; the claim as it is now (the old one works as well).

        Until a new token is in its log, or it ended, nothing else may run: if the ring goes down meanwhile,
        this request alone is held to have done it. Raises SpoolUnavailable.
        """
        name = self._claims[claim.request.id].name
        solo = replace(name, is_solo=True, num_tokens=self._num_logged(name.id))
        with system_trouble("mark a request"), contextlib.suppress(FileNotFoundError):
            self._fs.rename(self._folder.active / name.active, self._folder.active / solo.active)
        self._claims[name.id] = replace(claim, name=solo)
        return self._claims[name.id]

    def cancelled(self) -> set[str]:
        """The ids that someone wants stopped by now, claimed or not."""
        now_ns = time.time_ns()
        return {marked_id(name) for name in self.spool.names(self._folder.cancel) if is_due(name, now_ns)}

    def clear_cancel(self, id: str) -> None:
        """Forget all wishes to stop a request; `complete` does it too."""
        check_id(id)
        with contextlib.suppress(OSError, SpoolUnavailable):
            for name in self.spool.names(self._folder.cancel):
                if marked_id(name) == id:
                    self._fs.unlink(join(self._folder.cancel, name))

    def append_log(self, id: str, header: LogHeader | None = None) -> TokenLogWriter:
        """Open a request's token log for appending; `resumed` has the tokens that are in it already."""
        return TokenLogWriter(join(self._folder.stream, check_id(id)), self._fs, header=header)

    def make_log_room(self) -> bool:
        """Give up what is set aside for token logs on a full disk; False where nothing is left of it."""
        return self._results.give_up_half()

    def listen(self) -> Doorbell:
        """Rank 0's own doorbell."""
        return self.spool.listen(RANK0)

    def ring_doors(self) -> int:
        """Wake every front door: there are new tokens or results. How many heard."""
        return ring_all(self._folder.bell, DOOR_PREFIX, self._fs)

    def sweep(self, now: float, retention_seconds: float, max_bytes: int = 0) -> Swept:
        """Remove what is older than the retention, leftovers, and the oldest results above `max_bytes`.

        Args:
            now: in Unix seconds.
            max_bytes: what finished requests may hold; 0: as much as they like.
        """
        assert self._is_recovered, "sweep before recover"
        self._results.restore_ballast()
        return sweep(self.spool, now, retention_seconds, max_bytes)

    def _waiting(self) -> Iterator[EntryName]:
        """The queue in order. What else lies there is taken in or moved out of the way."""
        ours: list[str] = []
        foreign: list[str] = []
        for text in self.spool.names(self._folder.incoming):
            (ours if is_entry_name(text) else foreign).append(text)
        self._by_hand.take_in(foreign, self.hand_defaults)
        for text in sorted(ours):
            name = EntryName.parse(text)
            if name is not None and name.waiting == text:
                yield name
            else:
                self._quarantine.take(self._folder.incoming / text, "not a name of ours")

    def _take(self, name: EntryName) -> Claim | None:
        """Claim one file; None when it is ours already, gone, answered, a duplicate or damaged."""
        path = join(self._folder.incoming, name.waiting)
        if name.id in self._claims:  # this is its name, or a second one, that goes after its end
            return None
        try:
            if self._is_answered(name.id):
                self._results.sync()
                self._retire(name)
                return None
            request = Request.from_json(self._fs.read(path, MAX_REQUEST_BYTES))
            if request.id != name.id:
                raise CorruptRequest("the id in the file is not the one in its name")
            num_logged = self._num_logged(name.id)
            name = replace(name, num_tokens=num_logged) if num_logged != name.num_tokens else name
            # The second name may be there: it could not be removed when this was answered.
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
        """Answer first, then move the file away: dying in between, the answer is found."""
        if self._quarantine.is_immovable(path):
            return
        with system_trouble("write a result"):
            message = "the request's file was damaged in the spool"
            self._results.publish(make_failed(name.id, None, "corrupt", message))
        self._quarantine.take(path, reason)
        self.clear_cancel(name.id)

    def _is_answered(self, id: str) -> bool:
        """Whether a whole result is there. A damaged one is put aside, and the request runs again."""
        if not self._fs.exists(self._folder.result(id)):
            return False
        try:
            return self.spool.read_result(id) is not None
        except CorruptRequest as error:
            self._quarantine.take(Path(self._folder.result(id)), str(error))
            return False

    def _num_logged(self, id: str) -> int:
        """How many tokens a request has; none where its log cannot be read, which clears nobody."""
        path = join(self._folder.stream, id)
        try:
            return len(read_log(path, self._fs).records) if self._fs.exists(path) else 0
        except (OSError, SpoolUnavailable):
            return 0

    def _requeue(self, moves: list[tuple[EntryName, EntryName]]) -> None:
        """Let claimed requests wait again under their new names, sure to stay before the old ones go."""
        moves = [(name, back) for name, back in moves if self._has_waiting_name(name, back)]
        if moves and self.spool.is_synced:
            self._fs.sync_folder(self._folder.incoming)
        for name, back in moves:
            if name.waiting != back.waiting:
                self._fs.unlink(self._folder.incoming / name.waiting)
            self._fs.unlink(join(self._folder.active, name.active))
        if moves and self.spool.is_synced:
            with contextlib.suppress(OSError):  # a power cut might make a crash count once more, no worse
                self._fs.sync_folder(self._folder.active)

    def _has_waiting_name(self, name: EntryName, back: EntryName) -> bool:
        """Make a claimed request's name in incoming/; False where someone deleted the file in active/."""
        try:
            # The name may be there: it never lost it, or an owner died here before.
            self._fs.link(self._folder.active / name.active, self._folder.incoming / back.waiting)
        except FileNotFoundError:
            _log.warning("the active file of request %s was deleted; it waits as it did", name.id)
            return False
        return True

    def _remove_claim(self, name: EntryName) -> None:
        """The answer is there: the request leaves the queue, now or at the next recovery."""
        try:
            self._retire(name)
            self._fs.unlink(join(self._folder.active, name.active))
        except OSError as error:
            _log.warning("the claim of %s could not be removed: %s", name.id, error)
        self.clear_cancel(name.id)

    def _retire(self, name: EntryName) -> None:
        """Take an answered request out of incoming/ and keep its file, to run it again.

        A power cut may undo the move; the next owner finds the request answered, and it is made again.
        """
        path = join(self._folder.incoming, name.waiting)
        with contextlib.suppress(OSError):  # gone, or no room for a name: nothing is kept then
            self._fs.rename(path, self._folder.request(name.id))
        self._fs.unlink(path)  # a rename to a second name of the same file leaves both

"""Any order of steps, deaths and failures at any call, and power cuts: each accepted id ends exactly once."""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from spool import (
    Claim,
    DiskLimits,
    IdempotencyConflict,
    PromptFileDefaults,
    Request,
    Result,
    SamplingParams,
    Spool,
    SpoolOwner,
    SpoolUnavailable,
    TokenRecord,
    Usage,
)
from spool.prompt_files import read_prompt
from tests.fakes.simulated_fs import Crash, Disk, SimulatedFileSystem

ROOT = Path("/var/spool")
DEFAULTS = PromptFileDefaults("m", 9)
PROMPT_FILES = ("a.json", "b.json")
PROMPT = b'{"prompt": "hello"}'
Trouble = tuple[int, int] | None  # (calls until then, errno, or 0 for death)
calls = st.integers(0, 40)
deaths: st.SearchStrategy[Trouble] = st.none() | st.tuples(calls, st.just(0))
troubles: st.SearchStrategy[Trouble] = deaths | st.tuples(calls, st.sampled_from([errno.EIO, errno.ENOSPC]))


def _prompt_id(name: str) -> str:
    return read_prompt(name, PROMPT, DEFAULTS).id


def make_result(id: str, text: str) -> Result:
    return Result(id, "m", text, (), "stop", Usage(), {}, None, 0.0)


class PowerMachine(RuleBasedStateMachine):
    """A model of what was accepted, shown and answered, beside a spool on a simulated disk."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = Disk()
        self.numbers = itertools.count()
        self.accepted: set[str] = set()
        self.doubtful: set[str] = set()  # the submitter died, or was refused: may run, need not
        self.keys: dict[str, str] = {}  # the id that a key was answered with
        self.key_of: dict[str, str] = {}
        self.ran: dict[str, str] = {}  # the id that ran under a key
        self.bodies: dict[str, set[str]] = {}  # what was tried under a key
        self.tried: dict[str, list[Result]] = {}
        self.finished: dict[str, Result] = {}
        self.forgotten: set[str] = set()  # swept after their end
        self.logged: dict[str, list[int]] = {}
        self.shown: dict[str, list[int]] = {}
        self.claims: dict[str, Claim] = {}
        self.solo: set[str] = set()
        self.num_solo_crashes: dict[str, int] = {}  # at most
        self._start_door()
        self._start_owner()

    def _open(self, fs: SimulatedFileSystem) -> Spool:
        return Spool.open(ROOT, fs=fs, disk=DiskLimits(ballast_bytes=9))

    def _start_door(self) -> None:
        self.door_fs = self.disk.start_process()
        self.door = self._open(self.door_fs)

    def _start_owner(self) -> None:
        self._note_death()
        self.owner_fs = self.disk.start_process()
        self.owner = SpoolOwner(self._open(self.owner_fs), DEFAULTS)
        self.owner.acquire()
        self.owner.recover()
        for id in self.accepted | self.doubtful:  # what it found is synced now
            result = self.door.read_result(id)
            if result is not None:
                assert result in self.tried[id]
                self.finished[id] = result

    def _note_death(self) -> None:
        self.claims.clear()
        for id in self.solo:
            self.num_solo_crashes[id] = self.num_solo_crashes.get(id, 0) + 1
        self.solo.clear()

    def _try(self, fs: SimulatedFileSystem, trouble: Trouble, step: Callable[[], Any]) -> None:
        """Do a step of a process that dies or fails at a call. The heir of a dead one is started."""
        if trouble is not None:
            num_calls, number = trouble
            fs.num_calls_left = num_calls if number == 0 else None
            fs.fail_at = (num_calls, number) if number else None
        try:
            step()
        except Crash:
            if fs is self.door_fs:
                self._start_door()
            else:
                self._start_owner()
        except SpoolUnavailable:
            assert trouble is not None
        fs.num_calls_left = fs.fail_at = None

    @rule(key=st.sampled_from(["", "k", "l"]), text=st.sampled_from("xy"), trouble=troubles)
    def submit(self, key: str, text: str, trouble: Trouble) -> None:
        id = f"{next(self.numbers):032x}"
        self.doubtful.add(id)
        self.key_of[id] = key
        self.bodies.setdefault(key, set()).add(text)
        request = Request(id, SamplingParams(9), text, None, None, "m")
        self._try(self.door_fs, trouble, lambda: self._submit(request, key))

    def _submit(self, request: Request, key: str) -> None:
        try:
            id = self.door.submit(request, key or None, body_hash=request.text or "")
        except IdempotencyConflict:
            assert key
            assert len(self.bodies[key]) > 1
            return
        if key:
            assert id == self.keys.setdefault(key, id) or self.keys[key] in self.forgotten
            self.keys[key] = id
        if id in self.forgotten:
            if self.door.state(id) == "done":  # the sweep died before it removed the result
                return
            self._forget_end(id)  # swept, but its key was still there: it runs again
        self.accepted.add(id)

    def _forget_end(self, id: str) -> None:
        self.forgotten.discard(id)
        self.finished.pop(id, None)
        self.shown.pop(id, None)

    @rule(name=st.sampled_from(PROMPT_FILES), is_synced=st.booleans())
    def drop_prompt_file(self, name: str, is_synced: bool) -> None:
        incoming = self.door.folder.incoming
        id = _prompt_id(name)
        if self.door_fs.exists(incoming / name) or (id in self.finished and id not in self.forgotten):
            return
        if id in self.forgotten:
            self._forget_end(id)
            self.accepted.discard(id)
        self.doubtful.add(id)
        self.door_fs.write_new(incoming / name, PROMPT, is_synced=True)
        self.disk.empty_cache()  # only its name may be lost: a torn file waits until its writer had time
        if is_synced:
            self.door_fs.sync_folder(incoming)
            self.accepted.add(id)

    def _dropped(self) -> set[str]:
        """The ids of prompt files that were not taken in yet."""
        names = self.disk.find(self.door.folder.incoming).names
        return {_prompt_id(name) for name in names if name in PROMPT_FILES}

    @rule(max_claims=st.integers(0, 3), trouble=troubles)
    def claim(self, max_claims: int, trouble: Trouble) -> None:
        self._try(self.owner_fs, trouble, lambda: self._claim(max_claims))

    def _claim(self, max_claims: int) -> None:
        for claim in self.owner.claim(max_claims):
            id = claim.request.id
            assert id in self.accepted | self.doubtful
            assert id not in self.claims
            assert id not in self.finished
            assert id not in self.forgotten
            assert claim.num_solo_crashes <= self.num_solo_crashes.get(id, 0)
            key = self.key_of.get(id)
            if key:
                assert self.ran.get(key, id) == id or self.ran[key] in self.forgotten
                self.ran[key] = id
            self.claims[id] = claim

    def _pick(self, data: st.DataObject) -> Claim | None:
        return self.claims[data.draw(st.sampled_from(sorted(self.claims)))] if self.claims else None

    @rule(data=st.data(), token_ids=st.lists(st.integers(0, 9), min_size=1, max_size=3), death=deaths)
    def append(self, data: st.DataObject, token_ids: list[int], death: Trouble) -> None:
        claim = self._pick(data)
        if claim is not None:
            id = claim.request.id
            self._try(self.owner_fs, death, lambda: self._append(id, token_ids))

    def _append(self, id: str, token_ids: list[int]) -> None:
        with self.owner.append_log(id) as log:
            resumed = [record.token_id for record in log.resumed]
            assert resumed[: len(self.shown.get(id, []))] == self.shown.get(id, [])
            assert resumed == self.logged.get(id, [])[: len(resumed)]
            logged = self.logged[id] = [*resumed, *token_ids]
            log.append([TokenRecord(at, logged[at], "") for at in range(len(resumed), len(logged))])

    @rule(data=st.data(), trouble=troubles)
    def complete(self, data: st.DataObject, trouble: Trouble) -> None:
        claim = self._pick(data)
        if claim is None:
            return
        id = claim.request.id
        result = make_result(id, str(next(self.numbers)))
        self.tried.setdefault(id, []).append(result)

        def step() -> None:
            self.owner.complete(claim, result)
            del self.claims[id]
            self.solo.discard(id)
            found = self.door.read_result(id)
            assert found is not None
            assert found in self.tried[id]
            self.finished[id] = found

        self._try(self.owner_fs, trouble, step)

    @rule(data=st.data(), trouble=troubles)
    def put_back(self, data: st.DataObject, trouble: Trouble) -> None:
        claim = self._pick(data)
        if claim is None:
            return

        def step() -> None:
            self.owner.put_back(claim)
            self.claims.pop(claim.request.id)
            self.solo.discard(claim.request.id)

        self._try(self.owner_fs, trouble, step)

    @rule(data=st.data(), trouble=troubles)
    def mark_solo(self, data: st.DataObject, trouble: Trouble) -> None:
        claim = self._pick(data)
        if claim is not None:
            self.solo.add(claim.request.id)
            self._try(self.owner_fs, trouble, lambda: self.owner.mark_solo(claim))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ids = sorted(self.accepted)
        if ids:
            self.door.cancel(data.draw(st.sampled_from(ids)))

    @rule()
    def show(self) -> None:
        """A reader that starts over sees at least what it saw before."""
        for id in self.accepted - self.forgotten:
            seen = [record.token_id for record in self.door.open_log(id).read_new()]
            shown = self.shown.get(id, [])
            assert seen[: len(shown)] == shown
            self.shown[id] = seen

    @rule(trouble=troubles)
    def sweep_all(self, trouble: Trouble) -> None:
        again = self._dropped() & self.finished.keys()  # runs again, if the new file stays
        self.accepted -= again
        self.forgotten |= self.finished.keys() - again
        self.finished.clear()
        self._try(self.owner_fs, trouble, lambda: self.owner.sweep(time.time() + 1e9, 1e3))

    @rule(dies_after=st.none() | calls)
    def kill_owner(self, dies_after: int | None) -> None:
        """Its heir may die while it recovers."""
        self.owner_fs.die()
        heir = self.disk.start_process()
        heir.num_calls_left = dies_after
        try:
            owner = SpoolOwner(self._open(heir))
            owner.acquire()
            owner.recover()
        except Crash:
            pass
        heir.die()
        self._start_owner()

    @rule(data=st.data())
    def cut_power(self, data: st.DataObject) -> None:
        self.disk.cut_power(lambda number: data.draw(st.integers(0, number - 1)))
        self.shown.clear()
        self.solo.clear()  # the power cut counts against no request
        self._start_door()
        self._start_owner()

    @invariant()
    def what_ended_stays_as_it_ended(self) -> None:
        for id, result in self.finished.items():
            assert self.door.read_result(id) == result

    @invariant()
    def what_was_accepted_is_somewhere(self) -> None:
        for id in self.accepted - self.forgotten - self._dropped():
            state = self.door.state(id)
            assert state is not None
            assert id not in self.finished or state == "done"
            assert id not in self.claims or state in ("active", "done")

    def teardown(self) -> None:
        self.disk.cut_power(lambda number: 0)
        self._start_door()
        self._start_owner()
        for _ in range(4):
            self._claim(10**6)
            for id, claim in sorted(self.claims.items()):
                self.tried.setdefault(id, []).append(make_result(id, "end"))
                assert self.owner.complete(claim, self.tried[id][-1])
                self.finished[id] = self.tried[id][-1]
            self.claims.clear()
        assert self.accepted - self.forgotten <= self.finished.keys()
        self.what_ended_stays_as_it_ended()
        assert self.door.depth().num_waiting == self.door.depth().num_active == 0
        assert self.door.names(self.door.folder.incoming) == []


TestPowerMachine = pytest.mark.usefixtures("no_settling")(PowerMachine.TestCase)
TestPowerMachine.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second scan accepts a prompt file."""
    monkeypatch.setattr("spool.prompt_files.SETTLE_SECONDS", 0.0)

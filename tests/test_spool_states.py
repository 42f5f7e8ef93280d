"""Each accepted request ends exactly once: any order of steps and crashes, and several real processes."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from spool import (
    Claim,
    Durability,
    FileSystem,
    LogHeader,
    Request,
    Result,
    SamplingParams,
    Spool,
    SpoolOwner,
    TokenLogReader,
    TokenRecord,
    Usage,
)
from spool.names import EntryName
from tests.spool_fakes import make_request

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_SECONDS = 60.0


class Crash(BaseException):
    """The process dies here."""


class Owner(SpoolOwner):
    """Dies between the result and the claim's removal when told to."""

    is_dying = False

    def _remove_claim(self, name: object) -> None:
        if self.is_dying:
            raise Crash
        super()._remove_claim(name)  # type: ignore[arg-type]


def make_result(id: str, tokens: list[int]) -> Result:
    return Result(id, "m", "", tuple(tokens), "stop", Usage(), {}, None, 0.0)


class SpoolMachine(RuleBasedStateMachine):
    """A model of what was accepted, logged and answered, beside a real folder."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.accepted: set[str] = set()
        self.logged: dict[str, list[int]] = {}
        self.answers: dict[str, list[int]] = {}
        self.claims: dict[str, Claim] = {}
        self.readers: dict[str, tuple[TokenLogReader, list[int]]] = {}
        self._open()

    def _open(self) -> None:
        self.spool = Spool.open(self.root, durability="process")
        self.owner = Owner(self.spool)
        self.owner.acquire()
        self.owner.recover()
        self.claims.clear()

    def teardown(self) -> None:
        self._crash()
        for claim in self.owner.claim(10**6):
            self.owner.complete(claim, make_result(claim.request.id, []))
        assert {id for id in self.accepted if self.spool.read_result(id) is None} == set()
        assert len(os.listdir(self.spool.folder.done)) == len(self.accepted)
        assert not os.listdir(self.spool.folder.incoming)
        assert not os.listdir(self.spool.folder.active)
        self.owner.close()
        shutil.rmtree(self.root)

    def _crash(self) -> None:
        self.owner.close()
        self._open()

    def _queue(self) -> list[str]:
        """The ids that wait, in the queue's order."""
        names = map(EntryName.parse, sorted(os.listdir(self.spool.folder.incoming)))
        return [name.id for name in names if name and name.id not in self.claims.keys() | self.answers]

    @rule(priority=st.integers(0, 9))
    def submit(self, priority: int) -> None:
        request = Request(uuid.uuid4().hex, SamplingParams(9), "x", None, None, "m", priority=priority)
        self.spool.submit(request)
        self.accepted.add(request.id)
        self.readers[request.id] = (self.spool.open_log(request.id), [])

    @rule(max_claims=st.integers(0, 3))
    def claim(self, max_claims: int) -> None:
        claims = self.owner.claim(max_claims)
        assert [claim.request.id for claim in claims] == self._queue()[:max_claims]
        for claim in claims:
            assert claim.request.id in self.accepted
            self.claims[claim.request.id] = claim

    @rule(data=st.data(), token_ids=st.lists(st.integers(0, 9), min_size=1, max_size=3))
    def append(self, data: st.DataObject, token_ids: list[int]) -> None:
        if not self.claims:
            return
        id = data.draw(st.sampled_from(sorted(self.claims)))
        logged = self.logged.setdefault(id, [])
        with self.owner.append_log(id) as log:
            assert [record.token_id for record in log.resumed] == logged
            log.append([TokenRecord(len(logged) + at, token, "") for at, token in enumerate(token_ids)])
        logged.extend(token_ids)

    @rule(data=st.data(), is_dying=st.booleans())
    def complete(self, data: st.DataObject, is_dying: bool) -> None:
        if not self.claims:
            return
        id = data.draw(st.sampled_from(sorted(self.claims)))
        self.owner.is_dying = is_dying
        with contextlib.suppress(Crash):
            assert self.owner.complete(self.claims[id], make_result(id, self.logged.get(id, [])))
            del self.claims[id]
        self.answers[id] = list(self.logged.get(id, []))
        if is_dying:
            self._crash()

    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        if self.claims:
            self.owner.put_back(self.claims.pop(data.draw(st.sampled_from(sorted(self.claims)))))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.accepted:
            id = data.draw(st.sampled_from(sorted(self.accepted)))
            assert self.spool.cancel(id) == (id not in self.answers)

    @rule()
    def crash(self) -> None:
        self._crash()

    @rule()
    def sweep(self) -> None:
        self.owner.sweep(time.time(), 3600.0)

    @invariant()
    def everything_accepted_is_in_one_place(self) -> None:
        for id in self.accepted:
            expected = "done" if id in self.answers else "active" if id in self.claims else "waiting"
            assert self.spool.state(id) == expected

    @invariant()
    def shown_tokens_are_never_contradicted(self) -> None:
        for id, (reader, seen) in self.readers.items():
            seen.extend(record.token_id for record in reader.read_new())
            assert seen == self.logged.get(id, [])


class MortalFileSystem(FileSystem):
    """The real one until the given call: that one and all after it never happen."""

    def __init__(self, last_call: int) -> None:
        self.num_calls = 0
        self.last_call = last_call

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self.num_calls += 1
            if self.num_calls > self.last_call:
                raise Crash
            return found(*arguments, **options)

        return call


def _live(root: Path, durability: Durability, fs: MortalFileSystem, accepted: list[str]) -> None:
    """One life with two requests; dies wherever the file system says."""
    spool = Spool.open(root, durability=durability, fs=fs)
    owner = SpoolOwner(spool)
    try:
        owner.acquire()
        owner.recover()
        for _ in range(2):
            request = make_request()
            spool.submit(request)
            accepted.append(request.id)
        spool.cancel(accepted[-1])
        for claim in owner.claim(9):
            log = owner.append_log(claim.request.id, LogHeader("m"))
            log.append([TokenRecord(log.next_index, claim.attempt, "t")])
            log.close()
            owner.complete(claim, make_result(claim.request.id, [claim.attempt]))
        owner.sweep(time.time(), 3600.0)
    finally:
        if owner._lock_fd is not None:
            os.close(owner._lock_fd)


@pytest.mark.parametrize("durability", ["power", "process"])
def test_death_at_any_system_call_loses_and_doubles_nothing(tmp_path: Path, durability: Durability) -> None:
    """Die after each single call in turn; the next life answers everything accepted, once."""
    num_calls, is_dead = 0, True
    while is_dead:
        root, accepted = tmp_path / str(num_calls), list[str]()
        try:
            _live(root, durability, MortalFileSystem(num_calls), accepted)
            is_dead = False
        except Crash:
            num_calls += 1
        _live(root, durability, MortalFileSystem(10**9), accepted)
        spool = Spool.open(root)
        assert all(spool.read_result(id) is not None for id in accepted)
        assert not os.listdir(spool.folder.incoming)
        assert not os.listdir(spool.folder.active)
    assert num_calls > 50


TestSpoolMachine = SpoolMachine.TestCase
TestSpoolMachine.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

SUBMITTER = """
import sys, uuid
from pathlib import Path
from spool import Request, SamplingParams, Spool
spool = Spool.open(Path(sys.argv[1]), durability="process")
for _ in range(int(sys.argv[2])):
    request = Request(uuid.uuid4().hex, SamplingParams(1), "x", None, None, "m")
    spool.submit(request)
    print(request.id, flush=True)
"""

OWNER = """
import select, sys
from pathlib import Path
from spool import Result, Spool, SpoolOwner, TokenRecord, Usage
with SpoolOwner(Spool.open(Path(sys.argv[1]), durability="process")) as owner, owner.listen() as bell:
    owner.recover()
    print("ready", flush=True)
    while True:
        select.select([bell], [], [], 0.1)
        bell.drain()
        while claims := owner.claim(4):
            for claim in claims:
                id = claim.request.id
                with owner.append_log(id) as log:
                    log.append([TokenRecord(log.next_index, claim.attempt, "t")])
                assert owner.complete(claim, Result(id, "m", "t", (1,), "stop", Usage(), {}, None, 0.0))
            owner.ring_doors()
"""


def _start(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _start_owner(root: Path) -> subprocess.Popen[str]:
    owner = _start(OWNER, str(root))
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    return owner


def _wait_for_results(spool: Spool, ids: set[str]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    with spool.listen("door-0-test") as bell:
        while len(os.listdir(spool.folder.done)) < len(ids):
            assert time.monotonic() < deadline, "not all requests were answered in time"
            select.select([bell], [], [], 0.1)
            bell.drain()


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [0, 6])
def test_many_submitters_and_one_owner_answer_everything_once(tmp_path: Path, num_kills: int) -> None:
    """Three processes submit 100 each while the owner is killed outright again and again: 300 answers."""
    spool = Spool.open(tmp_path / "spool", durability="process")
    owner = _start_owner(spool.folder.root)
    submitters = [_start(SUBMITTER, str(spool.folder.root), "100") for _ in range(3)]
    for _ in range(num_kills):
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
        owner = _start_owner(spool.folder.root)
    ids = {line for submitter in submitters for line in submitter.communicate(timeout=60)[0].split()}
    try:
        _wait_for_results(spool, ids)
    finally:
        owner.kill()
        owner.communicate()
    assert len(ids) == 300
    assert {name.removesuffix(".json") for name in os.listdir(spool.folder.done)} == ids
    assert all(spool.read_result(id) is not None for id in ids)

"""Several real processes on one spool: each accepted request ends exactly once, whoever is killed.

Any order of steps, deaths and power cuts is test_power's; a kill at each system call is in tests/faults.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spool import Spool

ROOT = Path(__file__).resolve().parent.parent.parent
DEADLINE_SECONDS = 60.0
NUM_KILLS = 4


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
def test_many_submitters_and_one_owner_answer_everything_once(tmp_path: Path) -> None:
    """Three processes submit 100 each while the owner is killed outright again and again: 300 answers."""
    spool = Spool.open(tmp_path / "spool", durability="process")
    owner = _start_owner(spool.folder.root)
    submitters = [_start(SUBMITTER, str(spool.folder.root), "100") for _ in range(3)]
    for _ in range(NUM_KILLS):
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

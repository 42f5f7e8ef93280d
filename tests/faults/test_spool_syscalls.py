"""Real processes killed, or failed by the system, at each system call of one request's life.

strace counts the calls between two marks in an undisturbed run, and then each of them is disturbed once in a
fresh spool. What is left is recovered here: each accepted request has one answer, a refused one has none.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from spool import DiskLimits, Request, Result, SamplingParams, Spool, SpoolOwner, TokenRecord, Usage
from spool.token_log import read_log

ROOT = Path(__file__).resolve().parent.parent.parent
LIMITS = DiskLimits(min_free_bytes=0, ballast_bytes=4096)
FIRST_ID, RETRY_ID = "1" * 32, "2" * 32
TOKENS = [TokenRecord(0, 7, "a"), TokenRecord(1, 8, "b")]
CHANGING = frozenset({"link", "linkat", "rename", "renameat", "renameat2", "unlink", "unlinkat"})
TRACED = "%file,%desc,socket,sendto,flock,getdents64,ftruncate,pread64,pwrite64"
ERRORS = {  # which calls say so
    "EIO": frozenset[str](),  # all of them
    "ENOSPC": CHANGING | {"openat", "write", "pwrite64", "fsync", "mkdir"},
    "EMFILE": frozenset({"openat", "socket"}),
}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(msgspec.__file__).parent.parent)}  # what -S leaves out
LINE = re.compile(r"(?:\d+ +)?(\w+)\((.*)")

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

LIFE = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from spool import DiskLimits, Request, Result, SamplingParams, Spool, SpoolError, SpoolOwner
from spool import TokenRecord, Usage

def mark():
    try:
        os.unlink("/mark")
    except OSError:
        pass

spool = Spool.open(Path(sys.argv[2]), disk=DiskLimits(min_free_bytes=0, ballast_bytes=4096))
outcome = ""
mark()
try:
    spool.submit(Request("{FIRST_ID}", SamplingParams(2), "x", None, None, "m"), sys.argv[3] or None)
    outcome = "accepted"
    with SpoolOwner(spool) as owner:
        owner.recover()
        (claim,) = owner.claim(1)
        owner.mark_solo(claim)
        with owner.append_log(claim.request.id) as log:
            log.append([TokenRecord(0, 7, "a")])
            log.append([TokenRecord(1, 8, "b")])
        result = Result(claim.request.id, "m", "child", (7, 8), "stop", Usage(), {{}}, None, 0.0)
        owner.complete(claim, result)
        outcome = "completed"
except SpoolError:
    outcome = outcome or "refused"
mark()
print(outcome, flush=True)
"""


@dataclass(frozen=True)
class Call:
    """One system call of the life under test: its name, and how many of that name came before it."""

    name: str
    number: int


def _trace(root: Path, key: str, traced: str, inject: str = "") -> tuple[list[str], list[str], str]:
    """Run a process; the names of its calls before and after the first mark, and what it printed."""
    log = root.with_suffix(".strace")
    command = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(log), "-e", f"trace={traced}"]
    command += ["-e", f"inject={inject}"] if inject else []
    command += [sys.executable, "-S", "-B", "-c", LIFE, str(ROOT), str(root), key]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT)
    assert "Traceback" not in done.stderr, f"{inject}: {done.stderr}"
    lines = [match for match in map(LINE.match, log.read_text().splitlines()) if match]
    marks = [at for at, match in enumerate(lines) if match[2].startswith('"/mark"')]
    names = [match[1] for match in lines]
    if not marks:
        return names, [], done.stdout
    return names[: marks[0] + 1], names[marks[0] + 1 : [*marks, len(names)][1]], done.stdout


def _make_spool(root: Path) -> Spool:
    return Spool.open(root, disk=LIMITS)


def _calls(base: Path, key: str, traced: str) -> list[Call]:
    """The calls between the marks of a life that nothing disturbs."""
    for attempt in range(2):  # the first one warms what is cached
        spool = _make_spool(base / f"count{attempt:03}")
        before, names, output = _trace(spool.folder.root, key, traced)
        assert output == "completed\n"
    numbers, calls = Counter(before), list[Call]()
    for name in names:
        numbers[name] += 1
        calls.append(Call(name, numbers[name]))
    return calls


def _disturb(base: Path, key: str, fault: str, *, is_full: bool) -> Iterator[tuple[Call, Spool, str]]:
    """One life for each call in turn (or each that changes a folder), in a fresh spool.

    Its path is as long as those that the calls were counted in: too long a path has its doorbells elsewhere.
    """
    wanted = frozenset[str]() if fault.startswith("signal") else ERRORS[fault.removeprefix("error=")]
    traced = TRACED if is_full else ",".join(sorted(CHANGING))
    for at, call in enumerate(_calls(base, key, traced)):
        if wanted and call.name not in wanted:
            continue
        spool = _make_spool(base / f"calls{at:03}")
        inject = f"{call.name}:{fault}:when={call.number}"
        _, names, output = _trace(spool.folder.root, key, traced, inject)
        assert names[at : at + 1] in ([call.name], []), f"{call} was not the one disturbed"
        assert len(names) >= at, f"{call} was not the one disturbed"
        yield call, spool, output.strip()
        shutil.rmtree(spool.folder.root)


def _answer_all(spool: Spool) -> dict[str, str]:
    """The next life answers what is left; all results by id."""
    with SpoolOwner(_make_spool(spool.folder.root)) as owner:
        owner.recover()
        for claim in owner.claim(9):
            with owner.append_log(claim.request.id) as log:
                log.append(TOKENS[log.next_index :])
            result = Result(claim.request.id, "m", "next life", (7, 8), "stop", Usage(), {}, None, 0.0)
            assert owner.complete(claim, result)
    assert spool.depth().num_waiting == spool.depth().num_active == 0
    assert os.listdir(spool.folder.incoming) == os.listdir(spool.folder.bad) == []
    results = map(spool.read_result, (name.removesuffix(".json") for name in os.listdir(spool.folder.done)))
    return {result.id: result.text for result in results if result is not None}


def _check(base: Path, key: str, fault: str, *, is_full: bool) -> int:
    """What a disturbed life leaves; with a key a retry finds the one request."""
    num_runs = 0
    for call, spool, outcome in _disturb(base, key, fault, is_full=is_full):
        num_runs += 1
        logged = read_log(spool.folder.stream / FIRST_ID).records
        assert logged == TOKENS[: len(logged)], call
        is_done = spool.state(FIRST_ID) == "done"
        assert is_done or outcome != "completed", call
        ids = [FIRST_ID]
        if key:
            ids = [spool.submit(Request(RETRY_ID, SamplingParams(2), "x", None, None, "m"), key)]
        elif outcome == "refused" or (not outcome and spool.state(FIRST_ID) is None):
            ids = []
        assert ids == [FIRST_ID] or outcome not in ("accepted", "completed"), call
        assert _answer_all(spool) == dict.fromkeys(ids, "child" if is_done else "next life"), call
        assert not ids or read_log(spool.folder.stream / ids[0]).records == TOKENS, call
    return num_runs


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "key"), [("signal=KILL", "key"), ("error=ENOSPC", "")])
def test_a_process_disturbed_where_folders_change(tmp_path: Path, fault: str, key: str) -> None:
    """At each link, rename and unlink: one answer or none, no token contradicted; refused or completed."""
    assert _check(tmp_path, key, fault, is_full=False) >= 10


@pytest.mark.long
@pytest.mark.parametrize("key", ["", "key"], ids=["plain", "with key"])
@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO", "error=ENOSPC", "error=EMFILE"])
def test_a_process_disturbed_at_every_call(tmp_path: Path, fault: str, key: str) -> None:
    """Accepted and answered once, or refused and never run; with a key a retry settles it."""
    assert _check(tmp_path, key, fault, is_full=True) >= 10

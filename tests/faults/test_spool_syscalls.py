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

from spool import DiskLimits, Request, Result, SamplingParams, Spool, SpoolOwner, TokenRecord, Usage, replay

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

COMMON = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from spool import DiskLimits, Request, Result, SamplingParams, Spool, SpoolError, SpoolOwner
from spool import TokenRecord, Usage

def mark(name):
    try:
        os.stat("/mark-" + name)
    except FileNotFoundError:
        pass

spool = Spool.open(Path(sys.argv[2]), disk=DiskLimits(min_free_bytes=0, ballast_bytes=4096))
key = sys.argv[3] or None
outcome = ""
mark("begin")
try:
"""
END = """
except SpoolError as error:
    outcome = "refused " + error.code
mark("end")
print(outcome, flush=True)
"""
SUBMITTER = f"""{COMMON}
    request = Request("{FIRST_ID}", SamplingParams(2), "x", None, None, "m")
    outcome = "accepted " + spool.submit(request, key)
{END}"""
OWNER = f"""{COMMON}
    with SpoolOwner(spool) as owner:
        owner.recover()
        (claim,) = owner.claim(1)
        owner.mark_solo(claim)
        with owner.append_log(claim.request.id) as log:
            log.append([TokenRecord(0, 7, "a")])
            log.append([TokenRecord(1, 8, "b")])
        result = Result(claim.request.id, "m", "child", (7, 8), "stop", Usage(), {{}}, None, 0.0)
        outcome = f"completed {{owner.complete(claim, result)}}"
{END}"""


@dataclass(frozen=True)
class Call:
    """One system call of the life under test: its name, and how many of that name came before it."""

    name: str
    number: int


def _trace(code: str, root: Path, key: str, inject: str = "") -> tuple[list[str], list[str], str]:
    """Run a process; the names of its calls before and after the first mark, and what it printed."""
    log = root.with_suffix(".strace")
    command = ["strace", "-qq", "-o", str(log), "-e", f"trace={TRACED}"]
    command += ["-e", f"inject={inject}"] if inject else []
    command += [sys.executable, "-S", "-B", "-c", code, str(ROOT), str(root), key]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT)
    assert "Traceback" not in done.stderr, f"{inject}: {done.stderr}"
    lines = [match for match in map(LINE.match, log.read_text().splitlines()) if match]
    marks = [at for at, match in enumerate(lines) if '"/mark-' in match[2]]
    names = [match[1] for match in lines]
    if not marks:
        return names, [], done.stdout
    return names[: marks[0] + 1], names[marks[0] + 1 : [*marks, len(names)][1]], done.stdout


def _make_spool(root: Path) -> Spool:
    return Spool.open(root, disk=LIMITS)


def _request(id: str) -> Request:
    return Request(id, SamplingParams(2), "x", None, None, "m")


def _calls(code: str, root: Path, key: str) -> list[Call]:
    """The calls between the marks of a life that nothing disturbs."""
    for attempt in range(2):  # the first one warms what is cached
        spool = _make_spool(root / f"count{attempt:03}")
        if code == OWNER:
            spool.submit(_request(FIRST_ID))
        before, names, output = _trace(code, spool.folder.root, key)
        assert output.startswith(("accepted", "completed"))
    numbers, calls = Counter(before), list[Call]()
    for name in names:
        numbers[name] += 1
        calls.append(Call(name, numbers[name]))
    return calls


def _disturb(
    code: str, base: Path, key: str, fault: str, *, is_full: bool
) -> Iterator[tuple[Call, Spool, str]]:
    """One life for each call in turn (or each that changes a folder), in a fresh spool.

    Its path is as long as those that the calls were counted in: too long a path has its doorbells elsewhere.
    """
    wanted = frozenset[str]() if fault.startswith("signal") else ERRORS[fault.removeprefix("error=")]
    for at, call in enumerate(_calls(code, base, key)):
        if (wanted and call.name not in wanted) or not (is_full or call.name in CHANGING):
            continue
        spool = _make_spool(base / f"calls{at:03}")
        if code == OWNER:
            spool.submit(_request(FIRST_ID))
        _, names, output = _trace(code, spool.folder.root, key, f"{call.name}:{fault}:when={call.number}")
        assert names[at : at + 1] in ([call.name], []), f"{call} was not the one disturbed"
        assert len(names) >= at, f"{call} was not the one disturbed"
        yield call, spool, output
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


def _check_submitter(base: Path, key: str, fault: str, *, is_full: bool) -> int:
    num_runs = 0
    for call, spool, output in _disturb(SUBMITTER, base, key, fault, is_full=is_full):
        num_runs += 1
        is_refused = output.startswith("refused")
        if key:
            id = spool.submit(_request(RETRY_ID), key)
            assert list(_answer_all(spool)) == [id], call
            assert id == FIRST_ID or not output.startswith("accepted"), call
        else:
            ids = list(_answer_all(spool))
            assert ids in ([[FIRST_ID]] if output.startswith("accepted") else [[], [FIRST_ID]]), call
            assert not (is_refused and ids), f"{call}: refused, but it ran"
    return num_runs


def _check_owner(base: Path, fault: str, *, is_full: bool) -> int:
    num_runs = 0
    for call, spool, output in _disturb(OWNER, base, "", fault, is_full=is_full):
        num_runs += 1
        logged = replay(spool.folder.stream / FIRST_ID)
        assert logged == TOKENS[: len(logged)], call
        is_done = spool.state(FIRST_ID) == "done"
        results = _answer_all(spool)
        assert results == {FIRST_ID: "child" if is_done else "next life"}, call
        assert is_done or not output.startswith("completed"), call
        assert replay(spool.folder.stream / FIRST_ID) == TOKENS, call
    return num_runs


@pytest.mark.slow
@pytest.mark.parametrize("key", ["", "key"], ids=["plain", "with key"])
def test_submitter_killed_where_folders_change_leaves_all_or_nothing(tmp_path: Path, key: str) -> None:
    """Kill it before each link and unlink: with a key a retry finds the one request."""
    assert _check_submitter(tmp_path, key, "signal=KILL", is_full=False) >= 2


@pytest.mark.slow
def test_owner_killed_where_folders_change_leaves_one_answer(tmp_path: Path) -> None:
    """Kill it before each link, rename and unlink: one answer, no token contradicted."""
    assert _check_owner(tmp_path, "signal=KILL", is_full=False) >= 8


@pytest.mark.slow
def test_full_disk_where_folders_change_refuses_or_completes(tmp_path: Path) -> None:
    """ENOSPC at each link, rename and unlink of both."""
    assert _check_submitter(tmp_path / "submitter", "", "error=ENOSPC", is_full=False) >= 2
    assert _check_owner(tmp_path / "owner", "error=ENOSPC", is_full=False) >= 8


@pytest.mark.long
@pytest.mark.parametrize("key", ["", "key"], ids=["plain", "with key"])
@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO", "error=ENOSPC", "error=EMFILE"])
def test_submitter_disturbed_at_every_call(tmp_path: Path, fault: str, key: str) -> None:
    """Accepted and answered once, or refused and never run; with a key a retry settles it."""
    assert _check_submitter(tmp_path, key, fault, is_full=True) >= 2


@pytest.mark.long
@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO", "error=ENOSPC", "error=EMFILE"])
def test_owner_disturbed_at_every_call(tmp_path: Path, fault: str) -> None:
    """The request ends in one answer, its own or that of the next life, and no token is contradicted."""
    assert _check_owner(tmp_path, fault, is_full=True) >= 8

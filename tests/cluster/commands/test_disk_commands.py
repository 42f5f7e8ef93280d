"""What commands, and processes that start, say of a disk or of limits that let nothing run."""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

import api
import server
from cluster import disk
from cluster.commands.command_line import run_command
from cluster.errors import ClusterError
from cluster.log_files import LogMarks, ProcessLog
from cluster.supervisor import ring_epoch
from cluster.supervisor.epoch_plan import EpochPlan
from cluster.supervisor.service import Service, read_service_at
from config import REPOSITORY_ROOT, load_settings
from config.rotating_file import RotatingFile
from distributed import rank
from distributed.ring.watchdog import EXIT_DISK_REFUSED, Watchdog
from spool import Spool, SpoolUnavailable
from spool.admission import DiskLimits

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))


def make_service(disk_trouble: str | None, **ring: Any) -> Service:
    """A service whose supervisor lives and is ready."""
    lock = {"pid": os.getpid(), "epoch": 1, "state": "ready", "troubles": ["supervisor.json: full"]}
    holder = type("Holder", (), {"pid": os.getpid()})()
    return Service(lock, {"epoch": 1, "phase": "ready", **ring}, holder, disk_trouble)


def test_an_old_status_on_a_full_disk_is_the_disks_trouble() -> None:
    """Nobody is held to be dead for what the disk refuses; it is degraded, and up all the same."""
    service = make_service("no request is accepted: full", updated_unix=0)
    assert (service.state, service.exit_code, service.is_up) == ("degraded", 1, True)
    assert service.reason == "no request is accepted: full"
    assert service.troubles == ["supervisor: supervisor.json: full"]
    told = make_service("no request is accepted: full", updated_unix=0)
    told.supervisor["reason"] = "rank 1 was killed by SIGKILL"
    assert told.reason == "rank 1 was killed by SIGKILL"
    assert told.troubles[0] == "no request is accepted: full"
    silent = make_service(None, updated_unix=0)
    assert (silent.state, silent.is_up) == ("degraded", False)
    assert "rank 0 has not written its status" in str(silent.reason)


def test_status_asks_what_a_front_door_would_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same condition as at accept; nothing is said of a folder that is not there."""
    assert disk.find_disk_trouble(tmp_path / "missing") is None
    Spool.open(tmp_path / "spool", durability="process")
    assert read_service_at(tmp_path / "run").disk_trouble is None
    monkeypatch.setattr(disk, "DiskLimits", lambda: DiskLimits(min_free_bytes=1 << 60))
    said = read_service_at(tmp_path / "run").disk_trouble
    assert said is not None
    assert said.startswith("no request is accepted: the disk is nearly full: ")
    settings = load_settings({"STATE_DIR": str(tmp_path)}, root=tmp_path, environ={})
    with pytest.raises(ClusterError, match="make room there, or choose another folder with STATE_DIR"):
        disk.check_disk(settings)


def test_a_start_is_refused_where_nothing_can_be_written(tmp_path: Path) -> None:
    """The sentence names the folder, and what the system says."""
    (tmp_path / "state").write_text("not a folder")
    settings = load_settings({"STATE_DIR": str(tmp_path / "state")}, root=tmp_path, environ={})
    with pytest.raises(ClusterError, match=r"STATE_DIR cannot be used: .*/run: (Not a dir|File exists)"):
        disk.check_disk(settings)


LIMITS_PROGRAM = """
import os, resource, sys
from pathlib import Path
from cluster.errors import ClusterError
from cluster.commands.doctor.this_machine import check_limits
from cluster.commands.start import check_startable
from config import load_settings
settings = load_settings({}, root=Path("/nonexistent"), environ={})
check_startable(settings)  # imports all that it needs, while it may
for name, value in (word.split("=") for word in sys.argv[1:]):
    resource.setrlimit(getattr(resource, name), (int(value), int(value)))
if os.geteuid() == 0:
    os.setuid(65534)
try:
    check_startable(settings)
except ClusterError as error:
    print(error)
    assert [finding.level for finding in check_limits(settings)] == ["failed"] * (len(sys.argv) - 1)
"""


@pytest.mark.parametrize(
    ("limits", "sentences"),
    [
        ([], []),
        (["RLIMIT_NOFILE=128"], ["a rank needs 256 open files, this process may have 128"]),
        (["RLIMIT_NPROC=20"], ["a ring needs more than the 20 processes and threads of this user"]),
        (
            ["RLIMIT_NOFILE=128", f"RLIMIT_AS={1 << 29}"],
            ["a rank needs 256 open files", "more than the 512 MiB of address space that `ulimit -v` allows"],
        ),
    ],
)
def test_limits_that_let_no_rank_start_are_said_by_start_and_doctor(
    limits: list[str], sentences: list[str]
) -> None:
    """Before anything is started, with the limit, what it is, and what raises it."""
    if sys.platform == "darwin" and any("RLIMIT_AS" in limit for limit in limits):
        pytest.skip("macOS does not limit address space")
    command = [sys.executable, "-c", LIMITS_PROGRAM, *limits]
    done = subprocess.run(
        command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(sentences)
    for line, sentence in zip(lines, sentences, strict=True):
        assert sentence in line
        assert "limits.conf" in line or "ulimit -v unlimited" in line


@pytest.mark.parametrize(
    "error", [FULL, READ_ONLY, OSError(errno.EAGAIN, "no fork"), FileNotFoundError(2, "")]
)
def test_what_the_system_refuses_a_command_is_a_sentence(
    error: OSError, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback for a full disk; an error of the program keeps its own."""

    def fail(*_: object) -> NoReturn:
        raise error

    options = argparse.Namespace(command="start", run=fail)
    if error.errno == errno.ENOENT:
        with pytest.raises(FileNotFoundError):
            run_command(options)
        return
    assert run_command(options) == 1
    assert capsys.readouterr().err.startswith(f"start: {os.strerror(error.errno or 0)}; ")


def test_only_lines_of_this_start_are_shown(tmp_path: Path) -> None:
    """What is behind the mark; all of a log that is new or was rotated."""
    for name in ("old", "rotated"):
        (tmp_path / f"{name}.log").write_text("before\n")
    marks = LogMarks(tmp_path)
    with (tmp_path / "old.log").open("a") as file:
        file.write("after\n")
    (tmp_path / "rotated.log").rename(tmp_path / "rotated.log.1")
    for name in ("rotated", "new"):
        (tmp_path / f"{name}.log").write_text("all\n")
    assert marks.read_since(tmp_path / "old.log") == ["after"]
    assert marks.read_since(tmp_path / "rotated.log") == marks.read_since(tmp_path / "new.log") == ["all"]
    assert marks.read_since(tmp_path / "missing.log") == []


def refuse_spool(*_: object) -> NoReturn:
    raise SpoolUnavailable("cannot open the spool: No space left on device", code="disk_full", status=507)


def test_a_rank_and_a_front_door_that_the_disk_refuses_end_with_a_code_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unlike what a refusal ends with, it is worth another try."""
    settings = load_settings({"STATE_DIR": str(tmp_path)}, root=tmp_path, environ={})
    monkeypatch.setattr(rank, "open_spool", refuse_spool)
    watchdog = Watchdog(0, has_supervisor=False)
    assert server._run(None, settings, watchdog, None) == EXIT_DISK_REFUSED
    monkeypatch.setattr(api, "make_app", refuse_spool)
    monkeypatch.setattr(api, "load_inherited_settings", lambda: settings)
    monkeypatch.setattr(api, "configure_logging", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", ["api.py"])
    assert api.main() == EXIT_DISK_REFUSED == api.EXIT_DISK_REFUSED == ring_epoch.EXIT_DISK_REFUSED
    assert "cannot open the spool: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "is_away"), [(EXIT_DISK_REFUSED, True), (1, False)])
def test_a_ring_that_the_disk_refuses_is_tried_for_as_long_as_it_takes(code: int, is_away: bool) -> None:
    """As one of hosts that do not answer: no breaker opens for what passes."""
    plan = EpochPlan(1, ("127.0.0.1:1",), "", (), Path(), {}, connect_limit_s=1.0, load_limit_s=1.0)
    epoch = ring_epoch.RingEpoch(plan, lambda name: RotatingFile(Path(name)), lambda: None)
    log = ProcessLog(RotatingFile(Path("/dev/null")))
    log.last_lines.append("the disk says no")
    ended = SimpleNamespace(exit_code=code, name="rank 0", has_lost_host=False, log=log)
    epoch.ranks[0].child = ended  # type: ignore[assignment]
    verdict = asyncio.run(epoch._name_culprit([]))
    assert (verdict.reason, verdict.is_away) == (f"rank 0 exited with code {code}: the disk says no", is_away)

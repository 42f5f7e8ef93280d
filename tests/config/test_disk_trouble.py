"""What a disk that refuses costs each process: the write and a line of the log, never more."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from cluster.errors import ClusterError
from cluster.hosts.provisioning import Provisioned, forget_provisioned, load_provisioned
from cluster.supervisor.lock import LOCK_NAME, SupervisorLock, read_holder
from cluster.supervisor.state_file import mark_ring_ended
from config import REPOSITORY_ROOT, SettingsError, load_settings
from config.disk_trouble import DiskTroubles, describe_refused
from config.logs import RotatingFileHandler, configure_logging
from config.ring_secret import load_ring_secret
from config.rotating_file import RotatingFile
from config.run_files import overwrite, read_json, write_json, write_status
from distributed.engine.status import RingStatus
from distributed.engine.step_trace import RECORD_NAME, REQUEST_NAME, StepTrace
from frontdoor.ring_status import StatusFile

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))
has_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[OSError | None], None]:
    """Let every new file of the run folder fail with an error, or none."""
    real = tempfile.mkstemp

    def set_error(error: OSError | None) -> None:
        def fail(**_: Any) -> NoReturn:
            assert error is not None
            raise error

        monkeypatch.setattr(tempfile, "mkstemp", real if error is None else fail)

    return set_error


Refuse = Callable[[OSError | None], None]


def test_a_status_is_written_over_in_place_on_a_full_disk(tmp_path: Path, refuse: Refuse) -> None:
    """It may grow a little, and no part of an older and longer text stays."""
    path = tmp_path / "run" / "ring.json"
    write_status(path, {"phase": "ready", "reason": "x" * 500})
    refuse(FULL)
    write_status(path, {"phase": "draining", "reason": "y" * 1500})
    assert read_json(path) == {"phase": "draining", "reason": "y" * 1500}
    write_status(path, {"phase": "stopped"})
    assert read_json(path) == {"phase": "stopped"}
    with pytest.raises(OSError, match="No space left"):
        write_status(path, {"reason": "z" * 10_000})
    assert read_json(path) == {"phase": "stopped"}
    with pytest.raises(OSError, match="No space left"):
        write_status(tmp_path / "run" / "never-written.json", {})


@has_full_device
def test_a_file_that_cannot_be_written_whole_leaves_nothing(tmp_path: Path) -> None:
    """The old file is as it was, and the temporary one is gone."""
    path = tmp_path / "ring.json"
    write_json(path, {"step": 1})
    real = os.fdopen

    def open_full(descriptor: int, mode: str) -> Any:
        os.close(descriptor)
        return real(os.open("/dev/full", os.O_WRONLY), mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fdopen", open_full)
        with pytest.raises(OSError, match="No space left"):
            write_json(path, {"step": 2})
    assert read_json(path) == {"step": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["ring.json"]


def test_nothing_is_written_over_through_a_link(tmp_path: Path) -> None:
    """Somebody's link in the run folder leads nowhere."""
    (tmp_path / "other").write_text("keep this")
    (tmp_path / "ring.json").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic links"):
        overwrite(tmp_path / "ring.json", b"{}")
    assert (tmp_path / "other").read_text() == "keep this"


def test_a_trouble_is_logged_when_it_begins_changes_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    """And not each second between."""
    troubles = DiskTroubles()
    with caplog.at_level(logging.INFO, logger="config.disk_trouble"):
        for error in (None, FULL, FULL, READ_ONLY, READ_ONLY, None, None):
            with troubles.guard("ring.json"):
                if error:
                    raise error
            expected = [f"ring.json cannot be written: {error.strerror}"] if error else []
            assert troubles.sentences() == expected
    assert [record.getMessage() for record in caplog.records] == [
        "ring.json cannot be written: No space left on device; retrying",
        "ring.json cannot be written: Read-only file system; retrying",
        "no longer: ring.json cannot be written",
    ]


def test_a_refusal_names_file_reason_and_remedy() -> None:
    """The sentence has the fix."""
    full = OSError(errno.ENOSPC, "full", "/there/ring.secret")
    assert describe_refused(full).startswith("/there/ring.secret: No space left on device; make room")
    assert "mount that disk for writing" in describe_refused(READ_ONLY, Path("/other"))


def test_rank_0_goes_on_when_its_status_cannot_be_written(tmp_path: Path, refuse: Refuse) -> None:
    """The file is old meanwhile, and says afterwards what is still in trouble."""
    status = RingStatus(tmp_path / "ring.json", epoch=1, ring_size=1, model="m", settings={})
    refuse(READ_ONLY)
    status.enter("connecting")
    assert status.troubles.sentences() == ["ring.json cannot be written: Read-only file system"]
    assert not (tmp_path / "ring.json").exists()
    refuse(None)
    status.troubles.note("token logs cannot be written", "disk full")
    status.publish()
    said = read_json(tmp_path / "ring.json") or {}
    assert (said["phase"], said["troubles"]) == ("connecting", ["token logs cannot be written: disk full"])


def test_a_record_that_cannot_be_written_is_kept_until_it_can(tmp_path: Path, refuse: Refuse) -> None:
    """`trace` gets it late, and rank 0 goes on."""
    trace = StepTrace(tmp_path, 7, 1)
    for seconds in (100, 0):
        write_json(tmp_path / REQUEST_NAME, {"id": "mine", "seconds": seconds})
        refuse(FULL if seconds == 0 else None)
        trace.tick(())
    assert read_json(tmp_path / RECORD_NAME) is None
    refuse(None)
    trace.tick(())
    assert (read_json(tmp_path / RECORD_NAME) or {})["id"] == "mine"


def test_what_the_supervisor_notes_of_a_ring_is_no_reason_to_end(tmp_path: Path, refuse: Refuse) -> None:
    """The end of a ring, and what was placed."""
    refuse(READ_ONLY)
    mark_ring_ended(tmp_path, 3, "failed", "rank 0 died")
    Provisioned("key").save(tmp_path)
    forget_provisioned(tmp_path)
    refuse(None)
    assert list(tmp_path.iterdir()) == []
    assert load_provisioned(tmp_path, "key") is None


def test_the_lock_is_written_over_and_never_shortened(tmp_path: Path) -> None:
    """So that the next holder has room on a disk that is full by then."""
    lock = SupervisorLock(tmp_path)
    num_bytes = (tmp_path / LOCK_NAME).stat().st_size
    holder = read_holder(tmp_path)
    assert holder
    assert holder.pid == os.getpid()
    lock.release()
    assert read_holder(tmp_path) is None
    assert (tmp_path / LOCK_NAME).stat().st_size == num_bytes
    SupervisorLock(tmp_path).release()


def test_a_lock_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    """It names the file and what is wrong with it."""
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(ClusterError, match=r"supervisor.lock: (File exists|Not a directory)"):
        SupervisorLock(tmp_path / "run")


def test_a_status_file_that_is_damaged_says_what_it_said(tmp_path: Path) -> None:
    """Half a text, as of a file that is just being written over; missing, it says nothing."""
    path = tmp_path / "ring.json"
    file = StatusFile(path)
    write_json(path, {"phase": "ready"})
    assert file.read() == {"phase": "ready"}
    path.write_text('{"phase": "dra')
    assert file.read() == {"phase": "ready"}
    write_json(path, {"phase": "draining"})
    assert file.read() == {"phase": "draining"}
    path.unlink()
    assert file.read() == {}


@has_full_device
def test_a_log_on_a_full_disk_is_said_once_and_raises_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the log file nor standard error ends a process that logs."""
    handler = RotatingFileHandler(RotatingFile(Path("/dev/full")))
    record = logging.makeLogRecord({"msg": "a line", "levelname": "INFO"})
    handler.emit(record)
    handler.emit(record)
    (said,) = capsys.readouterr().err.splitlines()
    assert said == "/dev/full cannot be written: No space left on device; log lines are lost"


@has_full_device
@pytest.mark.usefixtures("root_logger")
def test_a_log_file_on_a_full_disk_is_no_reason_not_to_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even where it cannot be opened; lines go there as soon as they can."""

    def refuse_open(_: RotatingFile) -> NoReturn:
        raise READ_ONLY

    settings = load_settings({"LOG_FILE": "/dev/full"}, root=Path("/nonexistent"), environ={})
    monkeypatch.setattr(RotatingFile, "open", refuse_open)
    configure_logging(settings, process="rank 0")
    logging.warning("a line")
    logging.warning("another")
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("rank 0: ")[2] for line in said if "rank 0: " in line] == ["a line", "another"]
    assert len([line for line in said if "/dev/full cannot be written: Read-only file system" in line]) == 1


LOGGING_PROGRAM = """
import logging
from pathlib import Path
from config import load_settings
from config.logs import configure_logging, let_go_of_lost_lines, say
configure_logging(load_settings({}, root=Path("/nonexistent"), environ={}), process="supervisor")
for number in range(3000):
    logging.warning("line %d", number)
    say("a line")
let_go_of_lost_lines()
print("done")
"""


@has_full_device
def test_standard_error_on_a_full_disk_ends_no_process() -> None:
    """Not while it is written to, and not at the end."""
    command = [sys.executable, "-c", LOGGING_PROGRAM]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, stderr=full, check=False, timeout=30
        )
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_a_log_goes_on_when_its_folder_is_there_again(tmp_path: Path) -> None:
    """A line without a folder is lost; no other descriptor is written to."""
    path = tmp_path / "logs" / "rank-0.log"
    file = RotatingFile(path)
    file.write_line("one")
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("in the way")
    for _ in range(2):
        with pytest.raises(OSError, match=r"exists|directory"):
            file.write_line("lost")
    path.parent.unlink()
    file.write_line("two")
    assert path.read_text() == "two\n"
    file.close()


def test_half_a_line_is_ended_before_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up in the middle of a line does not glue two together."""
    file = RotatingFile(tmp_path / "a.log")
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    file.write_line("whole")
    monkeypatch.undo()
    file.write_line("next")
    file.close()
    assert (tmp_path / "a.log").read_text() == "who\nnext\n"


def test_a_secret_that_cannot_be_made_is_a_sentence(tmp_path: Path, refuse: Refuse) -> None:
    """A start needs it: the file, what the system says, and what helps."""
    settings = load_settings({"STATE_DIR": str(tmp_path)}, root=tmp_path, environ={})
    refuse(FULL)
    with pytest.raises(SettingsError, match=r"secret: No space left on device; make room on that disk"):
        load_ring_secret(settings)
    assert list(settings.ring_secret_path.parent.glob("*secret*")) == []

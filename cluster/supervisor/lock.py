"""The lock that makes a supervisor the only one of its STATE_DIR: a flock held for life on
run/supervisor.lock.

The file's text is JSON {"pid", "start_time"} of the holder, for others to read, with blanks behind it: it is
written over in place and never shortened, so that a disk that is full later has room for the next one. The
kernel drops the lock with the process, so there is no stale lock to clean up; a stale text is recognised by
the start time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path

from cluster.errors import AlreadyRunning, ClusterError
from cluster.processes import ProcessIdentity, identify, read_identity
from config.disk_trouble import describe_refused

LOCK_NAME = "supervisor.lock"
NUM_TEXT_BYTES = 128


class SupervisorLock:
    """Held from construction until `release` or the end of the process."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / LOCK_NAME
        try:
            run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ClusterError(describe_refused(error, self._path)) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            holder = read_holder(run_dir)
            who = f"supervisor {holder.pid}" if holder else "another supervisor that is just starting"
            raise AlreadyRunning(f"{who} already serves {run_dir.parent}") from None
        try:
            self._write_holder()
        except OSError as error:  # nobody would find us
            os.close(self._descriptor)
            raise ClusterError(describe_refused(error, self._path)) from error

    def release(self) -> None:
        """Give the lock back; the file stays, because removing it would race with the next holder."""
        with contextlib.suppress(OSError):  # its holder is dead in a moment
            self._write("")
        os.close(self._descriptor)

    def _write_holder(self) -> None:
        me = identify(os.getpid())
        assert me is not None
        self._write(json.dumps({"pid": me.pid, "start_time": me.start_time}))

    def _write(self, text: str) -> None:
        num_bytes = max(NUM_TEXT_BYTES, os.fstat(self._descriptor).st_size)
        os.pwrite(self._descriptor, text.ljust(num_bytes).encode(), 0)


def read_holder(run_dir: Path) -> ProcessIdentity | None:
    """The supervisor that holds the lock now, if one is alive."""
    try:
        entry = json.loads((run_dir / LOCK_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    holder = read_identity(entry if isinstance(entry, dict) else None)
    return holder if holder and holder.is_alive() else None

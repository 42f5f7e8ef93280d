"""The lock that allows one supervisor per STATE_DIR: a flock on run/supervisor.lock, held until it exits.

The file's text is JSON {"pid", "start_time"} of the holder, padded with blanks. It is overwritten in place
and never shortened, so that the next holder can write it on a full disk too. The kernel drops the lock with
the process; the start time shows whether the text is stale.
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
            raise AlreadyRunning(
                f"{who} already serves STATE_DIR {run_dir.parent}: ./launch.sh status"
            ) from None
        try:
            me = identify(os.getpid())
            assert me is not None
            self._write(json.dumps({"pid": me.pid, "start_time": me.start_time}))
        except OSError as error:  # without the text, no command would find us
            os.close(self._descriptor)
            raise ClusterError(describe_refused(error, self._path)) from error

    def release(self) -> None:
        """Release the lock; the file stays, because removing it would race with the next holder."""
        with contextlib.suppress(OSError):  # the text is stale without this, too
            self._write("")
        os.close(self._descriptor)

    def _write(self, text: str) -> None:
        num_bytes = max(NUM_TEXT_BYTES, os.fstat(self._descriptor).st_size)
        os.pwrite(self._descriptor, text.ljust(num_bytes).encode(), 0)


def read_holder(run_dir: Path) -> ProcessIdentity | None:
    """The living supervisor that holds the lock, if there is one."""
    try:
        entry = json.loads((run_dir / LOCK_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    holder = read_identity(entry if isinstance(entry, dict) else None)
    return holder if holder and holder.is_alive() else None

"""The spool's lock, which rank 0 holds with flock for life, and the epoch counter.

    lock     "{pid} {boot id}": the pid is for people; another boot id means that the machine itself went down
    epoch    the last epoch given out

Knows nothing of requests.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from spool.errors import SpoolLocked, system_trouble
from spool.folder import MAX_NOTE_BYTES, SpoolFolder
from spool.fsio import FileSystem, NotPlainFile


class SpoolLock:
    """Held from `acquire` to `release`. `was_power_cut`: the machine booted since the last holder."""

    def __init__(self, folder: SpoolFolder, fs: FileSystem, *, is_synced: bool) -> None:
        self._folder = folder
        self._fs = fs
        self._is_synced = is_synced
        self._fd: int | None = None
        self._boot_id: str | None = None
        self.was_power_cut = False

    @property
    def is_held(self) -> bool:
        return self._fd is not None

    def acquire(self) -> None:
        """Take the lock. Raises SpoolLocked, which names the holder."""
        assert not self.is_held, "acquired twice"
        with system_trouble("lock the spool"):
            self._fd = self._fs.try_lock(self._folder.lock)
        if self._fd is None:
            raise SpoolLocked(str(self._folder.root), self._read_number(self._folder.lock))
        self._boot_id = self._fs.boot_id()
        noted = self._read_note(self._folder.lock)[1:2]
        self.was_power_cut = self._boot_id is not None and noted != [self._boot_id]
        self._note_holder(noted[0] if noted else "")

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._fd is not None:
            with contextlib.suppress(OSError):  # the descriptor is closed anyway
                self._fs.close(self._fd)
            self._fd = None

    def note_recovered(self) -> None:
        """Note in the lock file that recovery has handled all crashes since this boot."""
        self._note_holder(self._boot_id or "")

    def next_epoch(self) -> int:
        """Return a new epoch, larger than all earlier ones."""
        assert self.is_held, "an epoch without the lock"
        last = self._read_number(self._folder.epoch)
        if last is None and self._fs.exists(self._folder.epoch):
            last = int(time.time())  # damaged: continue above any number that counting can have reached
        epoch = (last or 0) + 1
        fresh = self._folder.tmp / "epoch"
        with system_trouble("write the epoch"):
            self._fs.unlink(fresh)
            self._fs.write_new(fresh, b"%d\n" % epoch, is_synced=self._is_synced)
            self._fs.rename(fresh, self._folder.epoch)
            if self._is_synced:
                self._fs.sync_folder(self._folder.root)
        return epoch

    def _note_holder(self, boot_id: str) -> None:
        assert self._fd is not None
        with contextlib.suppress(OSError):  # a full disk must not stop the start
            self._fs.overwrite(self._fd, f"{os.getpid()} {boot_id}".strip().encode() + b"\n")

    def _read_note(self, path: Path) -> list[str]:
        try:
            return self._fs.read(path, MAX_NOTE_BYTES).decode(errors="replace").split()
        except (OSError, NotPlainFile):
            return []

    def _read_number(self, path: Path) -> int | None:
        words = self._read_note(path)
        return int(words[0]) if words and words[0].isascii() and words[0].isdigit() else None

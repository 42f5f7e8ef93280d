"""Remembers why the system refused the last request, until a trial write works.

A read-only or failing disk, a quota and a lack of descriptors show only in a write. So this module keeps the
last refusal; a readiness check then writes one small file, at most once a second. Knows nothing of requests.
"""

from __future__ import annotations

import contextlib
import time

from spool.errors import SpoolUnavailable, system_trouble
from spool.folder import SpoolFolder
from spool.fsio import FileSystem

TRIAL_SECONDS = 1.0
REQUEST_TOO_LARGE = 413


class WriteTrouble:
    """The last refusal of one process, until a write works. Safe to use from several threads."""

    def __init__(self, folder: SpoolFolder, fs: FileSystem, *, is_synced: bool) -> None:
        self._folder = folder
        self._fs = fs
        self._is_synced = is_synced
        self._refusal: SpoolUnavailable | None = None
        self._next_trial = 0.0  # on the monotonic clock

    def note(self, refusal: SpoolUnavailable) -> None:
        """Remember a refused request."""
        if refusal.status != REQUEST_TOO_LARGE:
            self._refusal = refusal
            self._next_trial = time.monotonic() + TRIAL_SECONDS

    def check(self) -> None:
        """Raise SpoolUnavailable where a request was refused, and the trial fails or is not due yet."""
        refusal = self._refusal
        if refusal is None:
            return
        if time.monotonic() < self._next_trial:
            raise SpoolUnavailable(str(refusal), code=refusal.code, status=refusal.status)
        try:
            with system_trouble("accept a request"):
                self._try()
        except SpoolUnavailable as again:
            self.note(again)
            raise
        self._refusal = None

    def _try(self) -> None:
        path = self._folder.temporary()
        try:
            self._fs.write_new(path, b"\n", is_synced=self._is_synced)
            if self._is_synced:
                self._fs.sync_folder(self._folder.incoming)
        finally:
            with contextlib.suppress(OSError):
                self._fs.unlink(path)

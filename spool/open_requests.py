"""Counts the requests of an owner that have no result yet, whichever front door accepted them.

The names in incoming/ are the truth: a request's name stays there until its result exists. Owners stand in
the files, so each file is read once, and not at all for requests that this process let in. Lines of a batch
(priority 9) count for nobody, unless this process let them in one by one. Knows no limit.
"""

from __future__ import annotations

import threading
from collections.abc import Collection

from spool.admission import MAX_REQUEST_BYTES
from spool.errors import CorruptRequest, system_trouble
from spool.fsio import NotPlainFile, join
from spool.messages import Request
from spool.names import id_of, is_entry_name
from spool.spool import Spool

BATCH_START = "9-"  # of a name: its priority


class OpenRequests:
    """Safe to use from several threads."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._lock = threading.Lock()
        self._entering: set[str] = set()
        self._owners: dict[str, str | None] = {}  # by id

    def enter(self, owner: str, ids: Collection[str], max_open: int) -> tuple[int, int] | None:
        """Reserve places for requests that will be submitted, until `leave`.

        Returns:
            None; or where the owner would have more than `max_open`, how many it has, and how many all have.

        Raises: SpoolUnavailable.
        """
        with self._lock:
            # Before the list: what leaves meanwhile has its name in it.
            owners = {id: self._owners[id] for id in set(self._entering)}
            for name in filter(is_entry_name, self._spool.names(self._spool.folder.incoming)):
                known = self._owners.get(id_of(name))
                owners[id_of(name)] = self._read_owner(name) if known is None else known
            self._owners = owners
            num_open = sum(theirs == owner and not self._has_ended(id) for id, theirs in owners.items())
            if num_open + len(ids) > max_open:
                return num_open, len(owners)
            self._owners.update(dict.fromkeys(ids, owner))
            self._entering.update(ids)
            return None

    def leave(self, ids: Collection[str]) -> None:
        """Give back the places of `enter`: the requests are submitted, or will not be."""
        self._entering.difference_update(ids)

    def _has_ended(self, id: str) -> bool:
        """Whether the result exists already; the name goes a moment later."""
        with system_trouble("look for a result"):
            return self._spool.fs.exists(self._spool.folder.result(id))

    def _read_owner(self, name: str) -> str | None:
        """Return the owner from a file; None where it has just ended or cannot be read."""
        if name.startswith(BATCH_START):
            return ""
        try:
            path = join(self._spool.folder.incoming, name)
            return Request.from_json(self._spool.fs.read(path, MAX_REQUEST_BYTES)).owner
        except (OSError, NotPlainFile, CorruptRequest):
            return None

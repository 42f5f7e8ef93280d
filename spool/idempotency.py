"""Idempotency keys: a client that asks again under its key gets the request that came first.

    idem/{sha256 of owner and key}   {…"kind":"key"…"body":{"name":…,"body_hash":…}}

name is the request's first one in incoming/, with its id in it; body_hash is of what was asked.

The record is linked into idem/ before the request is, so of several submits one wins, and the others publish
the very same name or find it published. A crash leaves a record without a request at most, which the next
submit under that key completes. It goes with its request's result (sweep.py). A key is never stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from spool.errors import CorruptRequest, IdempotencyConflict
from spool.folder import SpoolFolder
from spool.fsio import FileSystem, NotPlainFile
from spool.messages import seal, unseal
from spool.names import EntryName

_KIND = "key"
_MAX_RECORD_BYTES = 4096


@dataclass(frozen=True)
class KeyRecord:
    """Which request a key stands for. name is what it is first called in incoming/."""

    name: EntryName
    body_hash: str

    @property
    def id(self) -> str:
        """The request's id."""
        return self.name.id

    def to_json(self) -> bytes:
        """The file's content."""
        return seal(_KIND, {"name": self.name.waiting, "body_hash": self.body_hash})

    @classmethod
    def from_json(cls, data: bytes) -> KeyRecord:
        """Read what `to_json` made. Raises CorruptRequest."""
        body = unseal(_KIND, data)
        name, body_hash = EntryName.parse(str(body.get("name"))), body.get("body_hash")
        if name is None or not isinstance(body_hash, str) or len(body) != 2:
            raise CorruptRequest("key file of another shape")
        return cls(name, body_hash)


class Keys:
    """The records in idem/ of one spool."""

    def __init__(self, folder: SpoolFolder, fs: FileSystem, *, is_synced: bool) -> None:
        self._folder = folder
        self._fs = fs
        self._is_synced = is_synced

    def path(self, owner: str, key: str) -> Path:
        """Where the record of an owner's key lies."""
        return self._folder.idem / hashlib.sha256(json.dumps([owner, key]).encode()).hexdigest()

    def find(self, path: Path) -> KeyRecord | None:
        """Read a record, if there is one. Raises CorruptRequest, as to guess might answer twice."""
        try:
            return KeyRecord.from_json(self._fs.read(path, _MAX_RECORD_BYTES))
        except FileNotFoundError:
            return None
        except NotPlainFile as error:
            raise CorruptRequest(f"the record of the idempotency key is {error}") from error

    def take(self, path: Path, record: KeyRecord) -> KeyRecord:
        """Make the record the one that counts, or return the one that does; sure to stay. Raises OSError."""
        temporary = self._folder.temporary()
        try:
            self._fs.write_new(temporary, record.to_json(), is_synced=self._is_synced)
            self._fs.link(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                self._fs.unlink(temporary)
        if self._is_synced:
            self._fs.sync_folder(self._folder.idem)
        return self.find(path) or record


def check_same(record: KeyRecord, body_hash: str) -> None:
    """Raise IdempotencyConflict when the key was used for something else."""
    if record.body_hash != body_hash:
        raise IdempotencyConflict("this Idempotency-Key was used for a request that asked for something else")

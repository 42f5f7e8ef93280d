"""Idempotency keys: a client that retries under its key gets the first request.

    idem/{sha256 of owner and key}   {…"kind":"key"…"body":{"name":…,"body_hash":…}}

name is the request's first name in incoming/ and contains its id; body_hash is the hash of the body.

A submit links the record into idem/ before it links the request. So one of several submits wins, and the
others publish the same name or find it published. A crash leaves at most a record without a request; the next
submit under that key completes it. The sweep removes the record with the result. A key is never stored.
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
    """The request of a key. name is its first name in incoming/."""

    name: EntryName
    body_hash: str

    @property
    def id(self) -> str:
        return self.name.id

    def to_json(self) -> bytes:
        """Return the file's content."""
        return seal(_KIND, {"name": self.name.waiting, "body_hash": self.body_hash})

    @classmethod
    def from_json(cls, data: bytes) -> KeyRecord:
        """Read what `to_json` made. Raises CorruptRequest."""
        body = unseal(_KIND, data)
        name, body_hash = EntryName.parse(str(body.get("name"))), body.get("body_hash")
        if name is None or not isinstance(body_hash, str) or len(body) != 2:
            raise CorruptRequest("the idempotency key file has unexpected fields")
        return cls(name, body_hash)


class Keys:
    """The records in idem/ of one spool."""

    def __init__(self, folder: SpoolFolder, fs: FileSystem, *, is_synced: bool) -> None:
        self._folder = folder
        self._fs = fs
        self._is_synced = is_synced

    def path(self, owner: str, key: str) -> Path:
        """Return the path of the record of an owner's key."""
        return self._folder.idem / hashlib.sha256(json.dumps([owner, key]).encode()).hexdigest()

    def find(self, path: Path) -> KeyRecord | None:
        """Read a record, if it exists. Raises CorruptRequest: a guess might answer a request twice."""
        try:
            return KeyRecord.from_json(self._fs.read(path, _MAX_RECORD_BYTES))
        except FileNotFoundError:
            return None
        except NotPlainFile as error:
            raise CorruptRequest(f"the record of the idempotency key is {error}") from error

    def take(self, path: Path, record: KeyRecord) -> KeyRecord:
        """Publish the record, or return the one that was published first. Raises OSError.

        It is on the disk before its request, which is synced later.
        """
        temporary = self._folder.temporary()
        try:
            self._fs.write_new(temporary, record.to_json(), is_synced=self._is_synced)
            self._fs.link(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                self._fs.unlink(temporary)
        if self._is_synced:
            self._fs.order_folder(self._folder.idem)
        return self.find(path) or record


def check_same(record: KeyRecord, body_hash: str) -> None:
    """Raise IdempotencyConflict where the key was used with another body."""
    if record.body_hash != body_hash:
        raise IdempotencyConflict("this Idempotency-Key was used for a request with another body")

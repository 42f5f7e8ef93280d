"""What the spool's tests share: small requests and answers, and a disk that fails on command."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from spool import Claim, FileSystem, Request, Result, SamplingParams, Spool, SpoolOwner, Usage
from spool.fsio import DiskSpace


class FailingFileSystem(FileSystem):
    """The real one, but the named call fails with `number` while `is_failing`; other calls and paths pass."""

    def __init__(self, call: str, number: int, part: str = "") -> None:
        self.is_failing = False
        self.num_free_bytes = 1 << 40
        real = getattr(super(), call) if call else None

        def fail(path: Path, *args: object, **kwargs: object) -> object:
            assert real is not None
            if self.is_failing and part in str(path):
                if call == "write_new":  # what has begun is left behind
                    Path(path).touch()
                raise OSError(number, os.strerror(number))
            return real(path, *args, **kwargs)

        if call:
            setattr(self, call, fail)

    def disk_space(self, path: Path) -> DiskSpace:
        return DiskSpace(self.num_free_bytes, None)


def make_request(priority: int = 5, text: str = "hello") -> Request:
    return Request(uuid.uuid4().hex, SamplingParams(4), text, None, None, "tiny", priority=priority)


def answer(request: Request, text: str = "hi") -> Result:
    return Result(request.id, "tiny", text, (1, 2), "stop", Usage(1, 2, 0), {}, None, time.time())


def open_owner(spool: Spool) -> SpoolOwner:
    owner = SpoolOwner(spool)
    owner.acquire()
    owner.recover()
    return owner


def submit(spool: Spool, priority: int = 5) -> Request:
    request = make_request(priority)
    spool.submit(request)
    return request


def claim_one(owner: SpoolOwner) -> Claim:
    (claim,) = owner.claim(1)
    return claim

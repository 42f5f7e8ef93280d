"""Answered requests: their files are kept beside the results, to run them again, and go with them."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from spool import CorruptRequest, Spool, SpoolOwner
from tests.fakes.spool_fakes import FailingFileSystem, answer, claim_one, make_request, open_owner, submit


def test_a_request_can_be_read_from_accept_to_retention(spool: Spool, owner: SpoolOwner) -> None:
    """Waiting, active and done it is the same; it goes with its result, and nothing else is left of it."""
    request = submit(spool)
    assert spool.read_request(request.id) == request
    claim = claim_one(owner)
    assert spool.read_request(request.id) == request
    owner.complete(claim, answer(request))
    assert spool.read_request(request.id) == request
    assert os.listdir(spool.folder.incoming) == os.listdir(spool.folder.active) == []
    assert owner.sweep(time.time() + 50, 100.0).num_files == 0
    assert spool.read_request(request.id) == request
    owner.sweep(time.time() + 1e6, 100.0)
    assert spool.read_request(request.id) is None
    assert os.listdir(spool.folder.asked) == []


def test_unknown_and_damaged_requests(spool: Spool) -> None:
    """Of an unknown id there is nothing; what is damaged says so."""
    id = make_request().id
    assert spool.read_request(id) is None
    Path(spool.folder.request(id)).write_text("damaged")
    with pytest.raises(CorruptRequest):
        spool.read_request(id)


def test_second_name_of_an_answered_request_does_not_stay(spool: Spool) -> None:
    """A death in the midst of requeueing leaves two names of one file; both leave the queue."""
    request = submit(spool)
    with open_owner(spool) as owner:
        owner.complete(claim_one(owner), answer(request))
        second = spool.folder.incoming / f"5-{time.time_ns():020d}-{request.id}.json"
        os.link(spool.folder.request(request.id), second)
        assert owner.claim(9) == []
    assert os.listdir(spool.folder.incoming) == []
    assert spool.read_request(request.id) == request


def test_a_disk_without_room_for_a_name_keeps_nothing(tmp_path: Path) -> None:
    """The answer is what counts: the request leaves the queue all the same."""
    fs = FailingFileSystem("rename", errno.ENOSPC)
    spool = Spool.open(tmp_path / "spool", durability="process", fs=fs)
    request = submit(spool)
    with open_owner(spool) as owner:
        claim = claim_one(owner)
        fs.is_failing = True
        assert owner.complete(claim, answer(request))
        fs.is_failing = False
    assert (spool.state(request.id), spool.read_request(request.id)) == ("done", None)
    assert os.listdir(spool.folder.incoming) == []


def test_kept_requests_go_first_where_the_disk_is_nearly_full(tmp_path: Path) -> None:
    """Results and waiting requests stay."""
    fs = FailingFileSystem("", 0)
    spool = Spool.open(tmp_path / "spool", durability="process", fs=fs)
    done, waiting = submit(spool), submit(spool, priority=9)
    with open_owner(spool) as owner:
        owner.complete(claim_one(owner), answer(done))
        fs.num_free_bytes = 1 << 20
        assert owner.sweep(time.time(), 1e6).num_files == 1
    assert spool.read_request(done.id) is None
    assert spool.state(done.id) == "done"
    assert spool.read_request(waiting.id) == waiting

"""The temporary file that is made ahead of the next request."""

import errno
import os
import subprocess
import time
from pathlib import Path

import pytest

from spool import Spool, SpoolUnavailable
from spool.fsio import AnyPath, FileSystem
from tests.spool_fakes import FailingFileSystem, claim_one, open_owner, submit


class CountingFileSystem(FileSystem):
    """Counts the files it makes in tmp/."""

    num_made = 0

    def create(self, path: AnyPath) -> int:
        self.num_made += Path(path).parent.name == "tmp"
        return super().create(path)


def open_spool(tmp_path: Path, fs: FileSystem | None = None) -> Spool:
    return Spool.open(tmp_path / "spool", durability="process", fs=fs)


def spares(spool: Spool) -> list[str]:
    return [name for name in os.listdir(spool.folder.tmp) if name != "ballast"]


def test_a_prepared_file_becomes_the_next_request(tmp_path: Path) -> None:
    """One is enough however often it is asked for; the submit makes none, and what is claimed is whole."""
    fs = CountingFileSystem()
    spool = open_spool(tmp_path, fs)
    spool.prepare()
    spool.prepare()
    assert (fs.num_made, len(spares(spool))) == (1, 1)
    requests = [submit(spool)]
    assert (fs.num_made, spares(spool)) == (1, [])
    requests.append(submit(spool))
    assert (fs.num_made, spares(spool)) == (2, [])
    with open_owner(spool) as owner:
        assert [claim_one(owner).request for _ in requests] == requests


def test_a_prepared_file_that_was_swept_is_made_again(tmp_path: Path) -> None:
    """A front door may be idle for longer than the sweep leaves temporary files alone."""
    spool = open_spool(tmp_path)
    spool.prepare()
    (spare,) = spares(spool)
    (spool.folder.tmp / spare).unlink()
    request = submit(spool)
    with open_owner(spool) as owner:
        assert claim_one(owner).request == request


def test_the_sweep_takes_those_of_dead_processes_alone(tmp_path: Path) -> None:
    """A killed front door leaves one; a living one's stays, and so does what is half written."""
    spool = open_spool(tmp_path)
    spool.prepare()
    (own,) = spares(spool)
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name in (f"{gone.pid}-0-0", f"{gone.pid}-0-1", "no-number"):
        (spool.folder.tmp / name).touch()
    (spool.folder.tmp / f"{gone.pid}-0-1").write_text("half")
    with open_owner(spool) as owner:
        owner.sweep(time.time(), retention_seconds=86_400)
    assert set(spares(spool)) == {own, f"{gone.pid}-0-1", "no-number"}


def test_closing_removes_it_and_its_descriptor(tmp_path: Path) -> None:
    """Nothing is left of it, and the spool serves on."""
    spool = open_spool(tmp_path)
    before = len(os.listdir("/dev/fd"))
    spool.prepare()
    assert len(os.listdir("/dev/fd")) == before + 1
    spool.close()
    assert (len(os.listdir("/dev/fd")), spares(spool)) == (before, [])
    submit(spool)
    assert spool.depth().num_waiting == 1


def test_a_disk_that_says_no_is_told_at_the_submit(tmp_path: Path) -> None:
    """Preparing never raises; what a request could not be written to is removed."""
    fs = FailingFileSystem("create", errno.ENOSPC, "spool/tmp/")
    spool = open_spool(tmp_path, fs)
    fs.is_failing = True
    spool.prepare()
    with pytest.raises(SpoolUnavailable):
        submit(spool)
    fs.is_failing = False
    full = FailingFileSystem("fill", errno.ENOSPC)
    spool = open_spool(tmp_path, full)
    spool.prepare()
    full.is_failing = True
    with pytest.raises(SpoolUnavailable):
        submit(spool)
    assert (spool.depth().num_waiting, spares(spool)) == (0, [])

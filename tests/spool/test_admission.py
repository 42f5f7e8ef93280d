"""Admission checks the free space on the disk and the size of each request."""

from pathlib import Path

import pytest

from spool import Spool, SpoolUnavailable, admission
from spool.fsio import DiskSpace, FileSystem
from tests.fakes.spool_fakes import submit


def test_a_disk_without_free_inodes_refuses_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free bytes alone are not enough; a file system without a limit of inodes accepts."""
    spool = Spool.open(tmp_path / "spool", durability="process")
    for num_free_files, is_accepted in ((None, True), (10_000, True), (10, False)):
        space = DiskSpace(1 << 40, num_free_files)
        monkeypatch.setattr(FileSystem, "disk_space", lambda *_, space=space: space)
        if is_accepted:
            submit(spool)
            continue
        with pytest.raises(SpoolUnavailable, match="inodes"):
            submit(spool)
    assert spool.depth().num_waiting == 2


def test_a_request_over_the_file_limit_is_refused(tmp_path: Path) -> None:
    """The limit of one file counts even where the queue may hold more bytes."""
    spool = Spool.open(tmp_path / "spool", durability="process", max_bytes=1 << 40)
    num_bytes = admission.MAX_REQUEST_BYTES + 1
    with pytest.raises(SpoolUnavailable, match=f"{num_bytes} bytes"), spool.admission.holding(num_bytes):
        pass

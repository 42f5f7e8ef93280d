"""The queue's limits: how often the folder is looked at for them, and what is counted in between."""

import itertools
from pathlib import Path

import pytest

from spool import Spool, SpoolFull, SpoolUnavailable, admission
from spool.fsio import DiskSpace, FileSystem
from tests.fakes.spool_fakes import make_request, submit


class CountingFileSystem(FileSystem):
    """Counts the listings of incoming/, and has as much disk as it is told."""

    def __init__(self) -> None:
        self.num_looks = 0
        self.num_free_bytes = 1 << 40
        self.num_free_files: int | None = None

    def names(self, folder: Path) -> list[str]:
        self.num_looks += folder.name == "incoming"
        return super().names(folder)

    def disk_space(self, path: Path) -> DiskSpace:
        return DiskSpace(self.num_free_bytes, self.num_free_files)


@pytest.fixture
def fs(monkeypatch: pytest.MonkeyPatch) -> CountingFileSystem:
    monkeypatch.setattr(admission, "LOOK_SECONDS", 60.0)
    return CountingFileSystem()


def open_spool(tmp_path: Path, fs: FileSystem, **limits: int) -> Spool:
    return Spool.open(tmp_path / "spool", durability="process", fs=fs, **limits)  # type: ignore[arg-type]


def test_a_look_counts_until_half_of_the_limit(tmp_path: Path, fs: CountingFileSystem) -> None:
    """Then every request is looked at, and the limit holds exactly."""
    spool = open_spool(tmp_path, fs, max_depth=20)
    looks = []
    for _ in range(20):
        submit(spool)
        looks.append(fs.num_looks)
    assert looks[:11] == [1] * 10 + [2]
    assert [later - earlier for earlier, later in itertools.pairwise(looks[10:])] == [1] * 9
    with pytest.raises(SpoolFull):
        submit(spool)
    assert spool.depth().num_waiting == 20


def test_a_look_counts_until_half_of_the_bytes(tmp_path: Path, fs: CountingFileSystem) -> None:
    """As many bytes as one request has are half: the second one is looked at."""
    size = len(make_request().to_json())
    spool = open_spool(tmp_path, fs, max_bytes=3 * size)
    submit(spool)
    submit(spool)
    assert fs.num_looks == 2
    submit(spool)
    with pytest.raises(SpoolFull):
        submit(spool)


def test_a_look_ends_with_its_time(
    tmp_path: Path, fs: CountingFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other processes publish is seen a moment later."""
    monkeypatch.setattr(admission, "LOOK_SECONDS", 0.0)
    spool, other = (open_spool(tmp_path, fs, max_depth=3) for _ in range(2))
    for door in (spool, other, spool):
        submit(door)
    for door in (spool, other):
        with pytest.raises(SpoolFull):
            submit(door)


def test_little_disk_is_looked_at_each_time(tmp_path: Path, fs: CountingFileSystem) -> None:
    """Bytes or files that others may use up in a moment are asked for at every request."""
    for num_free_bytes, num_free_files in ((admission.AMPLE_BYTES, None), (1 << 40, 10_000)):
        fs.num_free_bytes, fs.num_free_files = num_free_bytes, num_free_files
        spool = open_spool(tmp_path, fs)
        before = fs.num_looks
        submit(spool)
        submit(spool)
        assert fs.num_looks == before + 2
    fs.num_free_files = 10
    with pytest.raises(SpoolUnavailable, match="inodes"):
        submit(spool)


def test_too_large_a_request_is_never_taken(tmp_path: Path, fs: CountingFileSystem) -> None:
    """Not after a look that counts, either; the limit of the queue may be larger."""
    spool = open_spool(tmp_path, fs, max_bytes=1 << 40)
    submit(spool)
    with (
        pytest.raises(SpoolUnavailable, match="too large"),
        spool.admission.holding(admission.MAX_REQUEST_BYTES + 1),
    ):
        pass

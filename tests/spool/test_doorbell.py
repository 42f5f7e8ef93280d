"""Doorbells wake listeners, at any depth of folder, and never get in anyone's way."""

from __future__ import annotations

import os
import re
import select
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from spool import DOOR_PREFIX, RANK0, Doorbell, make_door_name, ring, ring_all


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # pytest's own folders may be too deep
        yield Path(short)


@pytest.fixture
def deep_folder(tmp_path: Path) -> Iterator[Path]:
    deep = tmp_path / ("d" * 60) / ("e" * 60) / "bell"
    deep.mkdir(parents=True)
    yield deep
    if (deep / "PATH").exists():
        place = Path((deep / "PATH").read_text())
        for name in os.listdir(place):
            (place / name).unlink()
        place.rmdir()


def _is_readable(bell: Doorbell) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


def test_ring_wakes_the_listener_and_drain_quiets_it(folder: Path) -> None:
    """A ring makes the descriptor readable until it is drained."""
    with Doorbell(folder, RANK0) as bell:
        assert not _is_readable(bell)
        assert ring(folder, RANK0)
        assert ring(folder, RANK0)
        assert _is_readable(bell)
        assert bell.drain() == 2
        assert not _is_readable(bell)


def test_a_process_wakes_its_own_loop(folder: Path) -> None:
    """From any of its threads; a closed bell is quiet."""
    with Doorbell(folder, RANK0) as bell:
        bell.ring()
        assert _is_readable(bell)
    bell.ring()


def test_ring_without_a_listener_is_harmless(folder: Path) -> None:
    """No listener, a closed bell, no folder: False, and no error."""
    assert not ring(folder, RANK0)
    Doorbell(folder, RANK0).close()
    assert not ring(folder, RANK0)
    assert os.listdir(folder) == []
    assert not ring(folder / "absent", RANK0)
    assert ring_all(folder / "absent", DOOR_PREFIX) == 0


def test_overfull_bell_counts_as_heard(folder: Path) -> None:
    """A listener that does not drain never blocks the process that rings."""
    with Doorbell(folder, RANK0) as bell:
        assert all(ring(folder, RANK0) for _ in range(2000))
        assert bell.drain() > 0


def _leave_dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(path))


def test_ring_all_wakes_every_door_and_removes_dead_ones(folder: Path) -> None:
    """All front doors hear; sockets that dead ones left behind go."""
    _leave_dead_socket(folder / f"{DOOR_PREFIX}1-dead")
    _leave_dead_socket(folder / RANK0)
    with Doorbell(folder, make_door_name()) as one, Doorbell(folder, make_door_name()) as two:
        assert ring_all(folder, DOOR_PREFIX) == 2
        assert (one.drain(), two.drain()) == (1, 1)
    assert not ring(folder, RANK0)
    assert os.listdir(folder) == [RANK0]


def test_new_listener_takes_over_a_name(folder: Path) -> None:
    """After a restart rank 0 listens where its dead predecessor did; the old one's end is no harm."""
    _leave_dead_socket(folder / RANK0)
    first = Doorbell(folder, RANK0)
    second = Doorbell(folder, RANK0)
    first.close()
    assert ring(folder, RANK0)
    assert second.drain() == 1
    second.close()


def test_deep_folder_falls_back_to_a_short_private_one(deep_folder: Path) -> None:
    """Beyond 103 bytes of path, bells lie in a private folder under /tmp that PATH names."""
    with Doorbell(deep_folder, RANK0) as bell, Doorbell(deep_folder, make_door_name()) as door:
        place = Path((deep_folder / "PATH").read_text())
        assert place.stat().st_mode & 0o777 == 0o700
        assert max(len(os.fsencode(place / name)) for name in os.listdir(place)) < 104
        assert ring(deep_folder, RANK0)
        assert ring_all(deep_folder, DOOR_PREFIX) == 1
        assert (bell.drain(), door.drain()) == (1, 1)


@pytest.mark.parametrize("trouble", ["gone", "open to all", "a link", "nonsense"])
def test_fallback_folder_that_cannot_be_trusted_is_replaced(
    deep_folder: Path, tmp_path: Path, trouble: str
) -> None:
    """A PATH that names no private folder of ours is not followed; listening makes a new one."""
    noted = tmp_path / "noted"
    if trouble == "open to all":
        noted.mkdir()
        noted.chmod(0o755)
    if trouble == "a link":
        noted.symlink_to(tmp_path)
    (deep_folder / "PATH").write_bytes(b"\0" if trouble == "nonsense" else os.fsencode(noted))
    assert not ring(deep_folder, RANK0)
    with Doorbell(deep_folder, RANK0) as bell:
        assert (deep_folder / "PATH").read_text() != str(noted)
        assert ring(deep_folder, RANK0)
        assert bell.drain() == 1


def test_door_names_are_unique_and_short() -> None:
    """Two front doors never share a bell, even after a pid comes round again."""
    names = {make_door_name() for _ in range(100)}
    assert len(names) == 100
    assert all(re.fullmatch(r"door-\d+-[0-9a-f]{8}", name) for name in names)

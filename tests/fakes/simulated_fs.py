"""A disk in memory that forgets what was not synced, and processes on it that die between any two calls.

`SimulatedFileSystem` stands in for `spool.fsio.FileSystem` and is one process's view of a `Disk`. The death
of a process keeps everything. A power cut keeps what was synced; of the rest anything may have reached the
disk: every name of a folder goes back to any state it had since the folder's last sync, each on its own (so
half a rename may be there), and an unsynced file is lost, torn or padded with zeros. A synced file stays in
the drive's cache, as on macOS, until a folder is synced. This is harsher than any journalling file system.
Doorbells are never heard: the scan is the truth.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from spool import FileSystem
from spool.fsio import AnyPath, DiskSpace, FileTail, NotPlainFile

Choose = Callable[[int], int]  # a number from 0 up to, not including, the argument; 0 is "lost"
T = TypeVar("T")


class Crash(BaseException):
    """The process dies here."""


class Inode:
    """A file or folder: what processes see, and what the disk has for sure."""

    last_number = 0

    def __init__(self, *, is_folder: bool) -> None:
        Inode.last_number += 1
        self.number = Inode.last_number
        self.is_folder = is_folder
        self.mode = (stat.S_IFDIR | 0o700) if is_folder else (stat.S_IFREG | 0o600)
        self.modified = time.time()
        self.num_links = 0
        self.data = b""
        self.synced_data = b""
        self.names: dict[str, Inode] = {}
        self.past: dict[str, list[Inode | None]] = {}  # what a changed name was since the last sync

    def set(self, name: str, inode: Inode | None) -> None:
        """Change what a name of this folder stands for; None removes it."""
        self.past.setdefault(name, []).append(self.names.get(name))
        old = self.names.pop(name, None)
        if old is not None:
            old.num_links -= 1
        if inode is not None:
            self.names[name] = inode
            inode.num_links += 1

    def sync(self) -> None:
        """Put the content, or the names, on the disk."""
        self.synced_data = self.data
        self.past.clear()

    def lose_power(self, choose: Choose) -> None:
        """Keep what was synced and any of the rest."""
        for name, states in self.past.items():
            kept = [*states, self.names.pop(name, None)][choose(len(states) + 1)]
            if kept is not None:
                self.names[name] = kept
        self.past.clear()
        if self.data != self.synced_data:
            pairs = zip(self.data, self.synced_data, strict=False)
            num_same = next((at for at, (a, b) in enumerate(pairs) if a != b), len(self.synced_data))
            num_same = min(num_same, len(self.data))
            torn = self.data[: num_same + choose(len(self.data) - num_same + 1)]
            padded = torn + bytes(len(self.data) - len(torn))
            self.data = self.synced_data = (self.synced_data, torn, padded, self.data)[choose(4)]


class Disk:
    """What is left when every process is gone."""

    def __init__(self) -> None:
        self.root = Inode(is_folder=True)
        self.processes: list[SimulatedFileSystem] = []
        self.drive_cache: list[Inode] = []  # files that were synced since the last sync of a folder
        self.holders: dict[int, SimulatedFileSystem] = {}  # of locks, by inode number
        self.num_power_cuts = 0

    def start_process(self) -> SimulatedFileSystem:
        """A new process that uses this disk."""
        self.processes.append(SimulatedFileSystem(self))
        return self.processes[-1]

    def empty_cache(self) -> None:
        """Put the data of all synced files on the disk."""
        for inode in self.drive_cache:
            inode.sync()
        self.drive_cache.clear()

    def cut_power(self, choose: Choose) -> None:
        """All processes die; what was not synced may vanish or tear."""
        self.num_power_cuts += 1
        self.drive_cache.clear()
        for process in list(self.processes):
            process.die()
        seen: dict[int, Inode] = {}
        waiting = [self.root]
        while waiting:
            inode = waiting.pop()
            if inode.number not in seen:
                seen[inode.number] = inode
                inode.num_links = 0
                inode.lose_power(choose)
                waiting.extend(inode.names.values())
        for inode in seen.values():
            for child in inode.names.values():
                child.num_links += 1

    def find(self, path: AnyPath) -> Inode:
        """The inode at a path. Raises FileNotFoundError."""
        inode = self.root
        for part in Path(path).parts[1:]:
            if part not in inode.names:
                raise _error(errno.ENOENT)
            inode = inode.names[part]
        return inode


class SimulatedFileSystem(FileSystem):
    """One process. It dies after `num_calls_left` more calls, and `fail_at` makes one of them fail."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.is_dead = False
        self.num_calls = 0
        self.num_calls_left: int | None = None
        self.fail_at: tuple[int, int] | None = None  # (calls until then, errno)
        self.before_call: Callable[[], None] | None = None  # what other processes do meanwhile
        self._open: dict[int, Inode] = {}
        self._next_fd = 100

    def die(self) -> None:
        """End this process: its descriptors and locks go, and nothing it still tries has an effect."""
        self.is_dead = True
        self._open.clear()
        if self in self.disk.processes:
            self.disk.processes.remove(self)
        for number in [number for number, holder in self.disk.holders.items() if holder is self]:
            del self.disk.holders[number]

    def _call(self) -> None:
        """Every system call passes here first."""
        if self.is_dead:
            raise Crash
        if self.before_call is not None:
            self.before_call()
        self.num_calls += 1
        if self.num_calls_left is not None:
            self.num_calls_left -= 1
            if self.num_calls_left < 0:
                self.die()
                raise Crash
        if self.fail_at is not None:
            num_calls, number = self.fail_at
            self.fail_at = (num_calls - 1, number) if num_calls > 0 else None
            if num_calls == 0:
                raise _error(number)

    def _find(self, path: AnyPath) -> Inode:
        self._call()
        return self.disk.find(path)

    def _find_plain(self, path: AnyPath) -> Inode:
        inode = self._find(path)
        if inode.is_folder:
            raise NotPlainFile("not a plain file")
        return inode

    def _descriptor(self, inode: Inode) -> int:
        self._next_fd += 1
        self._open[self._next_fd] = inode
        return self._next_fd

    def make_folder(self, path: Path) -> None:
        parent = self._find(path.parent)
        if path.name not in parent.names:
            parent.set(path.name, Inode(is_folder=True))

    def make_parents(self, path: Path) -> None:
        for parent in list(path.parents)[-2::-1]:
            self.make_folder(parent)

    def names(self, folder: Path) -> list[str]:
        return list(self._find(folder).names)

    def stat(self, path: AnyPath) -> os.stat_result:
        inode = self._find(path)
        size, uid = len(inode.data), os.geteuid()
        times = (inode.modified,) * 3
        return os.stat_result((inode.mode, inode.number, 1, inode.num_links, uid, uid, size, *times))

    def exists(self, path: AnyPath) -> bool:
        try:
            self._find(path)
        except FileNotFoundError:
            return False
        return True

    def write_new(self, path: AnyPath, data: bytes, *, is_synced: bool) -> None:
        path = Path(path)
        parent, inode = self._find(path.parent), Inode(is_folder=False)
        if path.name in parent.names:
            raise _error(errno.EEXIST)
        parent.set(path.name, inode)
        for size in (len(data) // 2, len(data)):
            self._call()
            inode.data = data[:size]
        if is_synced:
            self._call()
            self.disk.drive_cache.append(inode)

    def read(self, path: AnyPath, max_bytes: int) -> bytes:
        inode = self._find_plain(path)
        if len(inode.data) > max_bytes:
            raise NotPlainFile(f"larger than {max_bytes} bytes")
        return inode.data

    def read_from(self, path: AnyPath, offset: int) -> FileTail:
        inode = self._find_plain(path)
        return FileTail(inode.number, len(inode.data), inode.data[offset:])

    def read_part(self, path: AnyPath, offset: int, num_bytes: int) -> bytes:
        return self._find_plain(path).data[offset : offset + num_bytes]

    def open_append(self, path: AnyPath) -> int:
        path = Path(path)
        parent = self._find(path.parent)
        if path.name not in parent.names:
            parent.set(path.name, Inode(is_folder=False))
        return self._descriptor(parent.names[path.name])

    def append(self, fd: int, data: bytes) -> int:
        self._call()
        self._open[fd].data += data
        return len(data)

    def sync(self, fd: int) -> None:
        self._call()
        self.disk.drive_cache.append(self._open[fd])

    def truncate(self, fd: int, num_bytes: int) -> None:
        self._call()
        self._open[fd].data = self._open[fd].data[:num_bytes]

    def close(self, fd: int) -> None:
        self._call()
        inode = self._open.pop(fd)
        if self.disk.holders.get(inode.number) is self:
            del self.disk.holders[inode.number]

    def rename(self, source: AnyPath, target: AnyPath) -> None:
        source, target = Path(source), Path(target)
        inode, parent = self._find(source), self.disk.find(target.parent)
        if parent.names.get(target.name) is not inode:  # else nothing happens: so says POSIX
            parent.set(target.name, inode)
            self.disk.find(source.parent).set(source.name, None)

    def link(self, source: AnyPath, target: AnyPath) -> bool:
        source, target = Path(source), Path(target)
        inode, parent = self._find(source), self.disk.find(target.parent)
        if target.name in parent.names:
            return False
        parent.set(target.name, inode)
        return True

    def unlink(self, path: AnyPath) -> bool:
        path = Path(path)
        parent = self._find(path.parent)
        if path.name not in parent.names:
            return False
        parent.set(path.name, None)
        return True

    def remove_tree(self, path: Path) -> None:
        self.unlink(path)

    def set_mode(self, path: Path, mode: int) -> None:
        inode = self._find(path)
        inode.mode = stat.S_IFMT(inode.mode) | mode

    def sync_folder(self, path: Path) -> None:
        self._find(path).sync()
        self.disk.empty_cache()

    def order_folder(self, path: Path) -> None:
        self.sync_folder(path)

    def disk_space(self, path: Path) -> DiskSpace:
        self._find(path)
        return DiskSpace(1 << 40, None)

    def try_lock(self, path: Path) -> int | None:
        fd = self.open_append(path)
        number = self._open[fd].number
        if self.disk.holders.setdefault(number, self) is not self:
            del self._open[fd]
            return None
        return fd

    def overwrite(self, fd: int, data: bytes) -> None:
        self._call()
        self._open[fd].data = data

    def boot_id(self) -> str:
        return f"boot-{self.disk.num_power_cuts}"

    def real_path(self, path: Path) -> Path:
        self._call()
        return path

    def mounts(self) -> list[tuple[Path, str]]:
        self._call()
        return [(Path("/"), "ext4")]

    def bind_bell(self, path: Path) -> socket.socket:
        raise _error(errno.EOPNOTSUPP)

    def ring_bells(self, paths: list[str]) -> list[OSError | None]:
        self._call()
        return [_error(errno.ENOENT) for _ in paths]


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))

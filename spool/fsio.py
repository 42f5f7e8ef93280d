"""Every system call of the spool, as small methods of one class.

The spool, its token logs and its doorbells reach the disk only through a `FileSystem`. Tests replace it by a
simulated one that loses unsynced data. Errors are the system's own `OSError`s. New files are 0600 and new
folders 0700, whatever the umask. Knows nothing of requests or of what the names mean.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import functools
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_MOUNT_LINE = re.compile(r"^.+? on (/.*) \((\w+)[,)]")  # what mount(8) prints on macOS
# Of macOS' sys/fcntl.h: empty the drive's cache, or keep the order in it.
_FULLFSYNC, _BARRIERFSYNC = 51, 85
_UNSUPPORTED = {errno.ENOTSUP, errno.EINVAL, errno.ENOTTY}
_OCTAL = re.compile(r"\\([0-7]{3})")  # how /proc/self/mounts writes a space


AnyPath = str | Path


def join(folder: Path, name: str) -> str:
    """Return `folder / name` as text: much faster than pathlib, and every request needs it."""
    return f"{folder}/{name}"


class NotPlainFile(Exception):
    """The path names a folder, link, pipe or socket, an unreadable file, or a file over the size limit."""


@dataclass(frozen=True)
class DiskSpace:
    """The free space for an ordinary user. num_free_files is None where the file system has no limit."""

    num_free_bytes: int
    num_free_files: int | None
    is_read_only: bool = False


@dataclass(frozen=True)
class FileTail:
    """The bytes of a file from an offset on, with the file's inode and size."""

    inode: int
    size: int
    data: bytes


class FileSystem:
    """The real file system. It has no state: any number of threads may share one instance."""

    def make_folder(self, path: Path) -> None:
        """Make one folder, 0700; leave an existing one unchanged."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)

    def make_parents(self, path: Path) -> None:
        """Make the folders above `path`, with the system's usual permissions."""
        os.makedirs(path.parent, exist_ok=True)

    def names(self, folder: Path) -> list[str]:
        """List a folder in no order. Names renamed meanwhile may be missing."""
        return os.listdir(folder)

    def stat(self, path: AnyPath) -> os.stat_result:
        """Return the status of a path; links are not followed."""
        return os.lstat(path)

    def exists(self, path: AnyPath) -> bool:
        """Whether the path exists. Raises any error other than its absence."""
        try:
            os.lstat(path)
        except FileNotFoundError:
            return False
        return True

    def write_new(self, path: AnyPath, data: bytes, *, is_synced: bool) -> None:
        """Write a file that must not exist yet.

        With `is_synced` its data is on the disk after the next `sync_folder`: macOS empties the drive's cache
        on request only, and slowly.
        """
        fd = os.open(path, _NEW, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if is_synced:
                os.fsync(fd)
        finally:
            os.close(fd)

    def read(self, path: AnyPath, max_bytes: int) -> bytes:
        """Read a plain file. Raises NotPlainFile for anything else, and FileNotFoundError."""
        fd, info = _open_plain(path)
        try:
            if info.st_size > max_bytes:
                raise NotPlainFile(f"larger than {max_bytes} bytes")
            return _read_all(fd, 0, info.st_size)
        finally:
            os.close(fd)

    def read_from(self, path: AnyPath, offset: int) -> FileTail:
        """Read a plain file from an offset on; no bytes where it is shorter. Raises as `read` does."""
        fd, info = _open_plain(path)
        try:
            return FileTail(info.st_ino, info.st_size, _read_all(fd, offset, info.st_size - offset))
        finally:
            os.close(fd)

    def read_part(self, path: AnyPath, offset: int, num_bytes: int) -> bytes:
        """Read up to `num_bytes` of a plain file; none behind its end. Raises as `read` does."""
        fd, info = _open_plain(path)
        try:
            return _read_all(fd, offset, min(num_bytes, info.st_size - offset))
        finally:
            os.close(fd)

    def open_append(self, path: AnyPath) -> int:
        """Open a file for appending; make it where it is missing. The caller closes the descriptor."""
        return os.open(path, _APPEND, 0o600)

    def append(self, fd: int, data: bytes) -> int:
        """Append in one write(2); return the number of bytes written, which a full disk may cut short."""
        return os.write(fd, data)

    def sync(self, fd: int) -> None:
        """Sync an open file, as `write_new` does: its data is on the disk after the next `sync_folder`."""
        os.fsync(fd)

    def truncate(self, fd: int, num_bytes: int) -> None:
        """Shorten an open file."""
        os.ftruncate(fd, num_bytes)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def rename(self, source: AnyPath, target: AnyPath) -> None:
        """Move a file within one file system, and replace an existing target."""
        os.rename(source, target)

    def link(self, source: AnyPath, target: AnyPath) -> bool:
        """Give a file a second name; False where that name is taken."""
        try:
            os.link(source, target)
        except FileExistsError:
            return False
        return True

    def unlink(self, path: AnyPath) -> bool:
        """Remove a name; False where it did not exist."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
        return True

    def remove_tree(self, path: Path) -> None:
        """Remove a file or a whole folder; links are not followed."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):  # macOS says EPERM for a folder
            shutil.rmtree(path)

    def set_mode(self, path: Path, mode: int) -> None:
        """Set a path's permissions."""
        os.chmod(path, mode)

    def sync_folder(self, path: Path) -> None:
        """Sync a folder's entries to the disk, and the data of all files synced before."""
        _sync_folder(path, _FULLFSYNC)

    def order_folder(self, path: Path) -> None:
        """Let a folder's entries be on the disk before what is synced later; they need not be there yet."""
        _sync_folder(path, _BARRIERFSYNC)

    def disk_space(self, path: Path) -> DiskSpace:
        """Return the free space of the file system that holds `path`."""
        info = os.statvfs(path)
        num_free_files = info.f_favail if info.f_files else None
        return DiskSpace(info.f_bavail * info.f_frsize, num_free_files, bool(info.f_flag & os.ST_RDONLY))

    def try_lock(self, path: Path) -> int | None:
        """Take an exclusive flock and return the descriptor that holds it; None where it is taken."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        return fd

    def overwrite(self, fd: int, data: bytes) -> None:
        """Replace the content of an open file. Not atomic: for notes to people only."""
        os.pwrite(fd, data, 0)  # before truncating: a full disk may not return freed blocks
        os.ftruncate(fd, len(data))

    def boot_id(self) -> str | None:
        """Return the id of the machine's current boot; None where the system has none."""
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
            return _run(command).strip() or None
        try:
            return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None

    def real_path(self, path: Path) -> Path:
        """Resolve links; keep parts that do not exist yet."""
        return Path(os.path.realpath(path))

    def mounts(self) -> list[tuple[Path, str]]:
        """List (mount point, file system type) of everything mounted, in mount order."""
        if sys.platform == "darwin":
            found = (_MOUNT_LINE.match(line) for line in _run(["/sbin/mount"]).splitlines())
            return [(Path(match[1]), match[2]) for match in found if match]
        fields = [line.split() for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines()]
        return [(Path(_OCTAL.sub(lambda m: chr(int(m[1], 8)), line[1])), line[2]) for line in fields]

    def bind_bell(self, path: Path) -> socket.socket:
        """Listen for datagrams at `path`, which must be free. Never blocks."""
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            bell.setblocking(False)
            bell.bind(str(path))
            os.chmod(path, 0o600)
        except BaseException:
            bell.close()
            raise
        return bell

    def ring_bells(self, paths: list[str]) -> list[OSError | None]:
        """Send a datagram to each path without waiting; return None or the error for each."""
        outcomes: list[OSError | None] = []
        sender = _bell_sender()
        for path in paths:
            try:
                sender.sendto(b"", path)
                outcomes.append(None)
            except OSError as error:
                outcomes.append(error)
        return outcomes


@functools.cache
def _bell_sender() -> socket.socket:
    """Return the socket with which this process rings all bells: making one costs more than a ring."""
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.setblocking(False)
    atexit.register(sender.close)
    return sender


def _open_plain(path: AnyPath) -> tuple[int, os.stat_result]:
    """Open a plain file for reading; the caller closes it. No context manager: every request would pay."""
    try:
        fd = os.open(path, _READ)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _not_plain(path, error) from error
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise NotPlainFile("not a plain file")
    except BaseException:
        os.close(fd)
        raise
    return fd, info


def _run(command: list[str]) -> str:
    """Return what a system command prints; empty where it fails."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ended.stdout


def _read_all(fd: int, offset: int, num_bytes: int) -> bytes:
    parts: list[bytes] = []
    while num_bytes > 0:
        part = os.pread(fd, num_bytes, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        num_bytes -= len(part)
    return b"".join(parts)


def _not_plain(path: AnyPath, error: OSError) -> Exception:
    """Distinguish a foreign object (link, socket, unreadable file) from a transient error."""
    try:
        is_plain = stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return error
    if not is_plain:
        return NotPlainFile("not a plain file")
    return NotPlainFile("may not be read") if isinstance(error, PermissionError) else error


def _sync_folder(path: Path, command: int) -> None:
    """Flush a folder, on macOS by a command. Never retry an error: the kernel may have dropped the pages."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if sys.platform == "darwin":
            try:
                fcntl.fcntl(fd, command)
                return
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
        os.fsync(fd)
    finally:
        os.close(fd)

"""The spool's folder: its layout, and the checks that it may be a spool.

    VERSION            "1"; another version is refused, and nothing is changed
    lock               rank 0 holds it with flock for life; it contains a pid, for people
    epoch              the last epoch given out
    ballast            space set aside so that a result can always be written
    tmp/               files being written; incoming/ requests waiting; active/ requests claimed
    stream/{id}        token logs; done/{id}.json results; asked/{id}.json what was asked, kept as long
    bad/               foreign and damaged files
    cancel/            cancel markers (names.py); idem/ idempotency keys; bell/ doorbells
    files/, batches/   uploaded files and batches of requests (spool/batches/)

The folder is on one local file system; folders are 0700, files 0600. Each step of a request is an atomic
rename or link between the folders. Network file systems (unreliable locks and renames) and FAT (no links) are
therefore refused. Knows nothing of requests.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from pathlib import Path

from spool.errors import SpoolRefused, SpoolUnavailable
from spool.fsio import FileSystem, NotPlainFile, join

VERSION = b"1\n"
FOLDERS = (
    "tmp", "incoming", "active", "stream", "done", "asked", "bad", "cancel", "idem", "bell", "files",
    "batches",
)  # fmt: skip
_FAT = frozenset({"exfat", "fat", "fuse.exfat", "msdos", "umsdos", "vfat"})
_NETWORK = frozenset(
    {
        "9p", "acfs", "afpfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "ftp", "fuse.ceph",
        "fuse.davfs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys", "fuse.grpcfuse", "fuse.rclone",
        "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "macfuse", "ncpfs", "nfs", "nfs4", "ocfs2",
        "osxfuse", "smb2", "smb3", "smbfs", "webdav",
    }
)  # fmt: skip
MAX_NOTE_BYTES = 64
_log = logging.getLogger(__name__)


class SpoolFolder:
    """The paths below one root; the root has no links."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tmp = root / "tmp"
        self.incoming = root / "incoming"
        self.active = root / "active"
        self.stream = root / "stream"
        self.done = root / "done"
        self.asked = root / "asked"
        self.bad = root / "bad"
        self.cancel = root / "cancel"
        self.idem = root / "idem"
        self.bell = root / "bell"
        self.files = root / "files"
        self.batches = root / "batches"
        self.lock = root / "lock"
        self.epoch = root / "epoch"
        self.ballast = root / "ballast"

    def result(self, id: str) -> str:
        """Return the path of a request's result. The id must have been checked."""
        return join(self.done, f"{id}.json")

    def request(self, id: str) -> str:
        """Return the path of an answered request's file. The id must have been checked."""
        return join(self.asked, f"{id}.json")

    def temporary(self) -> str:
        """Return an unused path for a file that is being written."""
        return join(self.tmp, f"{os.getpid()}-{secrets.token_hex(8)}")


def list_names(folder: Path, fs: FileSystem) -> list[str]:
    """List one of the folders. Raises SpoolUnavailable."""
    try:
        return fs.names(folder)
    except OSError as error:
        raise SpoolUnavailable.from_os_error(f"list {folder.name}/", error) from error


def open_folder(root: Path, fs: FileSystem, *, is_synced: bool) -> SpoolFolder:
    """Make or check the folder. Raises SpoolRefused, and SpoolUnavailable where the disk refuses."""
    try:
        folder = SpoolFolder(fs.real_path(root))
        _check_file_system(folder.root, fs)
        new_parents = [path for path in folder.root.parents if not fs.exists(path)]
        fs.make_parents(folder.root)
        fs.make_folder(folder.root)
        _check_version(folder.root, fs, is_synced=is_synced)
        for path in (folder.root, *(folder.root / name for name in FOLDERS)):
            fs.make_folder(path)
            _check_private(path, folder.root, fs)
        if is_synced:
            # A sync covers a folder's entries, not the folder's own name in its parent.
            for path in (folder.root, folder.root.parent, *(path.parent for path in new_parents)):
                fs.sync_folder(path)
    except OSError as error:
        raise SpoolUnavailable.from_os_error(f"open the spool {root}", error) from error
    return folder


def _check_file_system(root: Path, fs: FileSystem) -> None:
    """Refuse network and FAT file systems. The longest mount point above the root is the root's."""
    _, kind = max(
        ((mount, kind) for mount, kind in reversed(fs.mounts()) if root.is_relative_to(mount)),
        key=lambda entry: len(entry[0].parts),
        default=(Path("/"), ""),
    )
    if kind in _NETWORK:
        reason = f"a network file system ({kind}), where locks and renames are unreliable"
    elif kind in _FAT:
        reason = f"a FAT file system ({kind}), which has no links and no permissions"
    else:
        return
    raise SpoolRefused(f"the spool {root} lies on {reason}; set STATE_DIR to a folder on a local disk")


def _check_version(root: Path, fs: FileSystem, *, is_synced: bool) -> None:
    """Read VERSION, or write it into an empty folder. Nothing may change the folder before this check."""
    path = root / "VERSION"
    if not fs.exists(path):
        foreign = [name for name in fs.names(root) if not name.startswith("VERSION")]
        if foreign and not fs.exists(path):
            raise SpoolRefused(
                f"{root} is not empty and has no VERSION file, so it is not a spool; set STATE_DIR to "
                "another folder"
            )
        fresh = root / f"VERSION.{os.getpid()}"
        fs.unlink(fresh)
        fs.write_new(fresh, VERSION, is_synced=is_synced)
        try:
            fs.link(fresh, path)
        finally:
            fs.unlink(fresh)
    try:
        found = fs.read(path, MAX_NOTE_BYTES)
    except NotPlainFile as error:
        raise SpoolRefused(f"{path} is {error}") from error
    if found != VERSION:
        theirs, ours = found.decode(errors="replace").strip(), VERSION.decode().strip()
        raise SpoolRefused(
            f"the spool {root} has version {theirs!r}, and this program serves version {ours}:"
            " run the release that made it, or set STATE_DIR to another folder"
        )


def _check_private(path: Path, root: Path, fs: FileSystem) -> None:
    """Require a real folder on the root's file system that only this user can read: it holds prompts."""
    info = fs.stat(path)
    if not stat.S_ISDIR(info.st_mode):
        raise SpoolRefused(f"{path} is not a folder")
    if info.st_dev != fs.stat(root).st_dev:
        raise SpoolRefused(f"{path} is on another file system than {root}; a spool must be on one")
    if info.st_uid != os.geteuid():
        raise SpoolRefused(
            f"{path} belongs to another user (uid {info.st_uid}); run: sudo chown -R {os.geteuid()} {path}"
        )
    if stat.S_IMODE(info.st_mode) & 0o077:
        _log.warning("other users could read %s; its mode is now 0700", path)
        fs.set_mode(path, 0o700)

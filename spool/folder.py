"""The spool's folder: where things lie, and whether this folder may be a spool at all.

    VERSION            "1"; another one is refused and nothing is touched
    lock               held with flock by rank 0 for life; its content, a pid, is a note to people
    epoch              the last epoch given out
    ballast            space set aside so that a result can always be written
    tmp/               files being written; incoming/ requests waiting; active/ requests claimed
    stream/{id}        token logs; done/{id}.json results; asked/{id}.json what was asked, kept as long
    bad/               what did not belong here
    cancel/            wishes to stop (names.py); idem/ idempotency keys; bell/ doorbells

All of it is one local file system, folder 0700, files 0600. Renames and links between the folders are what
makes every step of a request atomic, so network file systems (locks and renames that are not) and FAT (no
links) are refused. This room knows nothing of requests.
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
FOLDERS = ("tmp", "incoming", "active", "stream", "done", "asked", "bad", "cancel", "idem", "bell")
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
    """Where things lie under one root whose links are resolved."""

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
        self.lock = root / "lock"
        self.epoch = root / "epoch"
        self.ballast = root / "ballast"

    def result(self, id: str) -> str:
        """Where the answer to a request lies. The id must have been checked."""
        return join(self.done, f"{id}.json")

    def request(self, id: str) -> str:
        """Where the file of an answered request lies. The id must have been checked."""
        return join(self.asked, f"{id}.json")

    def temporary(self) -> str:
        """Make up a path for a file that is being written; nobody else has it."""
        return join(self.tmp, f"{os.getpid()}-{secrets.token_hex(8)}")


def list_names(folder: Path, fs: FileSystem) -> list[str]:
    """List one of the folders. Raises SpoolUnavailable."""
    try:
        return fs.names(folder)
    except OSError as error:
        raise SpoolUnavailable.from_os_error(f"list {folder.name}/", error) from error


def open_folder(root: Path, fs: FileSystem, *, is_synced: bool) -> SpoolFolder:
    """Make or check the folder. Raises SpoolRefused, and SpoolUnavailable when the disk says no."""
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
            # A sync covers what is in a folder, not the folder's own name in the one above.
            for path in (folder.root, folder.root.parent, *(path.parent for path in new_parents)):
                fs.sync_folder(path)
    except OSError as error:
        raise SpoolUnavailable.from_os_error(f"open the spool {root}", error) from error
    return folder


def _check_file_system(root: Path, fs: FileSystem) -> None:
    """Refuse what cannot keep the promise. Of the mounts above the root, the longest is the one it is on."""
    _, kind = max(
        ((mount, kind) for mount, kind in reversed(fs.mounts()) if root.is_relative_to(mount)),
        key=lambda entry: len(entry[0].parts),
        default=(Path("/"), ""),
    )
    if kind in _NETWORK:
        reason = f"a network file system ({kind}), where locks and renames cannot be relied on"
    elif kind in _FAT:
        reason = f"a FAT file system ({kind}), which has no links and no permissions"
    else:
        return
    raise SpoolRefused(f"the spool {root} lies on {reason}; set STATE_DIR to a folder on a local disk")


def _check_version(root: Path, fs: FileSystem, *, is_synced: bool) -> None:
    """Read VERSION, or write it into a folder that is empty. Nothing may change the folder before this."""
    path = root / "VERSION"
    if not fs.exists(path):
        strangers = [name for name in fs.names(root) if not name.startswith("VERSION")]
        if strangers and not fs.exists(path):
            raise SpoolRefused(
                f"{root} is not empty and has no VERSION file: it is no spool; set STATE_DIR to another"
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
            f"the spool {root} has version {theirs!r}, this program serves version {ours}:"
            " run the release that made it, or set STATE_DIR to another folder"
        )


def _check_private(path: Path, root: Path, fs: FileSystem) -> None:
    """Prompts are in here: a real folder on the root's file system, ours, and nobody else's to read."""
    info = fs.stat(path)
    if not stat.S_ISDIR(info.st_mode):
        raise SpoolRefused(f"{path} is not a folder")
    if info.st_dev != fs.stat(root).st_dev:
        raise SpoolRefused(f"{path} is on another file system than {root}; a spool must be on one")
    if info.st_uid != os.geteuid():
        raise SpoolRefused(f"{path} belongs to another user (uid {info.st_uid})")
    if stat.S_IMODE(info.st_mode) & 0o077:
        _log.warning("%s was open to other users; it is 0700 now", path)
        fs.set_mode(path, 0o700)

"""What is left on a host made of a network namespace: its processes, listening ports and files."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Leftovers:
    """What is on a host beyond its ssh daemon and what was there at first."""

    processes: tuple[str, ...]  # command lines
    ports: tuple[int, ...]  # listening TCP ports
    files: tuple[str, ...]  # below the home folder, relative to it

    def __bool__(self) -> bool:
        return bool(self.processes or self.ports or self.files)


def find_listening(pid: int) -> set[int]:
    """TCP ports listened on in the network of a process."""
    ports = set()
    for table in ("tcp", "tcp6"):
        rows = Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        ports |= {int(row.split()[1].rpartition(":")[2], 16) for row in rows if row.split()[3] == "0A"}
    return ports


def find_pids(namespace: str) -> set[int]:
    """The running processes of a network namespace."""
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return {int(word) for word in listed.stdout.split() if _is_running(int(word))}


def _is_running(pid: int) -> bool:
    """False for one that has ended and only waits for its parent to notice."""
    return _read_stat(pid)[0] not in ("", "Z")


def _read_stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; an empty one where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return [""]
    return stat.rpartition(")")[2].split()


def kill(pids: set[int]) -> None:
    """Kill these, as far as they are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def read_start_time(pid: int) -> str:
    """Ticks since boot at which the process began; empty where there is none."""
    return "".join(_read_stat(pid)[19:20])


def read_command_line(pid: int) -> str:
    """For people; empty where it has ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return b" ".join(words).decode("utf-8", errors="replace").strip()


def list_files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()
    }

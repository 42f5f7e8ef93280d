"""Raises this process's limits on open files, finds limits that stop a rank, and counts cores.

It only raises limits: a lower hard limit cannot be undone. Of the ranks it knows only their minimum needs.
"""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config.settings import Settings

# Open files of a rank: its packages, its ring and its model's files.
MIN_DESCRIPTORS = 256
# Processes and threads; with fewer, a rank cannot import its packages.
MIN_PROCESSES = 64
MIN_ADDRESS_SPACE_BYTES = 1 << 30
_RAISE = (
    "raise it for this user (Linux: /etc/security/limits.conf, or LimitNOFILE= and the like of its unit; "
    "macOS: sudo launchctl limit), then log in again"
)


# OPEN_MAX: macOS may refuse a higher soft limit whatever the hard one says, "unlimited" included.
MAX_MAC_FILES = 10240


def raise_descriptor_limits(settings: Settings) -> str | None:
    """Raise the limits to the settings' values; return a message where the system allows less."""
    wanted_soft, wanted_hard = settings.file_descriptor_soft_limit, settings.file_descriptor_hard_limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _is_less(hard, wanted_hard) and _set_limits(soft, wanted_hard):
        hard = wanted_hard
    target = wanted_soft if not _is_less(hard, wanted_soft) else hard
    for reachable in (target, min(target, MAX_MAC_FILES)):
        if _is_less(soft, reachable) and _set_limits(reachable, hard):
            soft = reachable
    return _shortfall(soft, hard, wanted_soft, wanted_hard)


def limit_problems(settings: Settings) -> list[str]:
    """Raise the limits on open files, and return the limits of this process that stop every rank."""
    raise_descriptor_limits(settings)
    problems = []
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if _is_less(hard, MIN_DESCRIPTORS):
        problems.append(
            f"a rank needs {MIN_DESCRIPTORS} open files, this process may have {hard} (ulimit -Hn): {_RAISE}"
        )
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if _is_less(processes, MIN_PROCESSES) and os.geteuid() != 0:  # root has no such limit
        problems.append(
            f"a ring needs more than the {processes} processes and threads of this user (ulimit -u): {_RAISE}"
        )
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if _is_less(space, MIN_ADDRESS_SPACE_BYTES):
        problems.append(
            f"a rank needs more than the {space >> 20} MiB of address space that `ulimit -v` allows, and the "
            "model's files beside it: start from a shell with `ulimit -v unlimited`"
        )
    return problems


def count_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_less(limit: int, wanted: int) -> bool:
    return limit != resource.RLIM_INFINITY and limit < wanted


def _set_limits(soft: int, hard: int) -> bool:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (ValueError, OSError):
        # No privilege to raise the hard limit, or above the kernel's limit (macOS: kern.maxfilesperproc).
        return False
    return True


def _shortfall(soft: int, hard: int, wanted_soft: int, wanted_hard: int) -> str | None:
    short = []
    if _is_less(soft, wanted_soft):
        short.append(f"{soft} open files where FILE_DESCRIPTOR_SOFT_LIMIT asks for {wanted_soft}")
    if _is_less(hard, wanted_hard):
        short.append(f"a hard limit of {hard} where FILE_DESCRIPTOR_HARD_LIMIT asks for {wanted_hard}")
    if not short:
        return None
    return (
        f"this system allows only {' and '.join(short)}; raise it for this user (Linux: nofile in "
        "/etc/security/limits.conf, macOS: launchctl limit maxfiles) or lower the setting"
    )

"""Sets this process's limits on open files, and knows how many cores it has.

Limits are only ever raised: a lower hard limit could not be undone. This file knows nothing of who needs
the files.
"""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config.manager import Settings


# OPEN_MAX: macOS may refuse a higher soft limit whatever the hard one says, "unlimited" included.
MAX_MAC_FILES = 10240


def raise_descriptor_limits(settings: Settings) -> str | None:
    """Raise the limits to the settings', as far as the system lets us; return a message where it does not."""
    wanted_soft, wanted_hard = settings.file_descriptor_soft_limit, settings.file_descriptor_hard_limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _is_less(hard, wanted_hard) and _set_limits(soft, wanted_hard):
        hard = wanted_hard
    target = wanted_soft if not _is_less(hard, wanted_soft) else hard
    for reachable in (target, min(target, MAX_MAC_FILES)):
        if _is_less(soft, reachable) and _set_limits(reachable, hard):
            soft = reachable
    return _shortfall(soft, hard, wanted_soft, wanted_hard)


def count_cores() -> int:
    """Cores that this process may use, not those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_less(limit: int, wanted: int) -> bool:
    return limit != resource.RLIM_INFINITY and limit < wanted


def _set_limits(soft: int, hard: int) -> bool:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (ValueError, OSError):
        # Not privileged to raise the hard limit, or above the kernel's own (macOS: kern.maxfilesperproc).
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

"""The machine of a run: processor, memory, system, versions, and how busy it was.

Reads only. Knows no server.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from config import REPOSITORY_ROOT
from config.limits import count_cores

PACKAGES = ("mlx", "mlx-lm", "mkl", "uvicorn")
BUSY_SAMPLE_S = 1.0
QUIET_RATIO = 0.1


def describe_machine() -> dict[str, Any]:
    """Machine and versions."""
    installed = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    return {
        "processor": _read_processor(),
        "num_cores": count_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "versions": {
            "Python": platform.python_version(),
            **{name: installed[name] for name in PACKAGES if name in installed},
        },
        "commit": _read_commit(),
    }


def describe_busy() -> list[str]:
    """A doubt if other programs keep the machine busy now."""
    ratio = psutil.cpu_percent(interval=BUSY_SAMPLE_S) / 100
    return [f"other programs used {ratio:.0%} of the cores at the start"] if ratio > QUIET_RATIO else []


def _read_processor() -> str:
    if sys.platform == "darwin":
        return _run("sysctl", "-n", "machdep.cpu.brand_string")
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^model name\s*: (.+)$", cpuinfo, re.MULTILINE)
    return found[1] if found else platform.machine()


def _read_commit() -> str:
    """The commit, with + if files differ from it; "" without one."""
    head = _run("git", "rev-parse", "--short=12", "HEAD")
    return head + ("+" if head and _run("git", "status", "--porcelain") else "")


def _run(*command: str) -> str:
    try:
        ended = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return ended.stdout.strip() if ended.returncode == 0 else ""

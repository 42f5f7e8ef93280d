"""What a figure was measured on: processor, memory, system, versions, and how busy the machine was.

Reads only. Knows nothing of contenders.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from bench.contender import ROOT
from config.limits import count_cores

PACKAGES = ("mlx", "mlx-lm", "mkl", "uvicorn")
BUSY_SAMPLE_S = 1.0
QUIET_RATIO = 0.1


def describe_machine() -> dict[str, Any]:
    """Machine and versions, for the report."""
    return {
        "processor": _read_processor(),
        "num_cores": count_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _read_version(name))},
        "commit": _read_commit(),
    }


def busy_ratio() -> float:
    """Share of all cores that is in use now, over a second, by whomever."""
    return psutil.cpu_percent(interval=BUSY_SAMPLE_S) / 100


def describe_busy(ratio: float) -> str:
    """A warning where the machine is not quiet, else ""."""
    if ratio <= QUIET_RATIO:
        return ""
    return (
        f"NOT A QUIET MACHINE: others use {ratio:.0%} of the cores; the figures are worse than they should be"
    )


def _read_processor() -> str:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _read_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _read_commit() -> str:
    """The commit, with + where files differ from it; "" where there is none."""
    head = _git("rev-parse", "--short=12", "HEAD")
    return head + ("+" if head and _git("status", "--porcelain") else "")


def _git(*arguments: str) -> str:
    try:
        ended = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return ended.stdout.strip() if ended.returncode == 0 else ""

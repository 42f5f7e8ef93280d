"""The setup that all servers of a run share: model folder, ring size, BLAS threads, and a work folder.

It comes from the settings (flags, environment, .env); without them from the demo's model and ring size. One
run at a time holds the folder. Knows no server.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from cluster.commands.demo import add_demo_settings
from cluster.commands.start import PREPARE, prepare_model
from cluster.errors import ClusterError
from config import REPOSITORY_ROOT, ConfigError, Settings, load_settings
from config.limits import count_cores

T = TypeVar("T")


class BenchError(Exception):
    """A sentence for the user; ends the run with exit code 1."""


@dataclass(frozen=True)
class Setup:
    """The setup of every server."""

    settings: Settings
    model_folder: Path
    num_ranks: int
    folder: Path  # STATE_DIR/bench

    @property
    def num_threads(self) -> int:
        """BLAS threads of each rank."""
        threads = self.settings.blas_threads
        return max(1, count_cores() // self.num_ranks) if threads == "auto" else int(threads)


def make_setup(overrides: Mapping[str, str] | None = None) -> Setup:
    """Load the settings, with `overrides` above all others, and prepare the model.

    Raises:
        BenchError: with the reason.
    """
    overrides = add_demo_settings(overrides or {})
    try:
        settings = load_settings(overrides)
        prepare_model(settings, overrides, PREPARE)
        return Setup(settings, settings.model_dir, settings.local_ranks, settings.state_dir / "bench")
    except (ConfigError, ClusterError) as error:
        raise BenchError(str(error)) from None


@contextlib.contextmanager
def only_run(setup: Setup) -> Iterator[None]:
    """Hold the folder: two runs at once would measure each other."""
    setup.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (setup.folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchError(f"another bench runs in {setup.folder}: wait until it has ended") from None
        yield


def fill(kind: type[T], options: argparse.Namespace) -> T:
    """Make a plan, a dataclass, from the flags with the names of its fields."""
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})  # type: ignore[arg-type]


def run_module(what: str, module: str, *arguments: str, stdin: str = "", limit_s: float | None = None) -> str:
    """Run a module of this repository, return its output; Ctrl-C does not reach it, but ends the wait for it.

    Raises:
        BenchError: it fails, or takes longer than the limit.
    """
    try:
        ended = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=REPOSITORY_ROOT,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{what} did not end in {limit_s:g} s") from None
    if ended.returncode != 0:
        raise BenchError(f"{what} failed: {(ended.stdout + ended.stderr)[-2000:]}")
    return ended.stdout


def say(text: str) -> None:
    """Print progress on standard error: standard output is for results."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

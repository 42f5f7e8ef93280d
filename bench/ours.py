"""This project's service as a contender: its real supervisor, in a STATE_DIR of its own on the same disk.

Started and stopped by `python -m cluster start | stop`, as a user does, on a free port. Every setting that it
runs with and that the user's own service would not have is in `overrides`, with its reason.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.contender import ROOT, BenchError, last_lines, uninterrupted, without_root
from bench.dialects import Generate
from bench.ground import Ground
from bench.load import Server
from cluster.ports import free_ring_ports
from config import Settings, load_settings

HOST = "127.0.0.1"
STOP_LIMIT_S = 90.0
PREFIX = "service-"


class Ours:
    """One service at a time; `settings` are those of the running one."""

    name = "ours"

    def __init__(
        self,
        ground: Ground,
        extra: Mapping[str, tuple[str, str]] | None = None,
        *,
        name: str = "ours",
        makes_drafts: bool | None = None,
    ) -> None:
        """
        Args:
            extra: further overrides, key to (value, reason).
            makes_drafts: with speculation or without; None: as the settings say.
        """
        self._ground, self.name = ground, name
        self.makes_drafts = bool(makes_drafts)
        (port,) = free_ring_ports(HOST, 1)
        self.overrides = {**make_overrides(ground, port), **(extra or {})}
        if makes_drafts is not None:
            self.overrides["SPECULATION"] = ("prompt-lookup" if makes_drafts else "off", "measured apart")
        self.blas = ""
        self._settings: Settings | None = None

    @property
    def settings(self) -> Settings:
        assert self._settings is not None, "only while it is running"
        return self._settings

    @contextmanager
    def running(self) -> Iterator[Server]:
        """Start the service, hand out its address, and stop it whatever happens.

        Raises:
            BenchError: it did not become ready.
        """
        stop_leftovers(self._ground.folder)
        state_dir = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._ground.folder))
        values = {key: value for key, (value, _) in self.overrides.items()} | {"STATE_DIR": str(state_dir)}
        self._settings = load_settings(values)
        try:
            self._start(values, state_dir)
            self.blas = read_blas(self._settings.log_dir)
            yield Server(HOST, self._settings.api_port, Generate())
        finally:
            with uninterrupted():
                stop_service(state_dir)
            shutil.rmtree(state_dir, ignore_errors=True)

    def describe(self) -> Mapping[str, Any]:
        """For the report."""
        shown = {
            key: {"value": without_root(value), "reason": reason}
            for key, (value, reason) in self.overrides.items()
        }
        return {
            "name": self.name,
            "num_ranks": self._ground.num_ranks,
            "blas": self.blas,
            "overrides": shown,
        }

    def _start(self, values: Mapping[str, str], state_dir: Path) -> None:
        settings = self.settings
        limit_s = settings.connect_timeout + settings.load_timeout + 60
        flags = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
        output = state_dir / "start.log"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "cluster", "start", *flags],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to handle
            )
            try:
                code = process.wait(timeout=limit_s)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                process.kill()
                process.wait()
        if code != 0:
            raise BenchError(f"our service did not start (exit code {code}). {last_lines([output])}")


def make_overrides(ground: Ground, port: int) -> dict[str, tuple[str, str]]:
    """What our service runs with that the user's would not; STATE_DIR is added at each start."""
    return {
        "MODEL_REPO": (str(ground.model_folder), "the same folder for every contender"),
        "LOCAL_RANKS": (str(ground.num_ranks), "the same ring size for every contender"),
        "CPU_BLAS": (ground.blas, "the same BLAS for every contender"),
        "BLAS_THREADS": (
            str(ground.settings.blas_threads),
            "as set; auto: the same cores for every contender",
        ),
        "API_HOST": (HOST, "beside a running service"),
        "API_PORT": (str(port), "beside a running service"),
        "API_KEYS_FILE": ("", "the load sends no key"),
        "RING_SECRET_FILE": ("", "made new in its own STATE_DIR"),
        "LOG_FILE": ("", "logs in its own STATE_DIR"),
        "MAX_PROMPT_LEN_BYTES": ("65536", "the long prompt has more than 4096 bytes"),
        "SHUTDOWN_TIMEOUT": ("5", "a bench that is broken off must not wait for its answers"),
        "REQUEST_TIMEOUT": ("600", "a busy machine must give a slow figure, not an error"),
    }


def stop_service(state_dir: Path) -> None:
    """Stop the service of a STATE_DIR, if there is one; returns when it is gone.

    Raises:
        BenchError: it does not stop.
    """
    stop = [sys.executable, "-m", "cluster", "stop", "--set", f"STATE_DIR={state_dir}"]
    try:
        ended = subprocess.run(
            stop,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=STOP_LIMIT_S,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"our service in {state_dir} did not stop in {STOP_LIMIT_S:g} s") from None
    if ended.returncode != 0:
        raise BenchError(f"our service in {state_dir} did not stop: {ended.stdout}{ended.stderr}")


def stop_leftovers(folder: Path) -> None:
    """Stop what a bench that was killed left running; the caller holds the bench's folder."""
    for state_dir in folder.glob(f"{PREFIX}*"):
        stop_service(state_dir)
        shutil.rmtree(state_dir, ignore_errors=True)


def read_blas(log_dir: Path) -> str:
    """What a rank's log says of BLAS and products; "" where it says nothing, as on macOS."""
    for path in sorted(log_dir.glob("*rank*")):
        text = path.read_text(encoding="utf-8", errors="replace")
        found, products = re.search(r"BLAS: (.+)", text), re.search(r"packed weights by (.+)", text)
        more = re.search(r"products take (\d+) threads", text)
        if found:
            told = f", {products[1]}" if products else ""
            return found[1].strip() + told + (f" ({more[1]} threads while alone)" if more else "")
    return ""

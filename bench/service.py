"""This project's service as a server to measure: its real supervisor, in a STATE_DIR of its own.

The bench starts and stops it by `python -m cluster start | stop`, as a user does, on a free port. It runs
with the user's settings, except those in `make_overrides`.
"""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.client import Reply, Server
from bench.setup import BenchError, Setup, run_module
from cluster.ports import free_ring_ports
from config import load_settings
from spool import Result, Spool

HOST = "127.0.0.1"
OURS = "ours"
START_GRACE_S, STOP_LIMIT_S = 60.0, 90.0
PREFIX = "service-"
SHOWN_KEYS = ("SPECULATION", "MICROBATCHES", "CPU_PRODUCTS", "SPOOL_DURABILITY")


class Service:
    """One service at a time; `settings` are those of the running one, `extra` the ones above all others."""

    def __init__(self, setup: Setup, extra: Mapping[str, str] | None = None) -> None:
        self._setup, self._extra = setup, dict(extra or {})
        self.name, self.blas, self.settings = OURS, "", setup.settings

    @contextmanager
    def running(self) -> Iterator[Server]:
        """Start the service, yield its address, and stop it in any case.

        Raises:
            BenchError: it did not become ready.
        """
        stop_leftovers(self._setup.folder)
        state_dir = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._setup.folder))
        # The other servers know no sampling defaults of a model.
        values = {"SAMPLING_DEFAULTS": "neutral", **make_overrides(self._setup), **self._extra}
        values["STATE_DIR"] = str(state_dir)
        self.settings = load_settings(values)
        try:
            flags = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
            limit_s = self.settings.connect_timeout + self.settings.load_timeout + START_GRACE_S
            run_module("starting our service", "cluster", "start", *flags, limit_s=limit_s)
            self.blas = read_blas(self.settings.log_dir)
            yield Server(HOST, self.settings.api_port)
        finally:
            with uninterrupted():
                stop_service(state_dir)

    def results(self, replies: Sequence[Reply]) -> list[Result]:
        """Read the answers' results from the spool of the running service.

        Raises:
            BenchError: a request was not answered.
        """
        spool = Spool.open(self.settings.spool_dir, durability=self.settings.spool_durability)
        found = []
        for reply in replies:
            result = None if reply.error else spool.read_result(reply.id.rpartition("-")[2])
            if result is None:
                raise BenchError(f"a request was not answered: {reply.error or 'it has no result file'}")
            found.append(result)
        return found

    def describe(self) -> dict[str, Any]:
        """The ring and settings, for the report."""
        values = self.settings.public()
        shown = {key: str(values[key]) for key in SHOWN_KEYS}
        return {"name": self.name, "num_ranks": self._setup.num_ranks, "blas": self.blas, "settings": shown}


def make_overrides(setup: Setup) -> dict[str, str]:
    """Settings of our service that differ from the user's; each start adds STATE_DIR."""
    (port,) = free_ring_ports(HOST, 1)
    return {
        "MODEL_REPO": str(setup.model_folder),
        "LOCAL_RANKS": str(setup.num_ranks),
        "WORKER_HOSTS": "",  # as the peer, on this machine alone
        "RING_HOSTFILE": "",
        "API_HOST": HOST,  # beside a running service
        "API_PORT": str(port),
        "API_KEYS_FILE": "",  # the load sends no key
        "RING_SECRET_FILE": "",  # made new in its own STATE_DIR, as its logs
        "LOG_FILE": "",
        "SHUTDOWN_TIMEOUT": "5",  # an interrupted bench must not wait for its answers
        "REQUEST_TIMEOUT": "600",  # a busy machine must give a slow figure, not an error
    }


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C during a clean-up; every clean-up has a time limit."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def stop_service(state_dir: Path) -> None:
    """Stop the service of a STATE_DIR, if one runs, wait for its end, and remove the folder.

    Raises:
        BenchError: it does not stop.
    """
    flags = ("--set", f"STATE_DIR={state_dir}")
    run_module(f"stopping our service in {state_dir}", "cluster", "stop", *flags, limit_s=STOP_LIMIT_S)
    shutil.rmtree(state_dir, ignore_errors=True)


def stop_leftovers(folder: Path) -> None:
    """Stop services that a killed bench left behind; the caller holds the bench's folder."""
    for state_dir in folder.glob(f"{PREFIX}*"):
        stop_service(state_dir)


def read_blas(log_dir: Path) -> str:
    """BLAS and products from a rank's log; "of the system" if the log names none, as on macOS."""
    for path in sorted(log_dir.glob("*rank*")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"BLAS: (.+)", text):
            products = re.search(r"packed weights by (.+)", text)
            return found[1].strip() + (f", {products[1]}" if products else "")
    return "of the system"

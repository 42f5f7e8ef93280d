"""Rows 16, 17 and 33 of the faults, for real: STATE_DIR on a disk that is full, read-only or out of inodes.

The disk is a small tmpfs that only root can mount; elsewhere these tests are skipped. The service is a real
one, with a simulated model that takes its time for each token.
"""

import http.client
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.client import read_events
from cluster.service import Service
from cluster.start import PREPARE, SUPERVISOR, start
from tests.cluster_service import Bench, find_free_port

pytestmark = pytest.mark.slow

MODEL = "simulated:layers=2,layer_us=15000,row_us=0,token_us=0,vocab=1024,hidden=16"
DISK_MB = 100
NUM_TOKENS = 120
NUM_WAITING = 8
LIMIT_S = 30.0
ANY_WAIT = 0.05


class RealBench(Bench):
    """The service as `./launch.sh start` makes it."""

    def start(self) -> int:
        return start(self.settings, self.overrides, self.terminal, supervisor=SUPERVISOR, prepare=PREPARE)


@dataclass
class Disk:
    """A mounted file system of a few megabytes, and what fills it."""

    folder: Path

    @property
    def filler(self) -> Path:
        return self.folder / "filler"

    def fill(self) -> None:
        """Leave not a byte."""
        for size in ("64k", "4k", "1"):
            words = ["dd", "if=/dev/zero", f"of={self.filler}.{size}", f"bs={size}", "status=none"]
            assert subprocess.run(words, check=False, capture_output=True).returncode == 1

    def make_room(self) -> None:
        """Give all of it back."""
        for path in self.folder.glob("filler*"):
            path.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Let nothing be opened for writing, by a second mount over the first."""
        subprocess.run(["mount", "--bind", str(self.folder), str(self.folder)], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", str(self.folder)], check=True)
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@contextmanager
def mounted(folder: Path, options: str = f"size={DISK_MB}m") -> Iterator[Disk]:
    """A tmpfs, gone at the end."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("this system has no mount")
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


@contextmanager
def serving(tmp_path: Path, state: Path, **overrides: str) -> Iterator[RealBench]:
    """A running service with its STATE_DIR there."""
    root = tmp_path / "root"
    root.mkdir(exist_ok=True)
    values = {
        "STATE_DIR": str(state),
        "MODEL_CACHE_DIR": str(tmp_path / "models"),
        "MODEL_REPO": MODEL,
        "LOCAL_RANKS": "2",
        "API_PORT": str(find_free_port()),
        "MICROBATCHES": "1",
        "MAX_ROWS_PER_MICROBATCH": "1",
        "SPARE_RANKS": "off",
        "SHUTDOWN_TIMEOUT": "1",
        **overrides,
    }
    bench = RealBench(values, root)
    try:
        assert bench.start() == 0, bench.output.getvalue()
        yield bench
    finally:
        bench.stop()


def ask(bench: Bench, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """One HTTP request; status and JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", bench.settings.api_port, timeout=LIMIT_S)
    try:
        connection.request(
            method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")
    finally:
        connection.close()


def make_body(max_tokens: int, **more: Any) -> dict[str, Any]:
    return {"prompt": "go on", "max_tokens": max_tokens, **more}


@dataclass
class Stream:
    """A client that reads a stream in a thread of its own."""

    bench: Bench
    tokens: list[int] = field(default_factory=list)
    end: dict[str, Any] | None = None
    trouble: str | None = None

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.bench.settings.api_port, timeout=LIMIT_S)
        try:
            body = json.dumps(make_body(NUM_TOKENS, stream=True))
            connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
            for event, data in read_events(iter(connection.getresponse())):
                if event == "token":
                    self.tokens.append(data["index"])
                elif event in ("done", "error"):
                    self.end = data
        except (OSError, http.client.HTTPException) as error:
            self.trouble = repr(error)
        finally:
            connection.close()

    @property
    def has_ended(self) -> bool:
        return self.end is not None

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()


def until(holds: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Wait for something that has no event."""
    deadline = time.monotonic() + limit_s
    pause = threading.Event()
    while not holds():
        assert time.monotonic() < deadline
        pause.wait(ANY_WAIT)


def pids(service: Service) -> dict[str, int]:
    """Every process of the service."""
    found = {name: identity.pid for name, identity in service.processes.items()}
    assert service.holder is not None
    return found | {"supervisor": service.holder.pid}


def are_done(bench: Bench, ids: list[str]) -> bool:
    return all(ask(bench, "GET", f"/requests/{one}")[1].get("state") == "done" for one in ids)


def test_a_full_disk_ends_no_process_and_no_stream(tmp_path: Path) -> None:
    """Row 33: 507 at accept, reasons in readyz and status; the stream goes on; all well with room."""
    with mounted(tmp_path / "state") as disk, serving(tmp_path, disk.folder) as bench:
        before = pids(bench.read())
        stream = Stream(bench)
        until(lambda: len(stream.tokens) >= 5)
        body = make_body(3, background=True)
        accepted = [ask(bench, "POST", "/generate", body) for _ in range(NUM_WAITING)]
        assert {status for status, _ in accepted} == {202}
        disk.fill()
        num_tokens = len(stream.tokens)
        written = bench.read().ring["updated_unix"]

        status, answer = ask(bench, "POST", "/generate", make_body(3))
        assert (status, answer["error"]["code"]) == (507, "disk_full")
        status, answer = ask(bench, "GET", "/readyz")
        assert status == 503
        assert "disk is nearly full" in answer["reason"]
        service = bench.read()
        assert (service.state, service.exit_code) == ("degraded", 1)
        assert "disk is nearly full" in str(service.reason)
        until(lambda: bench.read().ring["updated_unix"] > written)
        until(lambda: len(stream.tokens) >= num_tokens + 20)
        assert not stream.has_ended, "these came while the disk was full"
        stream.join()
        assert stream.trouble is None
        assert stream.tokens == list(range(NUM_TOKENS))
        assert stream.end is not None
        assert stream.end["finish_reason"] == "length"
        assert pids(bench.read()) == before

        disk.make_room()
        until(lambda: ask(bench, "GET", "/readyz")[0] == 200)
        until(lambda: are_done(bench, [answer["id"] for _, answer in accepted]))
        assert ask(bench, "POST", "/generate", make_body(3))[0] == 200
        service = bench.read()
        assert (service.state, service.reason, service.troubles) == ("ready", None, [])
        assert (service.supervisor["restarts"], pids(service)) == (0, before)

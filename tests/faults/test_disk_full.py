"""Rows 16, 17 and 33 of the faults, for real: STATE_DIR on a disk that is full, read-only or out of inodes.

The disk is a small tmpfs that only root can mount; elsewhere these tests are skipped. The service is a real
one, with a simulated model that takes its time for each token.
"""

import itertools
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cluster.commands.requests.client import stream
from cluster.commands.start import PREPARE, SUPERVISOR, start
from cluster.errors import ClusterError
from cluster.supervisor.service import STALE_S, Service
from tests.services.cluster_service import Bench, find_free_port, run_supervisor
from tests.services.waiting import until

pytestmark = pytest.mark.slow

MODEL = "simulated:layers=2,layer_us=15000,row_us=0,token_us=0,vocab=1024,hidden=16"
DISK_MB = 100
NUM_TOKENS = 90
NUM_WAITING = 3
LIMIT_S = 30.0


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

    def use_up_inodes(self) -> None:
        """Leave room, and no file to be made."""
        for number in itertools.count():
            try:
                (self.folder / f"filler.{number}").touch()
            except OSError:
                return

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
    address = f"http://127.0.0.1:{bench.settings.api_port}{path}"
    answer = httpx2.request(method, address, json=body, timeout=LIMIT_S)
    return answer.status_code, answer.json()


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
        settings, body = self.bench.settings, make_body(NUM_TOKENS)
        try:
            for event, data in stream(settings, ("127.0.0.1", settings.api_port), body):
                if event == "token":
                    self.tokens.append(data["index"])
                elif event == "done":
                    self.end = data
        except ClusterError as error:
            self.trouble = str(error)

    @property
    def has_ended(self) -> bool:
        return self.end is not None

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()


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
        reader = Stream(bench)
        until(lambda: len(reader.tokens) >= 5)
        body = make_body(3, background=True)
        accepted = [ask(bench, "POST", "/generate", body) for _ in range(NUM_WAITING)]
        assert {status for status, _ in accepted} == {202}
        disk.fill()
        num_tokens = len(reader.tokens)
        written = bench.read().ring["updated_unix"]

        expect_trouble(bench, "disk is nearly full", (507, "disk_full"))
        until(lambda: bench.read().ring["updated_unix"] > written)
        until(lambda: len(reader.tokens) >= num_tokens + 10)
        assert not reader.has_ended, "these came while the disk was full"
        reader.join()
        assert reader.trouble is None
        assert reader.tokens == list(range(NUM_TOKENS))
        assert reader.end is not None
        assert reader.end["finish_reason"] == "length"
        assert pids(bench.read()) == before

        disk.make_room()
        until(lambda: are_done(bench, [answer["id"] for _, answer in accepted]))
        expect_well(bench)
        service = bench.read()
        assert (service.supervisor["restarts"], pids(service)) == (0, before)


def wait_until_up(bench: Bench, num_restarts: int) -> None:
    """Wait for the end of a restart."""
    until(lambda: bench.read().supervisor["restarts"] == num_restarts and bench.read().is_up)


def expect_trouble(bench: Bench, words: str, code: tuple[int, str]) -> None:
    """Nothing is accepted, for a reason that readyz and status give; all processes are well."""
    status, answer = ask(bench, "POST", "/generate", make_body(3))
    assert (status, answer["error"]["code"]) == code
    status, answer = ask(bench, "GET", "/readyz")
    assert (status, answer["status"]) == (503, code[1])
    assert words in answer["reason"]
    service = bench.read()
    assert (service.state, service.exit_code, service.is_up) == ("degraded", 1, True)
    assert words in str(service.reason)


def expect_well(bench: Bench) -> None:
    """Ready again by itself, and requests are answered."""
    until(lambda: ask(bench, "GET", "/readyz")[0] == 200)
    assert ask(bench, "POST", "/generate", make_body(3))[0] == 200
    until(lambda: (bench.read().state, bench.read().troubles) == ("ready", []))


def test_a_start_on_a_full_disk_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    """One sentence before anything is started: what is full, and what helps."""
    with mounted(tmp_path / "state", "size=1m") as disk:
        disk.fill()
        values = {"STATE_DIR": str(disk.folder), "MODEL_REPO": MODEL, "API_PORT": str(find_free_port())}
        bench = RealBench(values, tmp_path)
        with pytest.raises(ClusterError, match=r"STATE_DIR cannot be used: .*No space left on device; make"):
            bench.start()
        disk.make_room()
        with pytest.raises(ClusterError, match=r"the disk is nearly full: . MiB free, .. MiB needed"):
            bench.start()
        assert bench.read().holder is None


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "use_up", "words"),
    [
        (f"size={DISK_MB}m", Disk.fill, "disk is nearly full"),
        (f"size={DISK_MB}m,nr_inodes=800", Disk.use_up_inodes, "nearly out of files (inodes)"),
    ],
)
def test_an_idle_ring_on_a_disk_without_room_is_not_held_to_be_dead(
    tmp_path: Path, options: str, use_up: Callable[[Disk], None], words: str
) -> None:
    """Row 33: longer than a silent rank 0 is believed."""
    with mounted(tmp_path / "state", options) as disk, serving(tmp_path, disk.folder) as bench:
        before = pids(bench.read())
        use_up(disk)
        time.sleep(STALE_S + 2)
        expect_trouble(bench, words, (507, "disk_full"))
        disk.make_room()
        expect_well(bench)
        assert pids(bench.read()) == before


@pytest.mark.long
def test_a_disk_that_can_only_be_read_ends_no_process(tmp_path: Path) -> None:
    """Row 17: not even the status can be written; a stream ends when it can be."""
    with mounted(tmp_path / "state") as disk, serving(tmp_path, disk.folder) as bench:
        before = pids(bench.read())
        reader = Stream(bench)
        until(lambda: len(reader.tokens) >= 5)
        with disk.read_only():
            time.sleep(STALE_S + 2)
            expect_trouble(bench, "the disk is mounted read-only", (503, "read_only"))
        reader.join()
        assert (reader.trouble, reader.tokens) == (None, list(range(NUM_TOKENS)))
        expect_well(bench)
        assert pids(bench.read()) == before
        log = (bench.settings.log_dir / "rank-0.log").read_text()
        assert log.count("ring.json cannot be written: Read-only file system") == 1


@pytest.mark.long
def test_what_is_killed_on_a_full_disk_comes_back_there(tmp_path: Path) -> None:
    """Row 33: rank 0 and the front door start with a full STATE_DIR, and a supervisor after a boot, too."""
    with mounted(tmp_path / "state") as disk, serving(tmp_path, disk.folder) as bench:
        disk.fill()
        for number, name in enumerate(("rank 0", "api"), 1):
            bench.read().processes[name].send(signal.SIGKILL)
            wait_until_up(bench, num_restarts=number)
        expect_trouble(bench, "disk is nearly full", (507, "disk_full"))
        bench.stop()
        with pytest.raises(ClusterError, match="STATE_DIR cannot be used"):
            bench.start()
        with run_supervisor(bench, SUPERVISOR):
            until(lambda: bench.read().is_up)
            expect_trouble(bench, "disk is nearly full", (507, "disk_full"))
            disk.make_room()
            expect_well(bench)


@pytest.mark.long
def test_full_disks_beside_state_dir_cost_log_lines_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 33: LOG_FILE and the system's temporary files."""
    with mounted(tmp_path / "other", "size=1m") as disk:
        disk.fill()
        monkeypatch.setenv("TMPDIR", str(disk.folder))
        with serving(tmp_path, tmp_path / "state", LOG_FILE=str(disk.folder / "all.log")) as bench:
            bench.read().processes["rank 1"].send(signal.SIGKILL)
            wait_until_up(bench, num_restarts=1)
            expect_well(bench)
            log = (bench.settings.log_dir / "rank-0.log").read_text()
            assert log.count("all.log cannot be written: No space left on device; log lines are lost") == 2

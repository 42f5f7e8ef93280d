"""Faults of single processes of the service: rows 8, 13, 14 and 21 of faults.md."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.supervisor.running import Programs, Running
from cluster.supervisor.state_file import SupervisorState
from config import REPOSITORY_ROOT as ROOT
from config import load_settings
from spool import Spool, SpoolOwner
from tests.services.cluster_service import Bench, run_supervisor

pytestmark = pytest.mark.slow


def test_a_silent_rank_gets_the_time_of_a_step_within_bounds(tmp_path: Path) -> None:
    """Row 8: heartbeats come once a second, so no limit is below two of them, none above ten seconds."""
    found = []
    for step_timeout in ("1", "5", "60"):
        settings = load_settings({"STEP_TIMEOUT": step_timeout}, root=tmp_path, environ={})
        state = SupervisorState(1, 0.0, 0.0, {}, {}, {})
        found.append(Running(settings, {}, Programs(), state, lambda: None).heartbeat_limit_s)
    assert found == [2.5, 5.0, 10.0]


def test_a_stopped_rank_is_replaced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 8: SIGSTOP; the reason names the rank, which is gone."""
    monkeypatch.setenv("FAKE_HEARTBEAT_LIMIT_S", "1")
    bench.start()
    for epoch, rank in enumerate(("rank 0", "rank 1"), 2):
        before = bench.read()
        before.processes[rank].send(signal.SIGSTOP)
        bench.wait_until(lambda service: service.state == "ready" and service.ring["epoch"] == epoch)  # noqa: B023 - called at once
        assert f"{rank} sent no heartbeat" in (bench.settings.log_dir / "supervisor.log").read_text()
        assert not before.processes[rank].is_alive()


def test_a_rank_that_never_starts_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 13: after CONNECT_TIMEOUT the reason in both status files is that rank's, not its neighbour's."""
    monkeypatch.setenv("FAKE_RANK", "hang:1")
    bench.overrides["CONNECT_TIMEOUT"] = "1"
    with run_supervisor(bench):
        service = bench.wait_until(
            lambda service: bool(service.supervisor.get("reason") and service.ring.get("reason"))
        )
        reason = "rank 1 did not start within CONNECT_TIMEOUT=1 s"
        assert service.supervisor["reason"] == service.ring["reason"] == reason
        assert service.supervisor["failed_process"] == "rank 1"


def run_server(tmp_path: Path, *flags: str, input: str = "") -> subprocess.CompletedProcess[str]:
    """A rank that nobody supervises, to its end."""
    return subprocess.run(
        [sys.executable, str(ROOT / "server.py"), *flags],
        input=input,
        env={**os.environ, "STATE_DIR": str(tmp_path / "state"), "MODEL_REPO": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        ("", 5, "no start line"),
        ("{}\n", 2, "was not started by a supervisor"),
        (
            '{"epoch": 1, "rank": 1, "hosts": ["127.0.0.1:1"], "secret": ""}\n',
            2,
            "there is no rank 1 in a ring of 1",
        ),
    ],
)
def test_a_rank_without_its_ring_refuses_to_run(tmp_path: Path, line: str, code: int, sentence: str) -> None:
    """Row 14: no start line, or one of a world of one, is a sentence and an exit code, not a ring of one."""
    ended = run_server(tmp_path, "--rank", "1", input=line)
    assert (ended.returncode, sentence in ended.stderr) == (code, True), ended.stderr
    assert not (tmp_path / "state" / "spool").exists()


def test_a_second_rank_0_names_the_first_and_exits(tmp_path: Path) -> None:
    """Row 21: the spool's lock makes rank 0 the only one of its spool."""
    with SpoolOwner(Spool.open(tmp_path / "state" / "spool", durability="process")):
        ended = run_server(tmp_path)
    assert ended.returncode == 2
    assert str(os.getpid()) in ended.stderr

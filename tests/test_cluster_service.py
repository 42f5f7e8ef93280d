"""The supervisor and its commands over real processes: fake ranks and front door, real pipes and signals."""

import os
import re
import signal
import subprocess
import sys

import pytest

from cluster import ports
from cluster.errors import ClusterError, PortTaken, StartFailed
from cluster.lock import SupervisorLock
from cluster.processes import identify
from cluster.status import describe
from cluster.trial import run_trial
from config.run_files import write_json
from tests.cluster_service import SUPERVISOR, Bench

pytestmark = pytest.mark.slow


def test_start_makes_a_ring_ready_and_stop_leaves_nothing(bench: Bench) -> None:
    """After start every process runs and answers; after stop none does and the port is free."""
    assert bench.start() == 0
    service = bench.read()
    assert service.exit_code == 0
    assert list(service.processes) == ["rank 0", "rank 1", "api"]
    assert bench.get_health() == service.processes["api"].pid
    context = "context: 4096 tokens of prompt and answer together"
    for shown in (bench.output.getvalue(), "\n".join(describe(service, bench.terminal))):
        assert context in shown
        assert "MAX_SEQUENCE_LENGTH=auto" in shown
        assert "beyond 2048, the model's own length" in shown

    assert bench.stop() == 0
    stopped = bench.read()
    assert stopped.exit_code == 3
    assert not any(identity.is_alive() for identity in service.processes.values())
    assert [entry["exit"] for entry in stopped.supervisor["processes"]] == [0, 0, 0]
    assert stopped.ring["phase"] == "stopped"
    assert ports.is_free(*service.api_address or ("", 0))
    assert bench.stop() == 0, "stopping what does not run is no error"


def test_a_second_start_names_the_holder_and_reuses_the_service(bench: Bench) -> None:
    """The second of two starts says which supervisor serves already, and starts nothing."""
    bench.start()
    before = bench.read()
    assert before.holder
    assert bench.start() == 0
    assert f"Already running (supervisor {before.holder.pid}" in bench.output.getvalue()
    assert bench.read().processes == before.processes


def test_a_second_start_with_other_settings_is_refused(bench: Bench) -> None:
    """Settings that the running service does not have are named, not dropped."""
    bench.start()
    bench.overrides["LOCAL_RANKS"] = "3"
    with pytest.raises(ClusterError, match="LOCAL_RANKS is 2 there, 3 here"):
        bench.start()


@pytest.mark.parametrize("rank", ["rank 0", "rank 1"])
def test_a_killed_rank_gives_a_new_ring_under_a_new_epoch(bench: Bench, rank: str) -> None:
    """One rank killed: all ranks are replaced, the epoch rises, and the front door is the same process."""
    bench.start()
    before = bench.read()
    before.processes[rank].send(signal.SIGKILL)
    after = bench.wait_until(lambda service: service.state == "ready" and service.ring["epoch"] == 2)
    assert after.supervisor["epoch"] == 2
    assert after.supervisor["restarts"] == 1
    assert after.processes["api"] == before.processes["api"]
    for name in ("rank 0", "rank 1"):
        assert after.processes[name] != before.processes[name]
        assert not before.processes[name].is_alive()
    log = (bench.settings.log_dir / "supervisor.log").read_text()
    assert f"{rank} was killed by SIGKILL" in log


def test_a_stopped_rank_counts_as_dead_when_its_heartbeats_stop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank under SIGSTOP sends nothing: the ring is rebuilt and the stopped process is gone."""
    monkeypatch.setenv("FAKE_HEARTBEAT_LIMIT_S", "2")
    bench.start()
    before = bench.read()
    before.processes["rank 1"].send(signal.SIGSTOP)
    bench.wait_until(lambda service: service.state == "ready" and service.ring["epoch"] > 1)
    assert not before.processes["rank 1"].is_alive()
    assert "rank 1 sent no heartbeat" in (bench.settings.log_dir / "supervisor.log").read_text()


def test_a_killed_front_door_is_replaced_alone_and_no_connection_is_refused(bench: Bench) -> None:
    """The socket outlives the front door: a request sent right after the kill is answered by the next one."""
    bench.start()
    before = bench.read()
    api = before.processes["api"]
    api.send(signal.SIGKILL)
    api.wait(5.0)
    assert bench.get_health() != api.pid
    after = bench.wait_until(lambda service: service.state == "ready")
    assert after.supervisor["epoch"] == before.supervisor["epoch"]
    assert after.processes["rank 1"] == before.processes["rank 1"]


def test_a_killed_supervisor_leaves_no_orphans_and_start_works_again(bench: Bench) -> None:
    """Ranks and front door end with their supervisor; the next one begins a higher epoch on the same port."""
    bench.start()
    before = bench.read()
    assert before.holder
    before.holder.send(signal.SIGKILL)
    for identity in before.processes.values():
        assert identity.wait(5.0)
    assert bench.read().exit_code == 3
    assert bench.start() == 0
    assert bench.read().supervisor["epoch"] == 2


def test_a_rank_that_hangs_when_its_supervisor_is_killed_is_ended_by_the_next(bench: Bench) -> None:
    """What a killed supervisor left behind is ended by pid and start time before a new ring is made."""
    bench.start()
    before = bench.read()
    assert before.holder
    before.processes["rank 1"].send(signal.SIGSTOP)
    before.holder.send(signal.SIGKILL)
    before.holder.wait(5.0)
    assert bench.start() == 0
    assert not before.processes["rank 1"].is_alive()


def test_a_front_door_that_outlives_its_supervisor_does_not_keep_the_port(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A front door left behind with the listening socket is ended before the port is looked at."""
    monkeypatch.setenv("FAKE_API", "deaf")
    bench.start()
    before = bench.read()
    assert before.holder
    before.holder.send(signal.SIGKILL)
    assert before.processes["rank 0"].wait(5.0)
    assert before.processes["api"].is_alive()
    assert bench.start() == 0
    assert not before.processes["api"].is_alive()


def test_a_refusing_front_door_fails_the_start(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2 of the front door is not tried again, and its last line is the reason."""
    monkeypatch.setenv("FAKE_API", "refuse")
    with pytest.raises(StartFailed, match="exited with code 2: api: API_KEYS_FILE holds no key"):
        bench.start()
    assert bench.read().exit_code == 3


def test_a_reused_pid_is_not_killed(bench: Bench) -> None:
    """A pid in the status file that belongs to another process now is left alone by stop and by start."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        identity = identify(stranger.pid)
        assert identity
        entry = {"name": "rank 0", "pid": stranger.pid, "start_time": identity.start_time - 1000}
        write_json(bench.settings.run_dir / "supervisor.json", {**entry, "processes": [entry]})
        write_json(bench.settings.run_dir / "supervisor.lock", entry)
        assert bench.stop() == 0
        assert bench.start() == 0
        assert bench.stop() == 0
        assert stranger.poll() is None
        stranger.communicate(b"\n")


def test_a_refusing_rank_fails_the_start_with_its_own_words(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2 is not tried again: the rank's last line is the reason, and nothing is left running."""
    monkeypatch.setenv("FAKE_RANK", "refuse:1")
    with pytest.raises(StartFailed, match="rank 1 exited with code 2: rank 1: LAYER_SPLIT does not fit"):
        bench.start()
    service = bench.read()
    assert service.exit_code == 3
    assert service.supervisor["epoch"] == 1
    assert not any(identity.is_alive() for identity in service.processes.values())


def test_repeated_failures_open_the_breaker_and_keep_the_reason(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After five lives without progress the start fails with the last reason and shows the log's end."""
    monkeypatch.setenv("FAKE_RANK", "crash:0")
    with pytest.raises(StartFailed, match="rank 0 exited with code 1: rank 0: the weights are broken"):
        bench.start()
    assert bench.read().supervisor["epoch"] == 5
    assert "rank 0: the weights are broken" in bench.output.getvalue()


def test_an_open_breaker_keeps_the_front_door_and_says_why(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ring that is given up later leaves the front door up and the reason in both status files."""
    monkeypatch.setenv("FAKE_RANK", "crash:0")
    command = [*SUPERVISOR, *(word for pair in bench.overrides.items() for word in ("--set", "=".join(pair)))]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as supervisor:
        service = bench.wait_until(lambda service: service.state == "failed")
        assert service.exit_code == 1
        assert "the weights are broken" in str(service.reason)
        assert service.ring["phase"] == "failed"
        assert bench.get_health() == service.processes["api"].pid
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(10) == 0


def test_a_taken_port_is_refused_by_name(bench: Bench) -> None:
    """A port that somebody else listens on is named with its holder, before anything is started."""
    with (
        ports.listen("127.0.0.1", int(bench.overrides["API_PORT"])),
        pytest.raises(PortTaken, match=rf"port {bench.overrides['API_PORT']} .* process {os.getpid()}"),
    ):
        bench.start()


def test_the_trial_proves_that_every_rank_took_part(bench: Bench) -> None:
    """A streamed answer is shown, and each rank's frames and time stand below it."""
    bench.start()
    assert run_trial(bench.settings, bench.terminal, "What is the capital of France?", 8) == 0
    shown = bench.output.getvalue()
    assert "Paris\n" in shown
    assert re.search(r"rank 1: layers 0-1, 3 frames, busy 0.50 s", shown)
    assert "Every rank took part (2 of 2)." in shown


def test_the_trial_fails_where_a_rank_took_no_part(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer without a trace of one rank is no proof."""
    monkeypatch.setenv("FAKE_API", "idle-rank")
    bench.start()
    assert run_trial(bench.settings, bench.terminal, "Hello", 8) == 1
    assert "rank 1 took no part" in bench.output.getvalue()


def test_a_supervisor_cannot_start_under_a_held_lock(bench: Bench) -> None:
    """The lock, not the status file, makes the supervisor the only one."""
    lock = SupervisorLock(bench.settings.run_dir)
    command = [*SUPERVISOR, *(word for pair in bench.overrides.items() for word in ("--set", "=".join(pair)))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    lock.release()
    assert ended.returncode == 1
    assert f"supervisor {os.getpid()} already serves" in ended.stderr

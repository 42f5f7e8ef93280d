"""The supervisor and its commands over real processes: fake ranks and front door, real pipes and signals."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import ports
from cluster.commands.doctor.this_machine import check_this_machine
from cluster.commands.requests.smoke_test import run_smoke_test
from cluster.commands.start import prepare_foreground, start
from cluster.commands.status import describe, show_status
from cluster.errors import ClusterError, Interrupted, PortTaken, StartFailed
from cluster.processes import identify
from cluster.supervisor.leftovers import end_leftovers
from cluster.supervisor.lock import SupervisorLock
from cluster.supervisor.service import Service
from config.live import load_for_looking
from config.run_files import write_json
from spool import Request, SamplingParams, Spool
from tests.services.cluster_service import Bench, run_supervisor, supervisor_command


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
        assert "for more set MAX_SEQUENCE_LENGTH to a larger number" in shown
        assert "beyond 2048, the model's own length" in shown

    assert bench.stop() == 0
    stopped = bench.read()
    assert stopped.exit_code == 3
    assert not any(identity.is_alive() for identity in service.processes.values())
    assert [entry["exit"] for entry in stopped.supervisor["processes"]] == [0, 0, 0]
    assert stopped.ring["phase"] == "stopped"
    assert ports.is_free(*service.api_address or ("", 0))
    assert bench.stop() == 0, "stopping what does not run is no error"


def test_a_second_start_names_the_holder_and_what_differs(
    running: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts nothing; settings that the running service does not have are named, not dropped."""
    before = running.read()
    assert before.holder
    assert running.start() == 0
    assert f"Already running (supervisor {before.holder.pid}" in running.output.getvalue()
    assert running.read().processes == before.processes
    monkeypatch.setitem(running.overrides, "LOCAL_RANKS", "3")
    with pytest.raises(ClusterError, match="LOCAL_RANKS is 2 there, 3 here"):
        running.start()


@pytest.mark.parametrize("rank", ["rank 0", "rank 1"])
def test_a_killed_rank_gives_a_new_ring_under_a_new_epoch(running: Bench, rank: str) -> None:
    """One rank killed: all ranks are replaced, the epoch rises, and the front door is the same process."""
    before = running.read()
    before.processes[rank].send(signal.SIGKILL)
    epoch = before.ring["epoch"] + 1
    after = running.wait_until(lambda service: service.state == "ready" and service.ring["epoch"] == epoch)
    assert after.supervisor["epoch"] == epoch
    assert after.supervisor["restarts"] == before.supervisor["restarts"] + 1
    assert after.processes["api"] == before.processes["api"]
    for name in ("rank 0", "rank 1"):
        assert after.processes[name] != before.processes[name]
        assert not before.processes[name].is_alive()
    log = (running.settings.log_dir / "supervisor.log").read_text()
    assert f"{rank} was killed by SIGKILL" in log


def test_a_killed_front_door_is_replaced_alone_and_no_connection_is_refused(running: Bench) -> None:
    """The socket outlives the front door: a request sent right after the kill is answered by the next one."""
    before = running.read()
    api = before.processes["api"]
    api.send(signal.SIGKILL)
    api.wait(5.0)
    assert running.get_health() != api.pid
    after = running.wait_until(lambda service: service.state == "ready")
    assert after.supervisor["epoch"] == before.supervisor["epoch"]
    assert after.processes["rank 1"] == before.processes["rank 1"]
    log = (running.settings.log_dir / "supervisor.log").read_text()
    assert "the front door was killed by SIGKILL; the front door starts again" in log


def test_status_names_a_wrong_edit_of_the_keys(running: Bench) -> None:
    """The front door keeps the earlier keys, so a key that this edit should revoke is still accepted."""
    keys = running.root / "keys"
    settings = load_for_looking({**running.overrides, "API_KEYS_FILE": str(keys)}, running.root)
    keys.write_text("sk-abc wrong\n")
    assert show_status(settings, running.terminal) == 0
    assert f"trouble: API_KEYS_FILE: {keys}:1: word 2 is not allowed" in running.output.getvalue()
    running.output.truncate(0)
    keys.write_text("sk-abc name=alice\n")
    assert show_status(settings, running.terminal) == 0
    assert "trouble" not in running.output.getvalue()


def test_the_trial_proves_that_every_rank_took_part(running: Bench) -> None:
    """A streamed answer is shown, and each rank's frames and time; a rank without a trace is no proof."""
    assert run_smoke_test(running.settings, running.terminal, "What is the capital of France?", 8) == 0
    shown = running.output.getvalue()
    assert "Paris\n" in shown
    assert re.search(r"rank 1: layers 0-1, 3 frames, busy 0.50 s", shown)
    assert "Every rank took part (2 of 2)." in shown
    (running.root / "idle-rank").touch()
    assert run_smoke_test(running.settings, running.terminal, "Hello", 8) == 1
    assert "rank 1 took no part" in running.output.getvalue()


@pytest.mark.parametrize("trouble", ["refuse:1", "crash:0"])
def test_a_ring_that_was_ready_is_tried_until_its_trouble_has_passed(running: Bench, trouble: str) -> None:
    """Refusals and failures in a row are shown with what happens next, and end with their cause."""
    running.put_in_trouble(trouble)
    stuck = running.wait_until(lambda service: service.state == "degraded" and service.is_stuck)
    shown = "\n".join(describe(stuck, running.terminal))
    assert f"reason: rank {trouble[-1]} exited with code" in shown
    assert "failed tries: " in shown and "it is tried until it works" in shown
    assert running.get_health() == stuck.processes["api"].pid
    words = f"already running .*rank {trouble[-1]} exited with code .* ./launch.sh restart tries at once"
    with pytest.raises(StartFailed, match=words):
        running.start()
    (running.root / "trouble").unlink()
    ready = running.wait_until(lambda service: service.state == "ready")
    assert ready.reason is None and ready.waits_for is None and not ready.is_stuck


def test_a_start_waits_for_a_service_that_is_still_stopping(running: Bench) -> None:
    """stop was interrupted: the next start does not take the old supervisor for the new one."""
    old = running.read().holder
    assert old
    running.read().processes["api"].send(signal.SIGSTOP)  # a front door that takes its time
    old.send(signal.SIGTERM)
    running.wait_until(lambda service: service.state == "stopping")
    assert running.start() == 0
    assert "is still stopping" in running.output.getvalue()
    now = running.read()
    assert now.state == "ready" and now.holder and now.holder.pid != old.pid


def test_a_killed_supervisor_leaves_its_last_reason_and_the_next_one_goes_on_trying(running: Bench) -> None:
    """status says that it is gone, why the ring was down, and what to do; the next one tries on."""
    running.put_in_trouble("refuse:1")
    before = running.wait_until(lambda service: service.is_stuck)
    assert before.holder
    before.holder.send(signal.SIGKILL)
    before.holder.wait(5.0)
    gone = running.read()
    assert gone.exit_code == 3
    shown = "\n".join(describe(gone, running.terminal))
    assert "./launch.sh start" in shown
    assert f"supervisor {before.holder.pid} died without a message" in shown
    assert "its last state was degraded: rank 1 exited with code 2: rank 1: LAYER_SPLIT does not fit" in shown

    with run_supervisor(running):
        running.wait_until(lambda service: service.state == "degraded" and service.is_stuck)
        (running.root / "trouble").unlink()
        running.wait_until(lambda service: service.state == "ready")
    assert running.read().reason is None


def test_a_service_in_trouble_stops_at_once(running: Bench) -> None:
    """Neither a pause between two tries nor a rank that says nothing keeps stop waiting."""
    running.put_in_trouble("hang:1")
    began = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - began < float(running.overrides["SHUTDOWN_TIMEOUT"])


def test_what_a_killed_supervisor_leaves_is_gone_when_the_next_has_started(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank ends by itself; one that hangs and a front door that keeps the port are ended by the next start,
    which begins a higher epoch on the same port.
    """
    monkeypatch.setenv("FAKE_API", "deaf")
    bench.start()
    before = bench.read()
    assert before.holder
    before.processes["rank 1"].send(signal.SIGSTOP)
    before.holder.send(signal.SIGKILL)
    assert before.holder.wait(5.0)
    assert before.processes["rank 0"].wait(5.0)
    assert bench.read().exit_code == 3
    assert before.processes["api"].is_alive() and before.processes["rank 1"].is_alive()
    assert bench.start() == 0
    assert not any(identity.is_alive() for identity in before.processes.values())
    assert bench.read().supervisor["epoch"] == 2


def test_a_reused_pid_is_not_killed(bench: Bench) -> None:
    """A pid in the status file that belongs to another process now is left alone."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        identity = identify(stranger.pid)
        assert identity
        entry = {"name": "rank 0", "pid": stranger.pid, "start_time": identity.start_time - 1000}
        write_json(bench.settings.run_dir / "supervisor.json", {**entry, "processes": [entry]})
        write_json(bench.settings.run_dir / "supervisor.lock", entry)
        assert bench.stop() == 0
        assert end_leftovers(bench.read()) == 0
        assert stranger.poll() is None
        stranger.communicate(b"\n")


@pytest.mark.parametrize(
    ("who", "trouble", "words", "epoch"),
    [
        ("FAKE_API", "refuse", "exited with code 2: api: API_KEYS_FILE holds no key", 1),
        ("FAKE_RANK", "refuse:1", "rank 1 exited with code 2: rank 1: LAYER_SPLIT does not fit", 1),
        ("FAKE_RANK", "crash:0", "rank 0 exited with code 1: rank 0: the weights are broken", 5),
    ],
)
def test_what_refuses_or_fails_again_and_again_fails_the_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, who: str, trouble: str, words: str, epoch: int
) -> None:
    """A refusal is not tried again, a failure five times; the reason is the last line of the process, and
    nothing is left running.
    """
    monkeypatch.setenv(who, trouble)
    log = bench.settings.log_dir / "rank-1.log"
    log.parent.mkdir(parents=True)
    log.write_text("rank 1: what an earlier start died of\n")
    with pytest.raises(StartFailed, match=words):
        bench.start()
    said = bench.output.getvalue()
    assert words.partition(": ")[2] in said
    assert "an earlier start" not in said
    service = bench.read()
    assert service.exit_code == 3
    assert service.supervisor["epoch"] == epoch
    assert not any(identity.is_alive() for identity in service.processes.values())


@pytest.mark.parametrize("is_ring", [True, False])
def test_what_was_given_up_keeps_the_queue_until_a_restart(bench: Bench, is_ring: bool) -> None:
    """A ring that is given up leaves the front door up, the reason in both status files, and what was
    accepted; ring and front door are tried anew when somebody asks.
    """
    spool = Spool.open(bench.settings.spool_dir, durability="process")
    request = Request(uuid.uuid4().hex, SamplingParams(4), "hello", None, None, "fake")
    spool.submit(request)
    cause = bench.root / ("trouble" if is_ring else "refuse-api")
    cause.write_text("crash:0", encoding="ascii")
    with run_supervisor(bench):
        service = bench.wait_until(lambda service: service.state == "failed")
        assert service.exit_code == 1
        assert "./launch.sh restart" in str(service.waits_for)
        assert spool.state(request.id) == "waiting"
        if is_ring:
            assert "the weights are broken" in str(service.reason)
            assert service.ring["phase"] == "failed" and service.ring["reason"] == service.reason
            assert bench.get_health() == service.processes["api"].pid
        cause.unlink()
        assert bench.restart() == 0
    assert spool.state(request.id) == "waiting"


def interrupt_when(bench: Bench, holds: Callable[[Service], bool], num_signals: int = 1) -> threading.Thread:
    """Ctrl-C for this process as soon as the service is so; joined by the caller."""

    def press() -> None:
        holder = bench.wait_until(holds).holder
        if num_signals > 1 and holder:
            holder.send(signal.SIGSTOP)  # slow to go
        os.kill(os.getpid(), signal.SIGINT)
        if num_signals > 1:
            bench.wait_until(lambda _: "Ctrl-C again" in bench.output.getvalue())
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


@pytest.mark.parametrize("num_signals", [1, 2])
def test_an_interrupted_start_stops_what_it_started(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, num_signals: int
) -> None:
    """Ctrl-C while ranks load: every process is ended, one sentence says so, and start works again."""
    monkeypatch.setenv("FAKE_RANK", "hang:1")
    pressed = interrupt_when(bench, lambda service: len(service.processes) == 3, num_signals)
    with pytest.raises(Interrupted, match="nothing is left running") as caught:
        bench.start()
    pressed.join()
    assert caught.value.exit_code == 130
    service = bench.read()
    assert service.holder is None
    assert not any(identity.is_alive() for identity in service.processes.values())
    if num_signals == 1:
        monkeypatch.delenv("FAKE_RANK")
        assert bench.start() == 0


def test_an_interrupted_second_start_leaves_the_service_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever only waits for a service that another one started does not stop it."""
    monkeypatch.setenv("FAKE_RANK", "hang:1")
    with run_supervisor(bench) as supervisor:
        bench.wait_until(lambda service: len(service.processes) == 3)
        pressed = interrupt_when(bench, lambda _: "rank 0: " in bench.output.getvalue())
        with pytest.raises(Interrupted, match=rf"supervisor {supervisor.pid}, .*keeps running"):
            bench.start()
        pressed.join()
        assert supervisor.poll() is None


def test_an_interrupted_preparation_is_ended_and_said(bench: Bench) -> None:
    """Ctrl-C before anything runs: the download ends too, and the command says that nothing was started."""
    program = "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
    with pytest.raises(Interrupted, match="nothing was started"):
        start(bench.settings, bench.overrides, bench.terminal, prepare=(sys.executable, "-c", program))
    assert bench.read().holder is None


def test_an_interrupted_look_at_the_hosts_leaves_no_ssh(bench: Bench, tmp_path: Path) -> None:
    """Ctrl-C while a host does not answer: one sentence, exit code 130, and no program of ours goes on."""
    asked, ssh = tmp_path / "asked", tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    script = f"#!/bin/sh\necho $$ >{asked}.new\nmv {asked}.new {asked}\nexec sleep 60\n"
    ssh.write_text(script, encoding="ascii")
    ssh.chmod(0o755)
    bench.overrides |= {"WORKER_HOSTS": "far=192.0.2.7", "RING_ADDRESS": "192.0.2.8"}
    flags = [word for pair in bench.overrides.items() for word in ("--set", "=".join(pair))]
    with subprocess.Popen(
        [sys.executable, "-m", "cluster", "start", *flags],
        env=os.environ | {"PATH": f"{ssh.parent}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        bench.wait_until(lambda _: asked.exists())
        command.send_signal(signal.SIGINT)
        _, said = command.communicate(timeout=20)
    assert (command.returncode, said) == (
        130,
        "Interrupted: nothing was started; ./launch.sh start continues here\n",
    )
    assert identify(int(asked.read_text())) is None


def test_a_start_refuses_with_the_words_of_the_doctor(bench: Bench) -> None:
    """What the doctor finds on this machine keeps a start from beginning, and nothing runs."""
    (Path(bench.overrides["MODEL_REPO"]) / "model.safetensors").unlink()
    findings = check_this_machine(bench.settings, bench.read())
    failed = [str(finding) for finding in findings if finding.level == "failed"]
    with pytest.raises(ClusterError) as caught:
        bench.start()
    assert str(caught.value).splitlines() == failed
    assert "model.safetensors missing: correct MODEL_REPO in .env" in failed[0]
    assert bench.read().holder is None


def test_a_service_that_was_ready_starts_by_itself_in_spite_of_trouble(bench: Bench) -> None:
    """At boot the model's disk is not there yet: only what was never ready is refused."""
    shutil.rmtree(bench.overrides["MODEL_REPO"])
    with pytest.raises(ClusterError, match="is not a complete model"):
        prepare_foreground(bench.settings, bench.overrides, bench.terminal)
    write_json(bench.settings.run_dir / "supervisor.json", {"was_ready": True})
    prepare_foreground(bench.settings, bench.overrides, bench.terminal)
    assert "is not a complete model" in bench.output.getvalue()


def test_a_taken_port_is_refused_by_name(bench: Bench) -> None:
    """A port that somebody else listens on is named with its holder, before anything is started."""
    with (
        ports.listen("127.0.0.1", int(bench.overrides["API_PORT"])),
        pytest.raises(PortTaken, match=rf"port {bench.overrides['API_PORT']} .* process {os.getpid()}"),
    ):
        bench.start()


def test_a_supervisor_cannot_start_under_a_held_lock(bench: Bench) -> None:
    """The lock, not the status file, makes the supervisor the only one."""
    lock = SupervisorLock(bench.settings.run_dir)
    ended = subprocess.run(supervisor_command(bench), capture_output=True, text=True, timeout=20, check=False)
    lock.release()
    assert ended.returncode == 1
    assert f"supervisor {os.getpid()} already serves STATE_DIR" in ended.stderr

"""Ranks on other hosts without any other host: their commands, lines, exit codes and ends."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.errors import ClusterError
from cluster.hosts.code_marks import mark_supervisor
from cluster.hosts.hosts import Cluster
from cluster.hosts.provisioning import HostsFailed, Provisioned, is_away, load_provisioned, make_key, on_all
from cluster.hosts.remote_ranks import make_rank_command, make_remote_environment
from cluster.hosts.remote_scripts import ending
from cluster.hosts.ssh import HostUnreachable, run_words
from cluster.supervisor.child import Child, ChildPlan, describe_exit, start_child
from cluster.supervisor.epoch_maker import EpochMaker
from cluster.supervisor.epoch_plan import EpochPlan, RankPlace
from cluster.supervisor.restart_policy import MAX_DELAY_S, RestartPolicy
from cluster.supervisor.ring_epoch import Verdict
from cluster.supervisor.ring_keeper import RingKeeper
from cluster.supervisor.running import Programs, Running
from cluster.supervisor.state_file import SupervisorState
from config import ModelNotReady
from config.rotating_file import RotatingFile
from tests.cluster.hosts.pretended_hosts import MAC1, MAC2, WORKER, load
from tests.services.waiting import until


def test_no_secret_and_no_path_of_this_machine_travels_in_a_command(tmp_path: Path) -> None:
    """Commands can be read by everybody on a host: the secret comes with the start line only."""
    values = {"WORKER_HOSTS": "mac2", "LOG_FILE": "all.log", "API_KEYS_FILE": "keys", "LOG_LEVEL": "DEBUG"}
    settings = load(tmp_path, **values, LOCAL_RANKS="3")
    environment = make_remote_environment(settings, 2, "/there/model")
    assert environment["LOG_LEVEL"] == "DEBUG"
    assert environment["LOCAL_RANKS"] == "2"
    assert environment["MODEL_REPO"] == "/there/model"
    words = " ".join(make_rank_command(WORKER, settings, 1))
    assert "--rank 1 --ping-limit 20" in words
    assert str(tmp_path) not in words
    assert not {"LOG_FILE", "API_KEYS_FILE", "RING_SECRET_FILE", "WORKER_HOSTS"} & set(environment)


def test_the_start_line_tells_a_rank_its_host_and_its_own_model_folder() -> None:
    """On other hosts a rank also learns how long it may hear nothing."""
    places = (RankPlace(MAC1), RankPlace(MAC2, WORKER, ["ssh"], "/there/model"))
    single = EpochPlan(3, ("a:1",), "5ec", (), Path("/"), {}, 45.0, 600.0)
    plan = replace(single, hosts=("a:1", "b:2"), places=places, layers=(10, 20), dequantize=True)
    first, second = (json.loads(plan.make_start_line(rank)) for rank in (0, 1))
    assert first["layers"] == second["layers"] == [10, 20]
    assert (second["host_name"], second["model_folder"], second["ping_limit_s"]) == (
        "mac2",
        "/there/model",
        20.0,
    )
    assert not {"model_folder", "ping_limit_s"} & set(first)
    assert set(json.loads(single.make_start_line(0))) == {"epoch", "rank", "hosts", "secret"}


async def run_remote(tmp_path: Path, script: str) -> Child:
    plan = ChildPlan("rank 1", ["/bin/sh", "-c", script], tmp_path, {}, is_remote=True)
    return await start_child(plan, RotatingFile(tmp_path / "rank-1.log"))


@pytest.mark.parametrize(
    ("script", "code", "is_lost", "words"),
    [
        ("exit 3", 3, False, "exited with code 3"),
        ("exit 137", -9, False, "was killed by SIGKILL"),
        ("exit 255", 255, True, "exited with code 255"),
        ("kill -9 $$", -9, True, "was killed by SIGKILL"),
    ],
)
def test_exit_codes_come_through_ssh(
    tmp_path: Path, script: str, code: int, is_lost: bool, words: str
) -> None:
    """A signal there is one here; 255, or the death of ssh itself, says nothing of what runs there."""

    async def run() -> tuple[int, bool]:
        child = await run_remote(tmp_path, script)
        await child.wait()
        await child.end(0.0)
        assert child.exit_code is not None
        return child.exit_code, child.has_lost_host

    assert asyncio.run(run()) == (code, is_lost)
    assert describe_exit(code) == words


def test_what_ignores_the_end_of_file_is_killed_on_its_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the end of its input, then a second command there, and only then the ssh here."""
    monkeypatch.setattr("cluster.supervisor.child.REMOTE_GRACE_S", 0.2)

    async def run() -> list[str]:
        child = await run_remote(tmp_path, "trap '' HUP TERM; while :; do read x || sleep 0.05; done")
        said = []

        async def kill_there() -> None:
            said.append("killed there")
            child.process.kill()

        child.kill_there = kill_there
        await child.end(0.0)
        return said

    assert asyncio.run(run()) == ["killed there"]


def test_a_host_that_is_away_is_tried_for_ever_and_opens_no_breaker() -> None:
    """Delays grow to the longest and stay there; failures of the ring itself still count as before."""
    policy = RestartPolicy()
    delays = [policy.after_away() for _ in range(100)]
    assert delays == sorted(delays)
    assert delays[-1] == MAX_DELAY_S
    assert policy.after_failure(made_progress=False) == 0.0
    assert policy.after_away() == RestartPolicy().after_away(), "a new absence begins anew"
    assert policy.after_failure(made_progress=False, is_permanent=True) is None


def test_all_hosts_are_asked_and_all_that_refuse_are_named() -> None:
    """One sentence a host; trying again is of use only where every one of them is merely away."""
    away = HostUnreachable(MAC2, "it does not answer", "ping mac2")

    def ask(*errors: Exception | None) -> ClusterError:
        async def answer(error: Exception | None) -> int:
            if error:
                raise error
            return 1

        with pytest.raises(ClusterError) as caught:
            asyncio.run(on_all(errors, answer))
        return caught.value

    assert ask(None, away) is away
    both = ask(away, None, ClusterError("mac3: rsync is not installed there"))
    assert isinstance(both, HostsFailed)
    assert str(both).splitlines() == [
        "mac2: it does not answer: ping mac2",
        "mac3: rsync is not installed there",
    ]
    assert is_away(away)
    assert not is_away(both)
    assert is_away(HostsFailed([away, away]))


def test_what_was_placed_is_used_again_until_something_changes(tmp_path: Path) -> None:
    """The supervisor takes over what `start` has placed; another model or address is placed anew."""
    settings = load(tmp_path, WORKER_HOSTS="mac2")
    cluster = Cluster((MAC1, MAC2))
    key = make_key(settings, cluster)
    Provisioned(key, (10, 20), True, {"anna@mac2": "/there"}).save(settings.run_dir)
    assert load_provisioned(settings.run_dir, key) == Provisioned(
        key, (10, 20), True, {"anna@mac2": "/there"}
    )
    moved = Cluster((cluster.hosts[0], replace(MAC2, address="192.168.5.3")))
    for other in (make_key(settings, moved), make_key(load(tmp_path, LAYER_SPLIT="1"), cluster)):
        assert load_provisioned(settings.run_dir, other) is None


def test_an_edit_of_any_file_of_the_supervisor_changes_its_mark(tmp_path: Path) -> None:
    """Files in its folders count as well as those above them; the commands are another program."""
    names = ("cluster/ports.py", "cluster/supervisor/child.py", "cluster/hosts/ssh.py", "config/live.py")
    for name in (*names, "cluster/commands/status.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n")
    marks = [mark_supervisor(tmp_path)]
    for name in names:
        (tmp_path / name).write_text("2\n")
        marks.append(mark_supervisor(tmp_path))
    (tmp_path / "cluster/commands/status.py").write_text("2\n")
    assert len(set(marks)) == len(names) + 1
    assert mark_supervisor(tmp_path) == marks[-1]


def test_only_the_very_process_is_ended(capsys: pytest.CaptureFixture[str]) -> None:
    """Pid and start time must both be right: a reused pid belongs to somebody else."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        start_time = psutil.Process(stranger.pid).create_time()
        question: dict[str, Any] = {"processes": [[stranger.pid, start_time - 100]], "tolerance_s": 2.0}
        ending.main(question)
        assert stranger.poll() is None
        ending.main({**question, "processes": [[stranger.pid, start_time], [2**22 + 1, 1.0]]})
        stranger.wait(5)
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers == [{"num_killed": 0, "left": []}, {"num_killed": 1, "left": []}]


def make_running(tmp_path: Path, *, was_ready: bool) -> Running:
    """A supervisor's state without a supervisor."""
    settings = load(tmp_path, WORKER_HOSTS="mac2")
    state = SupervisorState(1, 1.0, 1.0, {"host": "127.0.0.1", "port": 1}, {}, {}, was_ready=was_ready)
    return Running(settings, {}, Programs(restart_delay_s=0.001), state, lambda: None)


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the ring cannot be prepared: .*No space left"),
        (ClusterError("mac2: 10 MB free at /there, 3 GB are needed"), "mac2: 10 MB free"),
        (ModelNotReady("the model folder is not there"), "the model folder is not there"),
    ],
)
@pytest.mark.parametrize("was_ready", [True, False])
def test_hosts_that_cannot_be_prepared_are_tried_on_once_it_has_worked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception, reason: str, was_ready: bool
) -> None:
    """Disk, memory or model may come back: a ring that was ready waits for them, another one gives up."""
    running, num_tries = make_running(tmp_path, was_ready=was_ready), []

    async def keep() -> None:
        keeper, is_seen = RingKeeper(running, "secret"), asyncio.Event()

        async def refuse(_: EpochMaker) -> None:
            num_tries.append(1)
            if len(num_tries) == 8:
                is_seen.set()
            raise trouble

        monkeypatch.setattr(EpochMaker, "make_plan", refuse)
        running.publish = lambda: is_seen.set() if running.state.state == "failed" else None
        keeping = asyncio.create_task(keeper.keep())
        await is_seen.wait()
        keeper.stop()
        await keeping

    asyncio.run(asyncio.wait_for(keep(), 20.0))
    assert re.search(reason, str(running.state.reason))
    assert running.state.state == ("degraded" if was_ready else "failed")
    assert (len(num_tries) >= 8) == was_ready


def test_a_refusal_counts_when_everything_was_placed_anew(tmp_path: Path) -> None:
    """A rank that differs from rank 0 may run what another checkout has put there since."""
    keeper, refused = RingKeeper(make_running(tmp_path, was_ready=False), "s"), Verdict("x", was_refused=True)
    keeper._maker.has_kept_placed = True
    assert keeper._judge(refused, RestartPolicy()) == 0.0
    keeper._maker.has_kept_placed = False
    assert keeper._judge(refused, RestartPolicy()) is None


def test_a_program_that_watches_its_input_ends_with_us() -> None:
    """As pip on a host: cancelled here, nothing of it goes on; left alone, it ends with its own code."""
    script = "exec 3<&0; (cat <&3; kill 0) >/dev/null 2>&1 &\necho $$; sleep {seconds}; exit 7"

    async def run(seconds: int, on_output: Callable[[bytes], None]) -> int:
        words = ["sh", "-c", script.format(seconds=seconds)]
        done = await run_words(words, timeout_s=60.0, holds_stdin=True, on_output=on_output)
        assert done is not None
        return done.code

    async def cancel() -> int:
        said: asyncio.Queue[bytes] = asyncio.Queue()
        running = asyncio.create_task(run(60, said.put_nowait))
        group = int(await said.get())
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return group

    assert asyncio.run(run(0, lambda _: None)) == 7
    group = asyncio.run(cancel())
    until(lambda: not any(is_in_group(pid, group) for pid in psutil.pids()))


def is_in_group(pid: int, group: int) -> bool:
    try:
        return os.getpgid(pid) == group and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False

"""Ranks on other hosts: the command that runs one there, free ports for it, and its end.

A remote rank is a child of the supervisor like a local one, whose command is ssh: the same lines on standard
input and output. A shell stays between ssh and the rank, so that the rank's end by a signal comes through as
128 + its number and is told from 255, ssh's own. What ssh cannot end, because the rank is stopped or the
connection is gone, is ended by a second command, by pid and start time.

Settings go along in the command as environment; secrets and paths of this machine never do.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.hosts.probe import read_answer
from cluster.hosts.remote_program import make_program
from cluster.hosts.ssh import HostUnreachable, ssh_command
from cluster.hosts.workers import Worker
from cluster.processes import START_TIME_TOLERANCE_S, ProcessIdentity
from config import Settings
from config.fields import format_value
from config.live import FROM_ENVIRONMENT, SETTINGS_FROM

# A remote rank that hears nothing from its supervisor for so long ends itself: host 0 has lost its power.
PING_LIMIT_S = 20.0
PING_INTERVAL_S = 1.0
QUESTION_LIMIT_S = 15.0
END_LIMIT_S = 10.0
# What a rank there reads of its own process's settings; ring and model come with HELLO.
GROUPS = ("Engine", "Process")
KEYS = ("CONNECT_TIMEOUT", "LOAD_TIMEOUT", "STEP_TIMEOUT", "SHUTDOWN_TIMEOUT")
ZONES = "zoneinfo/"


def make_rank_command(
    worker: Worker, settings: Settings, rank: int, *, model_folder: str | None = None
) -> list[str]:
    """The command of this machine that runs a rank there until its standard input ends."""
    environment = make_remote_environment(settings, worker.host.num_ranks, model_folder)
    words = ["../venv/bin/python", "server.py", "--rank", str(rank), "--ping-limit", f"{PING_LIMIT_S:g}"]
    pairs = [f"{key}={value}" for key, value in environment.items()]
    script = f"cd {worker.shell_path('code')} && umask 077 && env {shlex.join([*pairs, *words])}; exit $?"
    return ssh_command(worker.host, script, control_dir=None)


def make_remote_environment(settings: Settings, num_ranks: int, model_folder: str | None) -> dict[str, str]:
    """The settings of a rank's own process there; none that is secret, none that is a path here."""
    keys = [key for key in settings.all_keys() if settings.about(key).group in GROUPS]
    values = {key: settings.value(key) for key in (*keys, *KEYS) if not settings.about(key).is_secret}
    environment = {
        SETTINGS_FROM: FROM_ENVIRONMENT,
        **{key: format_value(value) for key, value in values.items() if not isinstance(value, Path)},
        "LOCAL_RANKS": str(num_ranks),
        "PYTHONUNBUFFERED": "1",
    }
    if model_folder is not None:
        environment["MODEL_REPO"] = model_folder
    if zone := read_time_zone():
        environment["TZ"] = zone
    return environment


def read_time_zone() -> str | None:
    """This machine's time zone, so that the times in all logs are of one clock's kind."""
    try:
        link = os.readlink("/etc/localtime")
    except OSError:
        link = ""
    return os.environ.get("TZ") or link.partition(ZONES)[2] or None


async def ask_ports(worker: Worker) -> tuple[int, ...]:
    """Ask a host for free ports on its ring address, one for each of its ranks.

    Raises:
        HostUnreachable: ssh does not get through, or the host does not have the address (yet).
        ClusterError: there is no environment to ask with.
    """
    host = worker.host
    question = {"address": host.address, "num_ports": host.num_ranks}
    answer = await _ask(worker, "ports", question, QUESTION_LIMIT_S)
    if len(answer["ports"]) < host.num_ranks:
        raise HostUnreachable(
            host,
            f"it has no interface with the ring address {host.address}",
            "plug the cable in, or correct the address in WORKER_HOSTS or RING_HOSTFILE",
        )
    return tuple(answer["ports"])


async def end_processes(worker: Worker, identities: Sequence[ProcessIdentity]) -> int:
    """Kill processes there, by pid and start time; how many there still were.

    Raises:
        HostUnreachable: ssh does not get through.
        ClusterError: one does not die.
    """
    question = {
        "processes": [[identity.pid, identity.start_time] for identity in identities],
        "tolerance_s": START_TIME_TOLERANCE_S,
    }
    answer = await _ask(worker, "ending", question, END_LIMIT_S)
    if answer["left"]:
        pids = ", ".join(str(pid) for pid in answer["left"])
        raise ClusterError(f"{worker.host.name}: these processes do not die: {pids}")
    return int(answer["num_killed"])


async def _ask(worker: Worker, name: str, question: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
    """Run a program of cluster/hosts/remote_scripts in the environment there."""
    command = f"exec {worker.shell_path('venv/bin/python')} -I -"
    done = await worker.run(command, input=make_program(name, question), timeout_s=limit_s)
    return read_answer(worker.host, done)

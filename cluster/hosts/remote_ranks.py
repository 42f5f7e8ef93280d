"""Ranks on other hosts: the command that runs one, free ports for it, and its end.

A remote rank is a child of the supervisor like a local one, with ssh as its command and the same lines on
standard input and output. A shell runs between ssh and the rank, so that signal N comes back as 128 + N and
differs from 255, ssh's own code. Where ssh cannot end a rank (it is stopped, or the connection is lost), a
second command kills it by pid and start time.

The command carries settings as environment, but no secret and no path of this machine.
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
from cluster.hosts.ssh import HostUnreachable, shell_words
from cluster.hosts.worker_setup import Worker
from cluster.processes import START_TIME_TOLERANCE_S, ProcessIdentity
from config import Settings
from config.fields import format_value
from config.live import FROM_ENVIRONMENT, SETTINGS_FROM

# A remote rank ends itself after this long without a ping: host 0 may have lost its power.
PING_LIMIT_S = 20.0
PING_INTERVAL_S = 1.0
QUESTION_LIMIT_S = 15.0
END_LIMIT_S = 10.0
# The settings that a remote rank reads for its own process; ring and model come with HELLO.
GROUPS = ("Engine", "Process")
KEYS = ("CONNECT_TIMEOUT", "LOAD_TIMEOUT", "STEP_TIMEOUT", "SHUTDOWN_TIMEOUT")
ZONES = "zoneinfo/"


def make_rank_command(
    worker: Worker, settings: Settings, rank: int, *, model_folder: str | None = None
) -> list[str]:
    """The command on this machine that runs a rank there until its standard input ends."""
    environment = make_remote_environment(settings, worker.host.num_ranks, model_folder)
    words = ["../venv/bin/python", "server.py", "--rank", str(rank), "--ping-limit", f"{PING_LIMIT_S:g}"]
    pairs = [f"{key}={value}" for key, value in environment.items()]
    script = f"cd {worker.shell_path('code')} && umask 077 && env {shlex.join([*pairs, *words])}; exit $?"
    return shell_words(worker.host, script, is_shared=False)


def make_remote_environment(settings: Settings, num_ranks: int, model_folder: str | None) -> dict[str, str]:
    """The settings of a remote rank's own process, without secrets and paths."""
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
    """This machine's time zone, so that all logs use one."""
    try:
        link = os.readlink("/etc/localtime")
    except OSError:
        link = ""
    return os.environ.get("TZ") or link.partition(ZONES)[2] or None


async def ask_ports(worker: Worker) -> tuple[int, ...]:
    """Ask a host for free ports on its ring address, one for each of its ranks.

    Raises:
        HostUnreachable: ssh failed, or the host does not have the address (yet).
        ClusterError: the host has no environment.
    """
    host = worker.host
    question = {"address": host.address, "num_ports": host.num_ranks}
    answer = await _ask(worker, "facts", question, QUESTION_LIMIT_S)
    if answer["port_error"]:
        raise HostUnreachable(
            host,
            f"none of its interfaces has the ring address {host.address}",
            "plug the cable in, or correct the address in WORKER_HOSTS or RING_HOSTFILE",
        )
    return tuple(answer["free_ports"])


async def end_processes(worker: Worker, identities: Sequence[ProcessIdentity]) -> int:
    """Kill processes there by pid and start time; returns how many still ran.

    Raises:
        HostUnreachable: ssh failed.
        ClusterError: one survives SIGKILL.
    """
    question = {
        "processes": [[identity.pid, identity.start_time] for identity in identities],
        "tolerance_s": START_TIME_TOLERANCE_S,
    }
    answer = await _ask(worker, "ending", question, END_LIMIT_S)
    if answer["left"]:
        pids = " ".join(str(pid) for pid in answer["left"])
        raise ClusterError(
            f"{worker.host.name}: processes of an earlier start survive SIGKILL: {pids}. On it: ps -fp {pids}"
        )
    return int(answer["num_killed"])


async def _ask(worker: Worker, name: str, question: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
    """Run a program of remote_scripts/ in the environment there."""
    command = f"exec {worker.shell_path('venv/bin/python')} -I -"
    done = await worker.run(command, input=make_program(name, question), timeout_s=limit_s)
    return read_answer(worker.host, done)

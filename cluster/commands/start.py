"""`start`: checks this machine, prepares the model, and launches the supervisor in the background.

start_progress.py waits until the service is ready. Knows nothing of ranks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster import ports
from cluster.commands import packages
from cluster.commands.doctor import this_machine as doctor_here
from cluster.commands.interrupts import InterruptFlag, run_to_end
from cluster.commands.start_hosts import place_shown, rehearse
from cluster.commands.start_progress import StartProgress, follow, show_last_lines
from cluster.commands.steps import Steps
from cluster.commands.stop import EXTRA_LIMIT_S, stop
from cluster.disk import check_disk
from cluster.errors import ClusterError, Interrupted, StartFailed
from cluster.findings import refuse_failed
from cluster.hosts.hosts import Cluster, read_cluster
from cluster.log_files import LogMarks, log_path
from cluster.processes import ProcessIdentity, identify
from cluster.supervisor.leftovers import KILL_GRACE_S, end_leftovers
from cluster.supervisor.service import Service, read_service
from cluster.terminal import Terminal
from config import Settings
from config.checks import start_problems, start_warnings
from config.errors import SettingsError
from config.limits import limit_problems
from config.model_path import BUILTIN_PREFIX
from config.rotating_file import RotatingFile
from config.scripted import SCRIPTED_PREFIX

ROOT = Path(__file__).resolve().parent.parent.parent
SUPERVISOR = (sys.executable, "-m", "cluster.supervisor.supervisor")
PREPARE = (sys.executable, "-m", "distributed.prepare")
NUM_STEPS = 4
NUM_PLACING_STEPS = 6


def start(
    settings: Settings,
    overrides: Mapping[str, str],
    terminal: Terminal,
    *,
    supervisor: Sequence[str] = SUPERVISOR,
    prepare: Sequence[str] = PREPARE,
    is_rehearsal: bool = False,
) -> int:
    """Start the service and wait until it is ready, or only print what a start would do; the exit code.

    Raises:
        StartFailed: with the reason; then nothing of the service runs.
    """
    check_startable(settings)
    show_warnings(settings, terminal)
    if (running := wait_for_stop(settings, terminal)).holder:
        return join_running(settings, running, terminal)
    cluster = read_cluster(settings)
    if is_rehearsal:
        return rehearse(settings, cluster, terminal)
    check_disk(settings)
    end_leftovers(running)
    host, port = settings.api_host, settings.api_port
    if not ports.is_free(host, port):
        raise ports.describe_taken(host, port)
    check_this_start(settings, running)
    steps = Steps(terminal, NUM_STEPS if cluster.is_single else NUM_STEPS - 1 + NUM_PLACING_STEPS)
    place_everything(settings, overrides, cluster, steps, prepare)
    marks = LogMarks(settings.log_dir)
    with InterruptFlag() as interrupt:
        process = launch_supervisor(settings, overrides, supervisor)
        try:
            follow(settings, process, StartProgress(terminal, steps, cluster.ring_size), interrupt)
        except StartFailed as error:
            other = read_service(settings).holder
            if other and other.pid != process.pid:
                return join_running(settings, read_service(settings), terminal)
            show_last_lines(settings, terminal, marks)
            stop(settings, Terminal(), is_quiet=True)
            raise error from None
        except Interrupted:
            end_started(settings, process, terminal)
            raise
    return 0


def end_started(settings: Settings, supervisor: ProcessIdentity, terminal: Terminal) -> None:
    """End the supervisor after Ctrl-C as `stop` does, and at once after a second Ctrl-C."""
    try:
        terminal.line("Interrupted: stopping what was started (Ctrl-C again kills it)")
        supervisor.send(signal.SIGTERM)
        is_gone = supervisor.wait(settings.shutdown_timeout + EXTRA_LIMIT_S)
    except KeyboardInterrupt:
        is_gone = False
    if not is_gone:
        supervisor.send(signal.SIGKILL)
        supervisor.wait(KILL_GRACE_S)
    stop(settings, terminal, is_quiet=True)


def place_everything(
    settings: Settings,
    overrides: Mapping[str, str],
    cluster: Cluster,
    steps: Steps,
    prepare: Sequence[str],
    held_bytes: Mapping[str, int] | None = None,
) -> None:
    """Prepare the model on this machine, and everything that ranks need on other hosts.

    Args:
        held_bytes: by host name, the memory of ranks that will have ended when the new ones start.

    Raises:
        ClusterError: with a sentence for each host that cannot be used.
    """

    def prepare_here() -> None:
        prepare_model(settings, overrides, prepare)
        steps.done("model", settings.model_repo)

    if cluster.is_single:
        prepare_here()
    else:
        place_shown(settings, cluster, steps, prepare_here, held_bytes or {})


def check_startable(settings: Settings) -> None:
    """Raise SettingsError for settings that cannot be served, ClusterError for this user's limits."""
    if problems := start_problems(settings):
        raise SettingsError(problems)
    if short := limit_problems(settings):
        raise ClusterError("\n".join(short))


def prepare_foreground(settings: Settings, overrides: Mapping[str, str], terminal: Terminal) -> None:
    """Check this machine and prepare the model for a supervisor in this process.

    If the service was ready before, a failure may pass, as with a disk that is mounted late: it is printed,
    and the supervisor tries until it works.

    Raises:
        ClusterError: the service was never ready.
    """
    running = read_service(settings)
    try:
        check_this_start(settings, running)
        prepare_model(settings, overrides, PREPARE)
    except Interrupted:
        raise
    except ClusterError as error:
        if not running.supervisor.get("was_ready"):
            raise
        terminal.line(
            terminal.colored(f"{error}; the service was ready before: it is tried until it works", "yellow")
        )


def check_this_start(settings: Settings, running: Service) -> None:
    """Check this machine as `doctor` does, except for private files that others can read.

    Raises:
        ClusterError: with the doctor's failed findings.
    """
    findings = doctor_here.check_this_machine(settings, running)
    refuse_failed([finding for finding in findings if finding.check != "private"])


def show_warnings(settings: Settings, terminal: Terminal) -> None:
    """Print warnings about the settings in red."""
    for warning in start_warnings(settings):
        terminal.line(terminal.colored(warning, "red"))


def wait_for_stop(settings: Settings, terminal: Terminal) -> Service:
    """The service; if one is stopping, wait for its end first."""
    service = read_service(settings)
    if service.holder and service.state == "stopping":
        terminal.line(f"supervisor {service.holder.pid} is still stopping: waiting for its end")
        service.holder.wait(settings.shutdown_timeout + EXTRA_LIMIT_S)
        return read_service(settings)
    return service


def join_running(settings: Settings, running: Service, terminal: Terminal) -> int:
    """Another command started it: wait until it is ready, and refuse if its settings differ."""
    assert running.holder is not None
    since = datetime.fromtimestamp(running.holder.start_time).strftime("%Y-%m-%d %H:%M:%S")
    who = f"supervisor {running.holder.pid}, since {since}"
    if others := list_differences(running.supervisor.get("settings"), settings.public()):
        raise ClusterError(
            f"already running ({who}) with other settings: {'; '.join(others)}. "
            "./launch.sh restart adds your flags to its own; ./launch.sh stop, then start, uses yours alone"
        )
    with InterruptFlag() as interrupt:
        try:
            follow(settings, running.holder, StartProgress(terminal, None), interrupt)
        except Interrupted:
            raise Interrupted(
                f"Interrupted: {who}, keeps running: see ./launch.sh status; ./launch.sh stop ends it"
            ) from None
        except StartFailed as error:
            next_step = read_service(settings).waits_for
            raise StartFailed(
                f"already running ({who}), and not ready: {error}{f'; {next_step}' if next_step else ''}"
            ) from None
    terminal.line(f"Already running ({who}): ready at {read_service(settings).url}")
    return 0


def list_differences(theirs: Any, ours: Mapping[str, Any]) -> list[str]:
    """Each setting in which a running service differs from ours; empty if it has not published its own."""
    if not isinstance(theirs, dict):
        return []
    return [
        f"{key} is {theirs.get(key)} there, {ours[key]} here" for key in ours if theirs.get(key) != ours[key]
    ]


def prepare_model(settings: Settings, overrides: Mapping[str, str], prepare: Sequence[str]) -> None:
    """Make or fetch the model in a process of its own, which shows its progress on standard error."""
    if settings.model_repo.startswith((BUILTIN_PREFIX, SCRIPTED_PREFIX)):
        packages.ensure_builtin()
    code = run_to_end(prepare, folder=ROOT, environment={**os.environ, **overrides})
    if code != 0:
        raise StartFailed(f"the model {settings.model_repo} was not prepared (exit code {code}): see above")


def launch_supervisor(
    settings: Settings, overrides: Mapping[str, str], command: Sequence[str]
) -> ProcessIdentity:
    """Start the supervisor in a session of its own, in which it outlives this command."""
    path = log_path(settings.log_dir, "supervisor")
    # Its standard error goes to the log, where even a crash of the interpreter is written.
    log = RotatingFile(path)
    now = datetime.now().isoformat(sep=" ", timespec="milliseconds")
    with contextlib.suppress(OSError):  # a full disk does not prevent the start
        log.write_line(f"{now} INFO start: new supervisor")
    log.close()
    flags = [word for key, value in overrides.items() for word in ("--set", f"{key}={value}")]
    with path.open("ab") as errors:
        process = subprocess.Popen(
            [*command, *flags],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            cwd=ROOT,
            start_new_session=True,
        )
    identity = identify(process.pid)
    assert identity is not None, "a child exists until we reap it"
    # init reaps it after our end.
    process.returncode = 0
    return identity

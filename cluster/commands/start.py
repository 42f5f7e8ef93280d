"""`start`: prepare the model, launch the supervisor in the background, and show how it gets
ready.

Shows what the status files say; the work is the supervisor's. Knows nothing of ranks but their names.
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
from cluster.commands import own_checks, packages
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

ROOT = Path(__file__).resolve().parent.parent.parent
SUPERVISOR = (sys.executable, "-m", "cluster.supervisor.supervisor")
PREPARE = (sys.executable, "-m", "distributed.models.prepare")
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
    """Start the service and wait until it is ready, or only say what that would do; the exit code.

    Raises:
        StartFailed: with the reason; nothing of the service runs then.
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
    """End a supervisor that was to become ready: as `stop` does, and at once where Ctrl-C comes again."""
    try:
        terminal.line("Interrupted: stopping what was started (Ctrl-C again: at once)")
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
    """Put the model into place here, and on other hosts all that ranks need.

    Args:
        held_bytes: memory of running ranks by host, which is free when the next ones start.

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
    """Raise SettingsError for settings that are well formed and cannot be served, ClusterError for limits."""
    if problems := start_problems(settings):
        raise SettingsError(problems)
    if short := limit_problems(settings):
        raise ClusterError("\n".join(short))


def prepare_foreground(
    settings: Settings, overrides: Mapping[str, str], terminal: Terminal, prepare: Sequence[str] = PREPARE
) -> None:
    """Check this machine and prepare the model for a supervisor that runs in this process.

    What keeps a ring from starting that was ready once may pass, as with a disk that is mounted late: it is
    said, and the supervisor waits for it.

    Raises:
        ClusterError: of a service that was never ready.
    """
    running = read_service(settings)
    try:
        check_this_start(settings, running)
        prepare_model(settings, overrides, prepare)
    except Interrupted:
        raise
    except ClusterError as error:
        if not running.supervisor.get("was_ready"):
            raise
        terminal.line(
            terminal.colored(f"{error}; it was ready before, so it is tried until it works", "yellow")
        )


def check_this_start(settings: Settings, running: Service) -> None:
    """Look at this machine as `doctor` does. What others could read that is private only counts there.

    Raises:
        ClusterError: with the doctor's sentences about what keeps the start from being of use.
    """
    findings = own_checks.check_this_machine(settings, running)
    refuse_failed([finding for finding in findings if finding.check != "private"])


def show_warnings(settings: Settings, terminal: Terminal) -> None:
    """Say loudly what a start allows."""
    for warning in start_warnings(settings):
        terminal.line(terminal.colored(warning, "red"))


def wait_for_stop(settings: Settings, terminal: Terminal) -> Service:
    """The service as it is, once one that is on its way out has gone."""
    service = read_service(settings)
    if service.holder and service.state == "stopping":
        terminal.line(f"supervisor {service.holder.pid} is still stopping: waiting for it")
        service.holder.wait(settings.shutdown_timeout + EXTRA_LIMIT_S)
        return read_service(settings)
    return service


def join_running(settings: Settings, running: Service, terminal: Terminal) -> int:
    """Somebody else started it: wait until it is ready, and refuse where its settings are not ours."""
    assert running.holder is not None
    since = datetime.fromtimestamp(running.holder.start_time).strftime("%Y-%m-%d %H:%M:%S")
    who = f"supervisor {running.holder.pid}, since {since}"
    if others := list_differences(running.supervisor.get("settings"), settings.public()):
        raise ClusterError(
            f"already running ({who}) with other settings: {'; '.join(others)}. "
            "./launch.sh restart takes flags that change them; stop, then start, takes yours alone"
        )
    with InterruptFlag() as interrupt:
        try:
            follow(settings, running.holder, StartProgress(terminal, None), interrupt)
        except Interrupted:
            raise Interrupted(
                f"Interrupted: {who}, goes on: see ./launch.sh status; ./launch.sh stop ends it"
            ) from None
        except StartFailed as error:
            next_step = read_service(settings).waits_for
            raise StartFailed(
                f"already running ({who}), and not ready: {error}{f'; {next_step}' if next_step else ''}"
            ) from None
    terminal.line(f"Already running ({who}): ready at {read_service(settings).url}")
    return 0


def list_differences(theirs: Any, ours: Mapping[str, Any]) -> list[str]:
    """Name each setting in which a running service differs from ours; none where it does not say yet."""
    if not isinstance(theirs, dict):
        return []
    return [
        f"{key} is {theirs.get(key)} there, {ours[key]} here" for key in ours if theirs.get(key) != ours[key]
    ]


def prepare_model(settings: Settings, overrides: Mapping[str, str], prepare: Sequence[str]) -> None:
    """Make or fetch the model, in a process of its own that shows its progress on standard error."""
    if settings.model_repo.startswith(BUILTIN_PREFIX):
        packages.ensure_builtin()
    code = run_to_end(prepare, folder=ROOT, environment={**os.environ, **overrides})
    if code != 0:
        raise StartFailed(f"the model {settings.model_repo} could not be prepared (exit code {code})")


def launch_supervisor(
    settings: Settings, overrides: Mapping[str, str], command: Sequence[str]
) -> ProcessIdentity:
    """Start the supervisor in a session of its own; it outlives us."""
    path = log_path(settings.log_dir, "supervisor")
    # Its standard error is the log: what even a crash of the interpreter is written to.
    log = RotatingFile(path)
    now = datetime.now().isoformat(sep=" ", timespec="milliseconds")
    with contextlib.suppress(OSError):  # whether it can be opened, and no more, counts below
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
    assert identity is not None, "a child of ours is there until we reap it"
    # Not ours to reap: init does when we are gone.
    process.returncode = 0
    return identity

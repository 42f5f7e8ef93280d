"""What `start` shows until the service is ready: the phases of the ranks, failures, and the address.

Reads the status files only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.commands.interrupts import InterruptFlag
from cluster.commands.steps import Steps
from cluster.errors import Interrupted, StartFailed
from cluster.log_files import LogMarks, log_path
from cluster.processes import ProcessIdentity
from cluster.supervisor.heartbeats import PHASES_WITH_PROGRESS
from cluster.supervisor.restart_policy import MAX_FAILURES
from cluster.supervisor.service import Service, read_service
from cluster.terminal import Terminal, format_duration, make_bar
from config import Settings
from config.run_files import number

LOOK_INTERVAL_S = 0.1
NUM_LOG_LINES = 15


def follow(
    settings: Settings, supervisor: ProcessIdentity, progress: StartProgress, interrupt: InterruptFlag
) -> None:
    """Show the supervisor's status until the service is ready.

    Raises:
        StartFailed: it failed, ended, or took longer than its own limits allow.
        Interrupted: Ctrl-C.
    """
    limit_s = (settings.connect_timeout + settings.load_timeout) * MAX_FAILURES + 60
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if interrupt.is_set:
            raise Interrupted("Stopped: nothing is left running. ./launch.sh start continues here")
        service = read_service(settings)
        has_ended = supervisor.wait(LOOK_INTERVAL_S)
        if service.supervisor.get("pid") == supervisor.pid:
            progress.update(service)
            if service.is_up:
                progress.finish(service)
                return
            if service.supervisor.get("state") in ("failed", "stopping", "stopped"):
                raise StartFailed(service.reason or "another command stopped it: ./launch.sh start")
            if service.is_stuck:
                raise StartFailed(str(service.reason))
        if has_ended:
            raise StartFailed("the supervisor ended: see ./launch.sh logs supervisor")
    raise StartFailed(f"not ready after {format_duration(limit_s)}")


class StartProgress:
    """Shows a start, each step and phase once."""

    def __init__(self, terminal: Terminal, steps: Steps | None, num_ranks: int = 0) -> None:
        self._terminal = terminal
        self._steps = steps
        self._num_ranks = num_ranks
        self._phases: dict[str, str] = {}
        self._trouble: tuple[int, str] | None = None
        self._has_shown_processes = False

    def update(self, service: Service) -> None:
        """Show what is new."""
        entries = service.entries
        if self._steps and not self._has_shown_processes and len(entries) > self._num_ranks:
            self._has_shown_processes = True
            ranks = "1 rank" if self._num_ranks == 1 else f"{self._num_ranks} ranks"
            self._steps.done("processes", f"supervisor {service.supervisor['pid']}, {ranks}, front door")
        said = service.supervisor.get("reason")
        trouble = (int(service.supervisor.get("restarts", 0)), str(said)) if said else None
        if trouble and trouble != self._trouble:
            self._terminal.line(self._terminal.colored(f"    {said}; starting again", "yellow"))
        self._trouble = trouble or self._trouble
        entries = [entry for entry in entries if str(entry.get("name", "")).startswith("rank ")]
        self._terminal.live("    " + "   ".join(_describe_rank(entry) for entry in entries))
        if not self._terminal.is_live:
            self._print_phases(entries)

    def finish(self, service: Service) -> None:
        """Print the last two steps, and why no request is accepted, if so."""
        if service.trouble:
            self._terminal.line(self._terminal.colored(service.trouble, "red"))
        if not self._steps:
            return
        num_ranks = int(service.ring.get("ring_size", 0))
        self._steps.done(
            "ring", f"epoch {service.ring.get('epoch')}, {num_ranks} of {num_ranks} ranks answered HELLO"
        )
        self._steps.done("ready", self._terminal.colored(service.url, "bold"))
        for line in service.context_lines:
            self._terminal.line(f"    {line}")

    def _print_phases(self, ranks: Sequence[Mapping[str, Any]]) -> None:
        for entry in ranks:
            name, state = _name_rank(entry), str(entry["state"])
            if self._phases.get(name) != state:
                self._phases[name] = state
                self._terminal.line(f"    {name}: {state}")


def _name_rank(entry: Mapping[str, Any]) -> str:
    return f"{entry['name']} on {entry['host']}" if entry.get("ssh") else str(entry["name"])


def _describe_rank(entry: Mapping[str, Any]) -> str:
    state, name = str(entry["state"]), _name_rank(entry)
    return f"{name} {make_bar(number(entry.get('progress'))) if state in PHASES_WITH_PROGRESS else state}"


def show_last_lines(settings: Settings, terminal: Terminal, marks: LogMarks) -> None:
    """Print the last lines that the failed process has logged in this start."""
    failed = read_service(settings).supervisor.get("failed_process") or "supervisor"
    path = log_path(settings.log_dir, failed)
    lines = marks.read_since(path)[-NUM_LOG_LINES:]
    if lines:
        terminal.line(terminal.colored(f"The last lines of {path}:", "yellow"))
    for line in lines:
        terminal.line(f"    {line}")

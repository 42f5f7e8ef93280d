"""`status`: shows the running service, for people and for programs.

Exit codes: 0 ready, 1 degraded (or starting, stopping, failed), 3 stopped. Reads the status files, and
API_KEYS_FILE for a wrong edit.
"""

from __future__ import annotations

import json
import time
from typing import Any

from cluster.supervisor.heartbeats import PHASES_WITH_PROGRESS
from cluster.supervisor.service import Service, read_service
from cluster.terminal import Terminal, format_bytes, format_duration, make_table
from config import Settings
from config.api_keys import find_keys_trouble
from config.run_files import mapping, number

WATCH_INTERVAL_S = 1.0
_COLUMNS = ("LAYERS", "WEIGHTS", "MEMORY", "STATE", "BUSY")
_COLORS = {"ready": "green", "stopped": "dim", "failed": "red"}


def show_status(settings: Settings, terminal: Terminal, *, as_json: bool = False) -> int:
    """Print the status once; the exit code for the state."""
    service, keys_trouble = read_service(settings), find_keys_trouble(settings.api_keys_file)
    if as_json:
        report = {**make_report(service), "keys_trouble": keys_trouble}
        terminal.line(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        for line in describe(service, terminal):
            terminal.line(line)
        if keys_trouble and service.holder:
            terminal.line(terminal.colored(f"trouble: {keys_trouble}", "yellow"))
    return service.exit_code


def watch_status(settings: Settings, terminal: Terminal) -> int:
    """Print the status once a second until Ctrl-C; 0."""
    try:
        while True:
            terminal.clear_screen()
            show_status(settings, terminal)
            time.sleep(WATCH_INTERVAL_S)
    except KeyboardInterrupt:
        return 0


def make_report(service: Service) -> dict[str, Any]:
    """The state, and both status files unchanged."""
    return {
        "state": service.state,
        "reason": service.reason,
        "waits_for": service.waits_for,
        "exit_code": service.exit_code,
        "url": service.url if service.holder else None,
        "supervisor": service.supervisor or None,
        "ring": service.ring or None,
        "disk_trouble": service.disk_trouble,
    }


def describe(service: Service, terminal: Terminal) -> list[str]:
    """The lines for a person."""
    state = terminal.colored(service.state, _COLORS.get(service.state, "yellow"))
    if service.holder is None:
        return [f"{state}  (./launch.sh start)", *([f"reason: {service.reason}"] if service.reason else [])]
    ring, supervisor = service.ring, service.supervisor
    uptime = format_duration(max(0.0, time.time() - service.holder.start_time))
    lines = [f"{state}  {service.url}  {ring.get('model', '')}  up {uptime}"]
    if service.reason:
        lines.append(f"reason: {service.reason}")
    if service.waits_for:
        lines.append(f"waits: {service.waits_for}")
    lines += ["", *make_table(_make_rows(service)), ""]
    queue, totals, kv = (mapping(ring.get(key)) for key in ("queue", "totals", "kv"))
    lines.append(
        f"queue: {queue.get('num_waiting', 0)} waiting, {queue.get('num_running', 0)} running, "
        f"oldest waits {number(queue.get('oldest_wait_s')):.1f} s"
    )
    num_done = sum(mapping(totals.get("requests")).values())
    lines.append(
        f"done: {num_done} requests, {totals.get('generation_tokens', 0)} tokens; "
        f"KV {kv.get('num_tokens', 0)} of {kv.get('max_tokens', 0)} tokens; "
        f"epoch {supervisor.get('epoch', 0)}, restarts {supervisor.get('restarts', 0)}"
    )
    lines += [terminal.colored(f"trouble: {text}", "yellow") for text in service.troubles]
    return lines + service.context_lines + _describe_settings(supervisor, terminal)


def _describe_settings(supervisor: dict[str, Any], terminal: Terminal) -> list[str]:
    """Edits of the settings files that have no effect yet."""
    lines = []
    if error := supervisor.get("settings_error"):
        lines.append(terminal.colored(f"settings: the edit is refused: {error}", "red"))
    if waiting := supervisor.get("needs_restart"):
        lines.append(terminal.colored(f"settings: needs a restart: {', '.join(waiting)}", "yellow"))
    return lines


def _make_rows(service: Service) -> list[list[str]]:
    entries = service.entries
    has_hosts = any(entry.get("ssh") for entry in entries)
    rows = [["RANK", "HOST", *(["ADDRESS"] if has_hosts else []), "PID", *_COLUMNS]]
    is_current = service.ring.get("epoch") == service.supervisor.get("epoch")
    ranks = service.ring.get("ranks", []) if is_current else []
    ranks_by_name = {f"rank {rank['rank']}": rank for rank in ranks}
    for entry in entries:
        name = str(entry["name"])
        rank = ranks_by_name.get(name, {})
        first, num_layers = rank.get("first_layer", 0), rank.get("num_layers", 0)
        memory_bytes = rank.get("memory_bytes") or entry.get("memory_bytes")
        rows.append(
            [
                name.removeprefix("rank "),
                str(entry.get("host", "")),
                *([str(entry.get("address", "-"))] if has_hosts else []),
                str((entry.get("process_there") or entry).get("pid", "")),
                f"{first}-{first + num_layers - 1}" if num_layers else "-",
                format_bytes(rank["weights_bytes"]) if rank.get("weights_bytes") else "-",
                format_bytes(memory_bytes) if memory_bytes else "-",
                _describe_state(entry),
                f"{float(rank['busy_ratio']):.0%}" if rank.get("busy_ratio") is not None else "-",
            ]
        )
    return rows


def _describe_state(entry: dict[str, Any]) -> str:
    state = str(entry.get("state", ""))
    if state == "exited":
        return f"exited ({entry.get('exit')})"
    return f"{state} {number(entry.get('progress')):.0%}" if state in PHASES_WITH_PROGRESS else state

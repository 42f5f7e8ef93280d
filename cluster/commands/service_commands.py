"""Commands that start and end the service: demo, start, stop, restart, service."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from cluster.commands.command import command, load, load_leniently, read_overrides

if TYPE_CHECKING:
    from cluster.terminal import Terminal


def _add_demo_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kill", action="store_true", help="kill a rank in the middle of a story, and watch the story go on"
    )


@command(
    "demo",
    "two ranks and the built-in model on this machine: start, ask a question, leave it running",
    _add_demo_flags,
    after_interrupt="./launch.sh status shows whether the service runs, ./launch.sh stop ends it",
)
def run_demo(options: argparse.Namespace, terminal: Terminal) -> int:
    from cluster.commands import demo
    from config import load_settings

    overrides = demo.add_demo_settings(read_overrides(options))
    return demo.run_demo(load_settings(overrides), overrides, terminal, with_kill=options.kill)


def _add_start_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--foreground", action="store_true", help="stay here, log to this terminal; Ctrl-C stops"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only print what would be done, on every host; changes nothing"
    )


@command(
    "start",
    "start the service in the background and wait until it is ready",
    _add_start_flags,
    after_interrupt="nothing was started; ./launch.sh start continues here",
)
def run_start(options: argparse.Namespace, terminal: Terminal) -> int:
    from cluster.commands.start import check_startable, prepare_foreground, start
    from cluster.supervisor.supervisor import run_supervisor

    settings, overrides = load(options), read_overrides(options)
    if options.dry_run or not options.foreground:
        return start(settings, overrides, terminal, is_rehearsal=options.dry_run)
    check_startable(settings)
    prepare_foreground(settings, overrides, terminal)
    return run_supervisor(overrides)


@command(
    "stop",
    "finish the running requests, then stop every process",
    after_interrupt="the service is still stopping: see ./launch.sh status",
)
def run_stop(options: argparse.Namespace, terminal: Terminal) -> int:
    from cluster.commands.stop import stop

    return stop(load_leniently(options), terminal)


@command(
    "restart",
    "apply new settings and code, refusing no request; keeps the running service's flags, new flags win",
    after_interrupt="the restart goes on in the background: see ./launch.sh status",
)
def run_restart(options: argparse.Namespace, terminal: Terminal) -> int:
    """Run `restart`, with the flags of the running service below those given now."""
    from cluster.commands.restart import restart
    from cluster.supervisor.service import read_service
    from config import load_settings

    running = read_service(load(options))
    kept = running.supervisor.get("overrides", {}) if running.holder else {}
    overrides = {**kept, **read_overrides(options)}
    return restart(load_settings(overrides), overrides, terminal)


def _add_service_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("install", "remove", "show"),
        help="write and start the unit, stop and remove it, or only print it; the unit keeps the flags",
    )
    parser.add_argument(
        "--system",
        action="store_true",
        help="start at boot, without a login; needs sudo, runs as the user who calls sudo",
    )


@command("service", "start with the machine: a systemd or launchd unit", _add_service_flags)
def run_service(options: argparse.Namespace, terminal: Terminal) -> int:
    from cluster.commands.service_unit import run_service_command

    settings = load(options) if options.action == "install" else load_leniently(options)
    overrides = read_overrides(options)
    return run_service_command(settings, overrides, terminal, options.action, is_system=options.system)


SERVICE_COMMANDS = (run_demo, run_start, run_stop, run_restart, run_service)

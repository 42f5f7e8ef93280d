"""Commands that report: status, logs, doctor, plan, config, key, connect.

They change nothing, but for `doctor --fix`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.commands.command import command, load, load_leniently, read_overrides

if TYPE_CHECKING:
    from cluster.terminal import Terminal


def _add_status_flags(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON")
    how.add_argument("--watch", action="store_true", help="repeat every second, until Ctrl-C")


@command("status", "show the running service; exit code 0 ready, 1 degraded, 3 stopped", _add_status_flags)
def run_status(options: argparse.Namespace, terminal: Terminal) -> int:
    from cluster.commands.status import show_status, watch_status

    settings = load_leniently(options)
    if options.watch:
        return watch_status(settings, terminal)
    return show_status(settings, terminal, as_json=options.json)


def _add_logs_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("process", nargs="?", help="rank (all ranks), 0, 1, …, api or supervisor")
    parser.add_argument("-f", "--follow", action="store_true", help="print new lines, until Ctrl-C")
    parser.add_argument(
        "-n", "--lines", type=_parse_count, default=200, metavar="N", help="how many (default: 200)"
    )


def _parse_count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of lines")
    return int(text)


@command("logs", "show the logs of all processes, merged by time", _add_logs_flags)
def run_logs(options: argparse.Namespace, terminal: Terminal) -> int:
    from cluster.commands.logs import show_logs

    settings, num_lines = load_leniently(options), options.lines
    return show_logs(settings, terminal, options.process, num_lines=num_lines, follow=options.follow)


def _add_doctor_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fix",
        action="store_true",
        help="do what is safe: code and packages on the hosts, rights of STATE_DIR; accepts no host key",
    )
    parser.add_argument(
        "--self-test",
        action="store_true",
        help="instead: measure this machine for some minutes and print a block to paste into an issue: disk, "
        "ring, parity of each model family, steps, memory, speed beside mlx_lm.generate (--model: of that "
        "model). Also writes STATE_DIR/self-test.json",
    )
    parser.add_argument("--force", action="store_true", help="with --self-test: even while the service runs")
    parser.add_argument(
        "--json",
        nargs="?",
        const="",
        metavar="FILE",
        help="print JSON; with --self-test FILE: write it there",
    )
    parser.add_argument("--self-test-size", help=argparse.SUPPRESS)


@command(
    "doctor",
    "check every host before a start: what is wrong, and the command that fixes it",
    _add_doctor_flags,
)
def run_doctor(options: argparse.Namespace, terminal: Terminal) -> int:
    from cluster.commands.doctor import doctor, self_test
    from cluster.errors import ClusterError
    from cluster.terminal import Terminal

    as_json, file = options.json == "", options.json or None
    if not options.self_test:
        if file or options.force:
            raise ClusterError("--json FILE and --force belong to --self-test")
        return doctor.run_doctor(load(options), terminal, with_fix=options.fix, as_json=as_json)
    asked = self_test.Options(
        file=Path(os.environ.get("CALLED_FROM", "")) / file if file else None,
        as_json=as_json,
        uses_model=options.model is not None,
        is_forced=options.force,
        size=options.self_test_size,
    )
    return self_test.run_self_test(load(options), terminal, Terminal(sys.stderr), asked)


def _add_plan_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hosts",
        metavar="NAME:MEMORY,…",
        help="plan for these hosts instead of the settings' hosts, as in mac1:64GB,mac2:16GB; MEMORY is the "
        "host's total (GB 10^9, GiB 2^30 bytes), @400GB/s after it is its bandwidth, for an upper bound of "
        "tokens/s, and :2 at the end gives the host two ranks",
    )
    parser.add_argument(
        "--cpu", action="store_true", help="the hosts of --hosts have no GPU; without it they count as Macs"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


@command(
    "plan",
    "show which host gets which layers, and whether they fit, without starting anything",
    _add_plan_flags,
)
def run_plan(options: argparse.Namespace, terminal: Terminal) -> int:
    from cluster.commands.plan import show_plan

    settings, has_gpu = load(options), not options.cpu
    return show_plan(settings, terminal, hosts=options.hosts, has_gpu=has_gpu, as_json=options.json)


def _add_config_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("show", "check"))
    parser.add_argument("--json", action="store_true", help="print JSON")


@command("config", "show the effective settings and the source of each, or check them", _add_config_flags)
def run_config(options: argparse.Namespace, _: Terminal) -> int:
    from config.show import main as show

    flags = [word for key, value in read_overrides(options).items() for word in ("--set", f"{key}={value}")]
    return show([options.action, *(["--json"] if options.json else []), *flags])


def _add_key_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="letters, digits and . _ @ + -; /metrics shows it")


@command("key", "make an API key, and its line for API_KEYS_FILE without the key", _add_key_flags)
def run_key(options: argparse.Namespace, _: Terminal) -> int:
    from cluster.errors import ClusterError
    from config.api_keys import make_key

    try:
        key, line = make_key(options.name)
    except ValueError:
        raise ClusterError("a key's name has 1 to 64 letters, digits and . _ @ + -") from None
    print(f"key for the client, shown only now:  {key}\nline to add to API_KEYS_FILE:  {line}")
    return 0


def _add_connect_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("client", nargs="?", metavar="NAME", help="a client; without it: list all")


@command(
    "connect",
    "print what to enter in a client: address, model, key, and whether the context is long enough",
    _add_connect_flags,
)
def run_connect(options: argparse.Namespace, terminal: Terminal) -> int:
    """Run `connect`, with the flags of the running service below those given now."""
    from cluster.commands import connect
    from cluster.supervisor.service import read_service
    from config.live import load_for_looking

    if not options.client:
        return connect.list_clients(terminal)
    service = read_service(load_leniently(options))
    kept = service.supervisor.get("overrides", {}) if service.holder else {}
    settings = load_for_looking({**kept, **read_overrides(options)})
    return connect.show_client(connect.find_target(settings, service), terminal, options.client)


REPORT_COMMANDS = (run_status, run_logs, run_doctor, run_plan, run_config, run_key, run_connect)

"""The command line: `./launch.sh COMMAND`. Parses, loads the settings, and calls the command's room.

Imports only the standard library until a command runs, so that help works before anything is installed.

Exit codes: 0 done or ready, 1 failed or degraded, 2 wrong flags or settings, 3 stopped (status), 130
Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.terminal import Terminal
    from config import Settings

PROGRAM = "./launch.sh"
# Commands with a command line of their own: the module that has it, and its first words.
DELEGATED = {"bench": ("bench",), "chaos": ("chaos",), "trace": ("bench", "trace")}
EXIT_WRONG_SETTINGS = 2
EXIT_INTERRUPTED = 130
EXIT_NO_READER = 141  # what a shell shows for SIGPIPE
# What Ctrl-C leaves, where the command itself does not say it.
LEFT_BY = {
    "start": "nothing was started; ./launch.sh start goes on where this ended",
    "restart": "what was begun goes on: see ./launch.sh status",
    "stop": "the service goes on stopping: see ./launch.sh status",
    "demo": "./launch.sh status says whether the service runs, ./launch.sh stop ends it",
}
AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
# Flags that stand for a setting.
SETTING_FLAGS = {
    "model": "MODEL_REPO",
    "ranks": "LOCAL_RANKS",
    "host": "API_HOST",
    "port": "API_PORT",
    "state_dir": "STATE_DIR",
}


def main(arguments: Sequence[str]) -> int:
    """Run one command; the exit code."""
    parser = make_parser()
    if not arguments or arguments[0] == "help":
        parser.parse_args([*arguments[1:2], "--help"])
    if arguments[0] in DELEGATED and {"-h", "--help"} & set(arguments):
        os.execv(sys.executable, [sys.executable, "-m", *DELEGATED[arguments[0]], *arguments[1:]])
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in DELEGATED:
        parser.error(f"{options.command} does not know {' '.join(rest)}")
    options.rest = rest
    try:
        return run_command(options)
    except KeyboardInterrupt:
        if options.command in LEFT_BY:
            print(f"Interrupted: {LEFT_BY[options.command]}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone, as in `logs | head`: Python's flush at the end must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_NO_READER


def run_command(options: argparse.Namespace) -> int:
    """Run the command and print what it refuses with."""
    from cluster.errors import ClusterError
    from config import SettingsError
    from config.disk_trouble import describe_refused, is_of_system

    try:
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_WRONG_SETTINGS
    except ClusterError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if not is_of_system(error):
            raise
        print(f"{options.command}: {describe_refused(error)}", file=sys.stderr)
        return 1


def make_parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="A ring of machines that serves one language model from a queue of files.",
        epilog=f"{PROGRAM} COMMAND --help tells more. Settings: config/README.md, .env.example.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    settings = make_setting_flags()

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, parents=[settings])
        command.set_defaults(run=run)
        return command

    _add_demo(add)
    _add_start(add)
    add("stop", _stop, "finish what runs, then stop every process")
    add(
        "restart",
        _restart,
        "new settings and code, and no request refused; flags of the running service stay, new ones win",
    )
    status = add("status", _status, "show the running service; exit code 0 ready, 1 degraded, 3 stopped")
    how = status.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON")
    how.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    _add_test(add("test", _test, "send one real prompt and prove that every rank took part in the answer"))
    _add_submit(add("submit", _submit, "put the requests of a file into the queue, one JSON object a line"))
    replay = add("replay", _replay, "run a finished request again and show the first token that differs")
    replay.add_argument("id", metavar="ID", help="the request's id, as in its answer")
    _add_logs(add("logs", _logs, "show the logs of all processes, merged by time"))
    _add_looks(add)
    _add_config(
        add("config", _config, "show the effective settings and where each comes from, or check them")
    )
    _add_tools(add)
    commands.add_parser("help", help="show this, or the help of a command")
    return parser


def _add_looks(add: AddCommand) -> None:
    """What is asked before a start, and kept after one."""
    _add_service(add("service", _service, "start with the machine: a systemd or launchd unit"))
    _add_doctor(add("doctor", _doctor, "look at every host before a start: what is wrong, and what mends it"))
    _add_plan(
        add("plan", _plan, "show who would get which layers, and whether it fits, without starting anything")
    )


def _add_demo(add: AddCommand) -> None:
    demo = add(
        "demo",
        _demo,
        "two ranks and the built-in model on this machine: start, ask a question, leave it running",
    )
    demo.add_argument(
        "--kill", action="store_true", help="kill a rank in the middle of a story, and see it go on"
    )


def _add_start(add: AddCommand) -> None:
    start = add("start", _start, "start the service in the background and wait until it is ready")
    start.add_argument(
        "--foreground", action="store_true", help="stay here, log to this terminal, Ctrl-C stops"
    )
    start.add_argument(
        "--dry-run", action="store_true", help="only say what would be done, on every host; changes nothing"
    )


def _add_tools(add: AddCommand) -> None:
    check = add("check", _check, "lint, types and tests of the project itself")
    amount = check.add_mutually_exclusive_group()
    amount.add_argument("--fast", action="store_true", help="without the slow tests: in under a minute")
    amount.add_argument(
        "--all", action="store_true", help="the long tests too; the result goes to docs/check-all.txt"
    )
    add("bench", _delegate, "measure throughput and latency; all further flags go to python -m bench")
    add("trace", _delegate, "N seconds of the running service as a timeline of its stages; trace --help")
    add(
        "chaos",
        _delegate,
        "kill a service of its own at random and prove that nothing is lost; flags go to python -m chaos",
    )


def make_setting_flags() -> argparse.ArgumentParser:
    """The flags that every command takes: settings, above environment, .env and config.json."""
    flags = argparse.ArgumentParser(add_help=False)
    group = flags.add_argument_group("settings")
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting; may be repeated"
    )
    group.add_argument("--model", metavar="MODEL_REPO", help="Hub name, folder, or builtin:smollm2-135m")
    group.add_argument("--ranks", metavar="N", help="LOCAL_RANKS: ranks on this machine")
    group.add_argument("--host", metavar="HOST", help="API_HOST: where the API listens")
    group.add_argument("--port", metavar="PORT", help="API_PORT: where the API listens")
    group.add_argument("--state-dir", metavar="FOLDER", help="STATE_DIR: spool, logs and run files")
    return flags


def _add_test(command: argparse.ArgumentParser) -> None:
    command.add_argument("prompt", nargs="?", help="the prompt to send")
    command.add_argument("--max-tokens", type=int, metavar="N", help="length of the answer")


def _add_submit(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=Path, help='{"prompt": …} a line, with max_tokens, seed, … if wanted')
    command.add_argument("--wait", action="store_true", help="print the answers as they come")


def _add_logs(command: argparse.ArgumentParser) -> None:
    command.add_argument("process", nargs="?", help="rank (all ranks), 0, 1, …, api or supervisor")
    command.add_argument("-f", "--follow", action="store_true", help="go on as they grow, until Ctrl-C")
    command.add_argument(
        "-n", "--lines", type=_count, default=200, metavar="N", help="how many (default: 200)"
    )


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of lines")
    return int(text)


def _add_plan(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--hosts",
        metavar="NAME:MEMORY,…",
        help="plan for these instead of the settings' hosts, as in mac1:64GB,mac2:16GB; the memory is all "
        "that a host has (GB 10^9, GiB 2^30 bytes), :2 after it gives it two ranks",
    )
    command.add_argument(
        "--cpu", action="store_true", help="the hosts of --hosts have no GPU; else they count as Macs"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_doctor(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--fix",
        action="store_true",
        help="do what is safe: code and environment on the hosts, rights of STATE_DIR; accepts no host key",
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_service(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "action",
        choices=("install", "remove", "show"),
        help="write and start the unit, stop and remove it, or only print it; flags are kept in the unit",
    )
    command.add_argument(
        "--system",
        action="store_true",
        help="for the machine, without a login; needs sudo, runs as its caller",
    )


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("show", "check"))
    command.add_argument("--json", action="store_true", help="print JSON")


def read_overrides(options: argparse.Namespace) -> dict[str, str]:
    """The settings among the flags, by key."""
    from config.show import parse_overrides

    overrides = parse_overrides(options.set)
    for flag, key in SETTING_FLAGS.items():
        value = getattr(options, flag)
        if value is not None:
            overrides[key] = value
    return overrides


def _load(options: argparse.Namespace) -> tuple[Settings, dict[str, str], Terminal]:
    from cluster.terminal import Terminal
    from config import load_settings

    overrides = read_overrides(options)
    return load_settings(overrides), overrides, Terminal()


def _load_for_looking(options: argparse.Namespace) -> tuple[Settings, Terminal]:
    """The same for commands that must work in spite of a bad edit."""
    from cluster.terminal import Terminal
    from config.live import load_for_looking

    return load_for_looking(read_overrides(options)), Terminal()


def _demo(options: argparse.Namespace) -> int:
    from cluster.commands.demo import add_demo_settings, run_demo
    from cluster.terminal import Terminal
    from config import load_settings

    overrides = add_demo_settings(read_overrides(options))
    return run_demo(load_settings(overrides), overrides, Terminal(), with_kill=options.kill)


def _start(options: argparse.Namespace) -> int:
    from cluster.commands.start import check_startable, prepare_foreground, start
    from cluster.supervisor.supervisor import run_supervisor

    settings, overrides, terminal = _load(options)
    if options.dry_run or not options.foreground:
        return start(settings, overrides, terminal, is_rehearsal=options.dry_run)
    check_startable(settings)
    prepare_foreground(settings, overrides, terminal)
    return run_supervisor(overrides)


def _stop(options: argparse.Namespace) -> int:
    from cluster.commands.stop import stop

    settings, terminal = _load_for_looking(options)
    return stop(settings, terminal)


def _restart(options: argparse.Namespace) -> int:
    from cluster.commands.restart import restart
    from cluster.supervisor.service import read_service
    from config import load_settings

    settings, overrides, terminal = _load(options)
    running = read_service(settings)
    kept = running.supervisor.get("overrides", {}) if running.holder else {}
    overrides = {**kept, **overrides}
    return restart(load_settings(overrides), overrides, terminal)


def _status(options: argparse.Namespace) -> int:
    from cluster.commands.status import show_status, watch_status

    settings, terminal = _load_for_looking(options)
    if options.watch:
        return watch_status(settings, terminal)
    return show_status(settings, terminal, as_json=options.json)


def _test(options: argparse.Namespace) -> int:
    from cluster.commands.smoke_test import MAX_TOKENS, PROMPT, run_smoke_test

    settings, _, terminal = _load(options)
    return run_smoke_test(settings, terminal, options.prompt or PROMPT, options.max_tokens or MAX_TOKENS)


def _submit(options: argparse.Namespace) -> int:
    from cluster.commands.submit import submit_file

    settings, _, terminal = _load(options)
    file = Path(os.environ.get("CALLED_FROM", "")) / options.file  # launch.sh has left that folder
    return submit_file(settings, terminal, file, waits=options.wait)


def _replay(options: argparse.Namespace) -> int:
    from cluster.commands.replay import replay

    settings, terminal = _load_for_looking(options)
    return replay(settings, terminal, options.id)


def _logs(options: argparse.Namespace) -> int:
    from cluster.commands.logs import show_logs

    settings, terminal = _load_for_looking(options)
    return show_logs(settings, terminal, options.process, num_lines=options.lines, follow=options.follow)


def _doctor(options: argparse.Namespace) -> int:
    from cluster.commands.doctor import run_doctor

    settings, _, terminal = _load(options)
    return run_doctor(settings, terminal, with_fix=options.fix, as_json=options.json)


def _service(options: argparse.Namespace) -> int:
    from cluster.commands.service_unit import run_service_command

    overrides = read_overrides(options)
    settings, terminal = _load(options)[::2] if options.action == "install" else _load_for_looking(options)
    return run_service_command(settings, overrides, terminal, options.action, is_system=options.system)


def _plan(options: argparse.Namespace) -> int:
    from cluster.commands.plan import show_plan

    settings, _, terminal = _load(options)
    return show_plan(settings, terminal, hosts=options.hosts, has_gpu=not options.cpu, as_json=options.json)


def _config(options: argparse.Namespace) -> int:
    from config.show import main as show

    flags = [word for key, value in read_overrides(options).items() for word in ("--set", f"{key}={value}")]
    return show([options.action, *(["--json"] if options.json else []), *flags])


def _check(options: argparse.Namespace) -> int:
    from cluster.commands.check import run_check
    from cluster.terminal import Terminal

    return run_check(Terminal(), with_slow=not options.fast, with_long=options.all)


def _delegate(options: argparse.Namespace) -> int:
    os.chdir(Path(__file__).resolve().parent.parent.parent)
    words = list(options.rest)
    # Their services are their own: these two are flags of theirs.
    if options.command == "chaos" or words[:1] == ["simulated"]:
        for flag in ("model", "ranks"):
            words += [f"--{flag}", getattr(options, flag)] if getattr(options, flag) else []
            setattr(options, flag, None)
    os.environ.update(read_overrides(options))
    os.execv(sys.executable, [sys.executable, "-m", *DELEGATED[options.command], *words])

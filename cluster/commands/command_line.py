"""The command line: `./launch.sh COMMAND`. Parses the flags and runs the command.

The commands stand in four files by what they are for; each command has its flags beside its `run`. Imports
only the standard library until a command runs, so that help works before anything is installed.

Exit codes: 0 done or ready, 1 failed or degraded, 2 wrong flags or settings, 3 stopped (status), 130
Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from cluster.commands.command import make_setting_flags
from cluster.commands.project_commands import DELEGATED, PROJECT_COMMANDS, delegate_help
from cluster.commands.report_commands import REPORT_COMMANDS
from cluster.commands.requests.request_commands import REQUEST_COMMANDS
from cluster.commands.service_commands import SERVICE_COMMANDS

PROGRAM = "./launch.sh"
COMMANDS = {
    command.name: command
    for command in (*SERVICE_COMMANDS, *REPORT_COMMANDS, *REQUEST_COMMANDS, *PROJECT_COMMANDS)
}
EXIT_WRONG_SETTINGS = 2
EXIT_INTERRUPTED = 130
EXIT_NO_READER = 141  # what a shell shows for SIGPIPE


def main(arguments: Sequence[str]) -> int:
    """Run one command; the exit code."""
    parser = make_parser()
    if not arguments or arguments[0] == "help":
        parser.parse_args([*arguments[1:2], "--help"])
    if arguments[0] in DELEGATED and {"-h", "--help"} & set(arguments):
        delegate_help(arguments)
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in DELEGATED:
        parser.error(f"{options.command} does not know {' '.join(rest)}")
    options.rest = rest
    try:
        return run_command(options)
    except KeyboardInterrupt:
        if after := COMMANDS[options.command].after_interrupt:
            print(f"Interrupted: {after}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone, as in `logs | head`: Python's flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_NO_READER


def run_command(options: argparse.Namespace) -> int:
    """Run the command; print an error as one sentence."""
    from cluster.errors import ClusterError
    from cluster.terminal import Terminal
    from config import SettingsError
    from config.disk_trouble import describe_refused, is_of_system

    try:
        code: int = options.run(options, Terminal())
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
    return code


def make_parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="A ring of machines that serves one language model from a queue of files.",
        epilog=f"{PROGRAM} COMMAND --help shows the flags of a command. "
        "Settings: config/README.md, .env.example.",
    )
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    settings = make_setting_flags()
    for command in COMMANDS.values():
        its_parser = parsers.add_parser(
            command.name, help=command.help, description=command.help, parents=[settings]
        )
        its_parser.set_defaults(run=command.run)
        if command.add_flags is not None:
            command.add_flags(its_parser)
    parsers.add_parser("help", help="show this, or the help of a command")
    return parser

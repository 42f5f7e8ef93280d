"""Commands for work on the project itself: check, and the programs bench, trace and chaos."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cluster.commands.command import Command, read_overrides

if TYPE_CHECKING:
    from cluster.terminal import Terminal

ROOT = Path(__file__).resolve().parent.parent.parent
# Commands with a command line of their own: the module that has it, and its first words.
DELEGATED = {"bench": ("bench",), "chaos": ("chaos",), "trace": ("bench", "trace")}


def _add_check_flags(parser: argparse.ArgumentParser) -> None:
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--fast", action="store_true", help="without the slow tests")
    amount.add_argument(
        "--all", action="store_true", help="the long tests too; writes the result to docs/check-all.txt"
    )


def _run_check(options: argparse.Namespace, terminal: Terminal) -> int:
    from cluster.commands import check

    return check.run_check(terminal, with_slow=not options.fast, with_long=options.all)


def delegate_help(arguments: Sequence[str]) -> NoReturn:
    """Become the program of a delegated command, which prints its own help."""
    os.execv(sys.executable, [sys.executable, "-m", *DELEGATED[arguments[0]], *arguments[1:]])


def delegate(options: argparse.Namespace, _: Terminal) -> NoReturn:
    """Become the program of a delegated command, with the settings in its environment."""
    os.chdir(ROOT)
    words = list(options.rest)
    # These start services of their own: --model and --ranks are flags of theirs.
    if options.command == "chaos" or words[:1] == ["simulated"]:
        for flag in ("model", "ranks"):
            words += [f"--{flag}", getattr(options, flag)] if getattr(options, flag) else []
            setattr(options, flag, None)
    os.environ.update(read_overrides(options))
    os.execv(sys.executable, [sys.executable, "-m", *DELEGATED[options.command], *words])


PROJECT_COMMANDS = (
    Command("check", "lint, types and tests of the project itself", _run_check, _add_check_flags),
    Command("bench", "measure throughput and latency; passes other flags to python -m bench", delegate),
    Command(
        "trace",
        "record some seconds of the running service as a timeline of its stages; trace --help",
        delegate,
    ),
    Command(
        "chaos",
        "kill processes of a service of its own at random and prove that nothing is lost; passes other flags "
        "to python -m chaos",
        delegate,
    ),
)

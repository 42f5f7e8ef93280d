"""Commands that send requests to the service: test, submit, replay."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.commands.command import command, load, load_leniently

if TYPE_CHECKING:
    from cluster.terminal import Terminal


def _add_test_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="the prompt to send")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="length of the answer")


@command("test", "send one real prompt and prove that every rank took part in the answer", _add_test_flags)
def run_test(options: argparse.Namespace, terminal: Terminal) -> int:
    from cluster.commands.requests.smoke_test import MAX_TOKENS, PROMPT, run_smoke_test

    prompt, max_tokens = options.prompt or PROMPT, options.max_tokens or MAX_TOKENS
    return run_smoke_test(load(options), terminal, prompt, max_tokens)


def _add_submit_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help='{"prompt": …} per line; max_tokens, seed, … are optional')
    parser.add_argument("--wait", action="store_true", help="print the answers as they come")


@command("submit", "put the requests of a file into the queue, one JSON object per line", _add_submit_flags)
def run_submit(options: argparse.Namespace, terminal: Terminal) -> int:
    from cluster.commands.requests.submit import submit_file

    file = Path(os.environ.get("CALLED_FROM", "")) / options.file  # launch.sh has left that folder
    return submit_file(load(options), terminal, file, waits=options.wait)


def _add_replay_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="the request's id, as in its answer")


@command("replay", "run a finished request again and show the first token that differs", _add_replay_flags)
def run_replay(options: argparse.Namespace, terminal: Terminal) -> int:
    from cluster.commands.requests.replay import replay

    return replay(load_leniently(options), terminal, options.id)


REQUEST_COMMANDS = (run_test, run_submit, run_replay)

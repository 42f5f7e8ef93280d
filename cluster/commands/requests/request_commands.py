"""Commands that send requests to the service: test, submit, batches, replay."""

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
    parser.add_argument(
        "file",
        type=Path,
        help='{"prompt": …} per line (max_tokens, seed, … are optional), or lines of a batch',
    )
    parser.add_argument(
        "--wait", action="store_true", help="print the answers as they come, and copy them beside FILE"
    )


@command(
    "submit",
    "make a batch of a file, one JSON object per line",
    _add_submit_flags,
    after_interrupt="./launch.sh batches shows what was submitted, and what has become of it",
)
def run_submit(options: argparse.Namespace, terminal: Terminal) -> int:
    from cluster.commands.requests.submit import submit_file

    file = Path(os.environ.get("CALLED_FROM", "")) / options.file  # launch.sh has left that folder
    return submit_file(load(options), terminal, file, waits=options.wait)


def _add_batches_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", default="list", choices=("list", "cancel"), help="default: list")
    parser.add_argument("id", nargs="?", metavar="ID", help="the batch to cancel")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


@command("batches", "list the batches with their counts, or cancel one", _add_batches_flags)
def run_batches(options: argparse.Namespace, terminal: Terminal) -> int:
    from cluster.commands.requests.batches import cancel_batch, list_batches
    from cluster.errors import ClusterError

    settings = load_leniently(options)
    if options.action == "list":
        return list_batches(settings, terminal, is_json=options.json)
    if options.id is None:
        raise ClusterError("which batch? ./launch.sh batches cancel ID")
    return cancel_batch(settings, terminal, options.id)


def _add_replay_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="the request's id, as in its answer")


@command("replay", "run a finished request again and show the first token that differs", _add_replay_flags)
def run_replay(options: argparse.Namespace, terminal: Terminal) -> int:
    from cluster.commands.requests.replay import replay

    return replay(load_leniently(options), terminal, options.id)


REQUEST_COMMANDS = (run_test, run_submit, run_batches, run_replay)

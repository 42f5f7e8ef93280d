"""The command line: `./launch.sh bench COMMAND`, which is `python -m bench COMMAND`.

Imports only the standard library until a command runs, so that help works before anything is installed.
Settings come from the environment, .env and config.json as for the service (launch.sh puts its flags into
the environment); without MODEL_REPO and LOCAL_RANKS the bench uses the built-in model on two ranks.

Exit codes: 0 done, 1 a request failed or answers differ, 2 wrong flags or settings, 3 no service to trace,
130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from bench import trace

EXIT_WRONG_SETTINGS, EXIT_INTERRUPTED = 2, 130
KINDS = ("greedy", "sampled", "prompt", "second-turn", "gap")
SIMULATED = "simulated:layers=32,layer_us=2500,row_us=50,token_us=25"


def main(arguments: Sequence[str]) -> int:
    """Run one command; the exit code."""
    options = make_parser().parse_args(arguments)
    # SIGTERM ends a bench as Ctrl-C does: it stops everything that it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("interrupted: the bench stopped everything that it started", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    """Run the command and print its error, if any."""
    from bench.setup import BenchError
    from config import SettingsError
    from config.disk_trouble import describe_refused, is_of_system

    try:
        return int(import_module(f"bench.{options.module}").run(options))
    except (SettingsError, BenchError) as error:
        print(error, file=sys.stderr)
        return EXIT_WRONG_SETTINGS if isinstance(error, SettingsError) else 1
    except OSError as error:
        if not is_of_system(error):
            raise
        print(f"bench {options.command}: {describe_refused(error)}", file=sys.stderr)
        return 1


def make_parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    parser = argparse.ArgumentParser(
        prog="./launch.sh bench",
        description="Measure the service. bench COMMAND --help has the flags.",
        epilog="load and gap take the address of a running server; without one they start the service. "
        "Put settings before the command: SPECULATION=off ./launch.sh bench load",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, module: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(module=module)
        if name not in ("report", "trace"):
            command.add_argument("--json", action="store_true", help="print JSON instead of a table")
            command.add_argument("--seed", type=int, default=1, metavar="N", help="of prompts (default: 1)")
        return command

    _add_load(add("load", "load", "tokens/s, times to first token and gaps of many clients"))
    _add_gap(add("gap", "gap", "longest wait of running streams while a long prompt arrives"))
    compare = add("compare", "comparison", "ours against mlx_lm.server --pipeline on the same ring")
    peers = add("peers", "comparison", "mlx_lm.server alone, with its best and its default flags")
    for command in (compare, peers):
        _add_compare(command, clients=(1, 8, 32), tokens=64, prompts=(1350,))
        command.add_argument("--only", type=_kinds, dest="kinds", metavar="NAME,…", help=", ".join(KINDS))
    compare.add_argument("--no-peers", action="store_false", dest="with_peers", help="ours alone")
    mixture = add("mixture", "comparison", "compare on a random mixture of experts, and behind long contexts")
    _add_compare(mixture, clients=(1, 8, 16), tokens=32, prompts=(1024, 4096))
    mixture.set_defaults(kinds=("greedy", "context"))
    agreement = add("agreement", "agreement", "parallel answers against solo runs and mlx-lm's model")
    _add_counts(agreement, clients=32, tokens=64)
    overhead = add("overhead", "overhead", "time that front door and spool add to a request")
    _add_count(overhead, "--requests", "requests", 60, "each")
    _add_simulated(add("simulated", "simulated", "rings of simulated stages against the ideal pipeline"))
    trace.add_flags(add("trace", "trace", "timeline of the running service, stage by stage"))
    report = add("report", "report", "write docs/benchmarks.md from the results in docs/benchmarks/")
    kept = "result files to copy there first"
    report.add_argument("files", nargs="*", type=Path, metavar="FILE", help=kept)
    return parser


def _add_counts(command: argparse.ArgumentParser, *, clients: int, tokens: int) -> None:
    _add_count(command, "--clients", "num_clients", clients, "at once")
    _add_count(command, "--tokens", "max_tokens", tokens, "an answer")


def _add_count(
    command: argparse.ArgumentParser,
    flag: str,
    name: str,
    default: int | tuple[int, ...] | None,
    text: str,
) -> None:
    """Add a flag for a count; for several, if the default is several."""
    kind, shape = (_counts, "N,N,…") if isinstance(default, tuple) else (_positive, "N")
    if default is not None:
        text += f" (default: {','.join(map(str, default)) if isinstance(default, tuple) else default})"
    command.add_argument(flag, dest=name, type=kind, default=default, metavar=shape, help=text)


def _add_address(command: argparse.ArgumentParser) -> None:
    text = "a running OpenAI-compatible server; OPENAI_API_KEY has its key, if any"
    command.add_argument("url", nargs="?", metavar="http://HOST:PORT", help=text)
    command.add_argument("--name", metavar="MODEL", help="the model to ask for, if the server needs a name")


def _add_load(command: argparse.ArgumentParser) -> None:
    _add_address(command)
    _add_counts(command, clients=8, tokens=64)
    _add_count(command, "--requests", "num_requests", None, "in all (default: one a client)")
    _add_count(command, "--prompt-tokens", "prompt_tokens", None, "length, about (default: 30 words)")
    mixed = "random lengths of prompts and answers, up to the given ones"
    command.add_argument("--mixed", dest="is_mixed", action="store_true", help=mixed)
    command.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: 0")
    command.add_argument("--top-p", type=float, default=1.0, metavar="P", help="default: 1")


def _add_gap(command: argparse.ArgumentParser) -> None:
    _add_address(command)
    _add_count(command, "--streams", "num_streams", 4, "at once")
    _add_count(command, "--prompt-tokens", "prompt_tokens", 1350, "approximate length of the long prompt")


def _add_compare(
    command: argparse.ArgumentParser, *, clients: tuple[int, ...], tokens: int, prompts: tuple[int, ...]
) -> None:
    command.set_defaults(kinds=KINDS, with_peers=True)
    _add_count(command, "--clients", "clients", clients, "at once")
    _add_count(command, "--prompt-tokens", "prompt_tokens", prompts, "approximate lengths of long prompts")
    _add_count(command, "--tokens", "max_tokens", tokens, "an answer")
    _add_count(command, "--rounds", "num_rounds", 1, "how often to measure all servers in turn")


def _add_simulated(command: argparse.ArgumentParser) -> None:
    _add_counts(command, clients=64, tokens=64)
    _add_count(command, "--ranks", "ring_sizes", (2, 4, 8), "rings to measure")
    text = f"config/simulated.py has the keys (default: {SIMULATED})"
    command.add_argument("--model", dest="model_repo", default=SIMULATED, metavar="NAME", help=text)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({_positive(part) for part in text.split(",")}))


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    if unknown := set(kinds) - set(KINDS):
        raise argparse.ArgumentTypeError(f"no {sorted(unknown)[0]!r}; there are {', '.join(KINDS)}")
    return kinds

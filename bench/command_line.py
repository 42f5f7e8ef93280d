"""The command line: `./launch.sh bench …`, which is `python -m bench …`.

Imports only the standard library until a command runs, so that help works before anything is installed.
Settings come from the environment, .env and config.json as for the service (launch.sh puts its flags into
the environment); where neither MODEL_REPO nor LOCAL_RANKS is set, the built-in model on two ranks is used.

Exit codes: 0 done, 1 something failed or was mixed up, 2 wrong flags, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.progress import Progress

EXIT_INTERRUPTED = 130
QUICK_CLIENTS, QUICK_ROUNDS = (1, 8, 32), 1
FULL_CLIENTS, FULL_ROUNDS = (1, 8, 16, 32), 2
QUICK_MINUTES, FULL_MINUTES = 8, 25  # on two quiet cores
COMPARE = "compare"


def main(arguments: Sequence[str]) -> int:
    """Run one command; the exit code."""
    words = list(arguments)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, COMPARE)
    options = make_parser().parse_args(words)
    # SIGTERM ends a bench as Ctrl-C does: with everything stopped that it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run_command(options)
    except KeyboardInterrupt:
        print("broken off; everything that was started has been stopped", file=sys.stderr)
        return EXIT_INTERRUPTED


def run_command(options: argparse.Namespace) -> int:
    """Run the command and print what it refuses with."""
    from bench.contender import BenchError
    from bench.progress import Progress
    from config.disk_trouble import describe_refused, is_of_system

    run = {
        COMPARE: _compare,
        "agreement": _agreement,
        "overhead": _overhead,
        "idle": _idle,
        "load": _load,
        "simulated": _simulated,
        "durability": _durability,
        "report": _report,
    }[options.command]
    try:
        return run(options, Progress())
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        if not is_of_system(error):
            raise
        print(f"bench {options.command}: {describe_refused(error)}", file=sys.stderr)
        return 1


def make_parser() -> argparse.ArgumentParser:
    """The parser with every command."""
    parser = argparse.ArgumentParser(
        prog="./launch.sh bench",
        description="Measure the service. Without a command: compare, with the flags given.",
        epilog="bench COMMAND --help tells more. Raw data goes to STATE_DIR/bench.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="print the raw data instead of a table")
        return command

    _add_compare(
        add(COMPARE, "ours against mlx_lm.server --pipeline on the same ring, its default and its best flags")
    )
    agreement = add("agreement", "check parallel answers against their solo runs and against mlx-lm's model")
    _add_load_flags(agreement)
    overhead = add("overhead", "what the file queue costs on an idle service, by SPOOL_DURABILITY")
    _add_seed(overhead)
    overhead.add_argument("--requests", type=_positive, default=60, metavar="N", help="each (default: 60)")
    idle = add("idle", "CPU seconds of all processes of an idle service")
    idle.add_argument("--seconds", type=_positive, default=30, metavar="N", help="how long (default: 30)")
    _add_load(add("load", "load any server that runs already"))
    durability = add("durability", "what SPOOL_DURABILITY=power costs in tokens/s, against process, in turn")
    _add_load_flags(durability)
    durability.add_argument("--rounds", type=_positive, default=4, metavar="N", help="both (default: 4)")
    durability.add_argument("--asks", type=_positive, default=2, metavar="N", help="a client (default: 2)")
    report = add("report", "make docs/benchmarks.md from the raw data in docs/benchmarks/")
    report.add_argument("files", nargs="*", metavar="FILE", help="raw data to be kept there before")
    _add_simulated(add("simulated", "rings of timed waits in the place of layers against the ideal pipeline"))
    return parser


def _add_seed(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, default=1, metavar="N", help="of the prompts (default: 1)")


def _add_compare(command: argparse.ArgumentParser) -> None:
    _add_seed(command)
    command.add_argument(
        "--quick",
        action="store_true",
        help=f"clients {_join(QUICK_CLIENTS)} in {QUICK_ROUNDS} round on the ring alone, about "
        f"{QUICK_MINUTES} minutes; without it clients {_join(FULL_CLIENTS)} in {FULL_ROUNDS} rounds and "
        f"everything else, about {FULL_MINUTES}",
    )
    command.add_argument(
        "--only", type=_words, metavar="NAME,…", help="groups or names of measures, such as second-turn,gap"
    )
    command.add_argument("--clients", type=_counts, metavar="N,N,…", help="how many ask at once")
    command.add_argument("--rounds", type=_positive, metavar="N", help="ours and the peers in turn, so often")
    command.add_argument("--tokens", type=_positive, default=64, metavar="N", help="an answer (default: 64)")
    command.add_argument("--no-peer", action="store_true", help="ours alone")
    command.add_argument("--no-agreement", action="store_true", help="do not check the answers for mix-ups")


def _add_load_flags(command: argparse.ArgumentParser) -> None:
    _add_seed(command)
    command.add_argument("--clients", type=_positive, default=32, metavar="N", help="at once (default: 32)")
    command.add_argument("--tokens", type=_positive, default=64, metavar="N", help="an answer (default: 64)")


def _add_load(command: argparse.ArgumentParser) -> None:
    _add_load_flags(command)
    command.add_argument("url", help="http://HOST:PORT; the key, if any, is taken from OPENAI_API_KEY")
    command.add_argument(
        "--api", choices=("openai", "generate"), default="openai", help="/v1/chat/completions or /generate"
    )
    command.add_argument("--model", metavar="NAME", help="the model to name; none by default")
    command.add_argument("--requests", type=_positive, metavar="N", help="in all (default: one a client)")
    command.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: 0")
    command.add_argument("--top-p", type=float, default=1.0, metavar="P", help="default: 1")


def _add_simulated(command: argparse.ArgumentParser) -> None:
    _add_seed(command)
    command.add_argument("--ranks", type=_counts, default=(2, 4, 8), metavar="N,N,…", help="default: 2,4,8")
    command.add_argument("--clients", type=_positive, default=64, metavar="N", help="at once (default: 64)")
    command.add_argument("--tokens", type=_positive, default=64, metavar="N", help="an answer (default: 64)")
    command.add_argument(
        "--model", metavar="NAME", help="simulated:layers=…; config/simulated.py has the keys"
    )
    command.add_argument(
        "--speeds", type=_speeds, default=(), metavar="S,S,…", help="of rank 0, 1, …: an uneven ring"
    )


def _compare(options: argparse.Namespace, progress: Progress) -> int:
    from bench.comparison import Plan, run_comparison
    from bench.contender import BenchError
    from bench.measures import GROUPS, QUICK_GROUPS, all_names

    clients = options.clients or (QUICK_CLIENTS if options.quick else FULL_CLIENTS)
    known = all_names(clients, options.tokens)
    unknown = [name for name in options.only or () if name not in known]
    if unknown:
        raise BenchError(f"there is no measure {unknown[0]!r}; there are: {', '.join(known)}")
    plan = Plan(
        clients=clients,
        max_tokens=options.tokens,
        num_rounds=options.rounds or (QUICK_ROUNDS if options.quick else FULL_ROUNDS),
        seed=options.seed,
        only=options.only or (QUICK_GROUPS if options.quick else GROUPS),
        with_peer=not options.no_peer,
        with_agreement=not options.no_agreement,
    )
    return run_comparison(plan, progress, as_json=options.json)


def _report(options: argparse.Namespace, progress: Progress) -> int:
    from bench.page import write_page

    print(write_page([Path(name) for name in options.files]))
    return 0


def _agreement(options: argparse.Namespace, progress: Progress) -> int:
    from bench.agreement_run import run_agreement

    return run_agreement(options.clients, options.tokens, options.seed, progress, as_json=options.json)


def _overhead(options: argparse.Namespace, progress: Progress) -> int:
    from bench.overhead import run_overhead

    return run_overhead(options.requests, options.seed, progress, as_json=options.json)


def _idle(options: argparse.Namespace, progress: Progress) -> int:
    from bench.idle import run_idle

    return run_idle(options.seconds, progress, as_json=options.json)


def _load(options: argparse.Namespace, progress: Progress) -> int:
    from bench.single_load import LoadPlan, run_single_load

    plan = LoadPlan(
        url=options.url,
        api=options.api,
        model=options.model,
        key=os.environ.get("OPENAI_API_KEY"),
        num_clients=options.clients,
        num_requests=options.requests or options.clients,
        max_tokens=options.tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
    )
    return run_single_load(plan, progress, as_json=options.json)


def _simulated(options: argparse.Namespace, progress: Progress) -> int:
    from bench.simulated import DEFAULT_MODEL, SimulatedPlan, run_simulated

    plan = SimulatedPlan(
        model_repo=options.model or DEFAULT_MODEL,
        ring_sizes=options.ranks,
        num_clients=options.clients,
        max_tokens=options.tokens,
        seed=options.seed,
        speeds=options.speeds,
    )
    return run_simulated(plan, progress, as_json=options.json)


def _durability(options: argparse.Namespace, progress: Progress) -> int:
    from bench.durability import DurabilityPlan, run_durability

    plan = DurabilityPlan(
        num_clients=options.clients,
        asks_per_client=options.asks,
        max_tokens=options.tokens,
        num_rounds=options.rounds,
        seed=options.seed,
    )
    return run_durability(plan, progress, as_json=options.json)


def _speeds(text: str) -> tuple[float, ...]:
    speeds = tuple(float(part) for part in text.split(","))
    if min(speeds) <= 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return speeds


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({_positive(part) for part in text.split(",")}))


def _join(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))

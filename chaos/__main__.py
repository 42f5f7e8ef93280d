"""`python -m chaos`, which `./launch.sh chaos` runs. Exit code 0 only if nothing was lost."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Parse and run; the exit code."""
    parser = argparse.ArgumentParser(prog="./launch.sh chaos", description=sys.modules["chaos"].__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long to kill (default: 2)")
    kills = "stop after N kills"
    parser.add_argument("--kills", dest="max_kills", type=int, default=1 << 30, metavar="N", help=kills)
    parser.add_argument("--seed", type=int, default=0, help="of victims, moments and prompts (default: 0)")
    parser.add_argument("--model", default="tiny", help="tiny (seeded random weights), or any MODEL_REPO")
    parser.add_argument("--ranks", dest="num_ranks", type=int, default=2, help="LOCAL_RANKS (default: 2)")
    clients = "clients at once (default: 8)"
    parser.add_argument("--clients", dest="num_clients", type=int, default=8, help=clients)
    parser.add_argument("--max-tokens", type=int, default=200, help="longest answer (default: 200)")
    parser.add_argument(
        "--pause", dest="pause_s", type=float, nargs=2, default=(0.5, 5.0), metavar=("MIN", "MAX"),
        help="seconds between kills, mostly after the service is ready again (default: 0.5 5)",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="for state, model and journal (default: var/chaos-SEED)")
    values = vars(parser.parse_args(arguments))
    # Imported here: help works without packages.
    from chaos.plan import Plan
    from chaos.run import run

    folder = values["folder"] or Path(__file__).parent.parent / "var" / f"chaos-{values['seed']}"
    values |= {"folder": folder.resolve(), "pause_s": tuple(values["pause_s"])}
    return run(Plan(seconds=values.pop("minutes") * 60, **values))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`./launch.sh trace N`: N seconds of the running service as a Chrome timeline, and as a picture if wanted.

Asks rank 0 for a record of its steps (step_record.py). Works beside any load. Imports only the standard
library until it runs, so that help works before anything is installed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

EXIT_STOPPED = 3
MAX_SECONDS = 600


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument(
        "seconds", type=_seconds, metavar="N", help=f"seconds to record, at most {MAX_SECONDS}"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="timeline (default: STATE_DIR/trace-….json)")
    parser.add_argument("--picture", type=_svg, metavar="FILE.svg", help="also draw some steps")


def _svg(text: str) -> Path:
    if not text.endswith(".svg"):
        raise argparse.ArgumentTypeError("the name of a picture must end in .svg")
    return Path(text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"must be more than 0 and at most {MAX_SECONDS}")
    return seconds


def run(options: argparse.Namespace) -> int:
    """Ask the service of the settings, write the files, print the table."""
    from bench.step_record import GRACE_S, fetch_record, start_record
    from bench.timeline import describe_trace, make_chrome_trace, read_spans
    from cluster.supervisor.service import read_service
    from cluster.terminal import make_table
    from config.live import load_for_looking

    settings = load_for_looking({})
    if read_service(settings).holder is None:
        print("The service does not run: ./launch.sh start", file=sys.stderr)
        return EXIT_STOPPED
    wanted = start_record(settings, options.seconds)
    record = fetch_record(settings, wanted, options.seconds + GRACE_S)
    spans = read_spans(record)
    path = options.out or settings.state_dir / f"trace-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    path.write_text(json.dumps(make_chrome_trace(record, spans)), encoding="utf-8")
    print("\n".join(make_table(describe_trace(record, spans))))
    if not spans:
        print("The ring made no step in this time: no request ran.")
    print(f"\nTimeline: {path} (open it in chrome://tracing or ui.perfetto.dev)")
    if options.picture is not None:
        from bench.picture import draw_timeline

        options.picture.write_text(draw_timeline(spans, len(record["ranks"])), encoding="utf-8")
        print(f"Picture:  {options.picture}")
    return 0

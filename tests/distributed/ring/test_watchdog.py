"""A rank on another host hears its supervisor once a second, or ends: a lost machine sends no end of file."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from config import REPOSITORY_ROOT as ROOT

pytestmark = pytest.mark.slow
PING = '{"event": "ping"}\n'
GONE = 5
# A rank that waits for its start line, and one that has read it; no MLX in either.
WAITING = (
    "from distributed.ring.watchdog import read_first_line; print(repr(read_first_line(LIMIT)), flush=True)"
)
RUNNING = """
import threading
from distributed.ring.watchdog import Watchdog
Watchdog(1, has_supervisor=True, ping_limit_s=LIMIT).start()
threading.Event().wait(60)
"""


def start(program: str, limit_s: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program.replace("LIMIT", str(limit_s))],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def write(rank: subprocess.Popen[str], text: str) -> None:
    assert rank.stdin is not None
    rank.stdin.write(text)
    rank.stdin.flush()


def test_a_rank_that_hears_nothing_ends_though_its_pipe_is_open() -> None:
    """Within the limit and a heartbeat, with a sentence and the code for a supervisor that is gone."""
    with start(RUNNING, 0.5) as rank:
        assert rank.wait(20) == GONE
        assert rank.stderr is not None
        assert "no ping from the supervisor's host for" in rank.stderr.read()


def test_pings_keep_a_rank_alive_and_the_end_of_file_still_ends_it() -> None:
    """A word every second is enough for any limit above it."""
    with start(RUNNING, 5.0) as rank:
        assert rank.stdout is not None
        for _ in range(3):
            write(rank, PING)
            assert "heartbeat" in rank.stdout.readline()
        assert rank.poll() is None
        began = time.monotonic()
        assert rank.stdin is not None
        rank.stdin.close()
        assert rank.wait(4.0) == GONE
        assert time.monotonic() - began < 4.0


@pytest.mark.parametrize(
    ("sent", "said"), [("", "''"), (PING * 2, "''"), (f'{PING}{PING}{{"epoch": 1}}\n', "'{\"epoch\": 1}\\n'")]
)
def test_pings_before_the_start_line_are_passed_over(sent: str, said: str) -> None:
    """A rank waits as long as somebody is there, reads its start line, and gives up in silence."""
    with start(WAITING, 0.5) as rank:
        write(rank, sent)
        assert rank.stdout is not None
        assert rank.stdout.readline().strip() == said
        assert rank.wait(20) == 0

"""The bench with real processes and a tiny model: all servers answer, agree, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from bench.peers import DEFAULT_PEER, PEER
from config import REPOSITORY_ROOT
from tests.fakes.checkpoints import make_checkpoint

LIMIT_S = 300.0
WORDS = ("compare", "--only", "greedy", "--clients", "3", "--tokens", "8", "--json")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny model that both can serve, on two ranks."""
    model = make_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "ministral3")
    settings = {"MODEL_REPO": str(model), "LOCAL_RANKS": "2"}
    return {**os.environ, **settings, "STATE_DIR": str(tmp_path_factory.mktemp("state"))}


@contextmanager
def bench(environment: dict[str, str], *words: str) -> Iterator[subprocess.Popen[str]]:
    """Start the bench as a user does; it is gone at the end."""
    # Where these tests are a shell's background job they are deaf to Ctrl-C, and so would be what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *words],
        cwd=REPOSITORY_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=LIMIT_S)


def processes_of(environment: dict[str, str]) -> list[list[str]]:
    """Command lines of what runs for this test's bench: all of it names its model or its STATE_DIR."""
    names = (environment["MODEL_REPO"], environment["STATE_DIR"])
    lines: list[list[str]] = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [words for words in lines if any(name in word for word in words for name in names)]


@pytest.mark.slow
def test_all_servers_are_measured_and_nothing_is_left(environment: dict[str, str]) -> None:
    """A small comparison: figures of all, of the same prompts, and no process or folder left."""
    with bench(environment, *WORDS) as process:
        output, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    head, *rows = map(json.loads, output.strip().splitlines())
    assert [row["server"] for row in rows] == ["ours", PEER, DEFAULT_PEER]
    assert all(row["rounds"][0] > 0 and row["ttft_ms"][0] > 0 for row in rows)
    assert [server["num_ranks"] for server in head["servers"]] == [2, 2, 2]
    assert head["machine"]["num_cores"] >= 1 and head["machine"]["versions"]["mlx"]
    assert processes_of(environment) == []
    left = [path.suffix for path in (Path(environment["STATE_DIR"]) / "bench").iterdir() if path.suffix]
    assert left == [".jsonl"]


@pytest.mark.long
def test_parallel_answers_agree(environment: dict[str, str]) -> None:
    """With their solo runs, and with mlx-lm's own model."""
    with bench(environment, "agreement", "--clients", "3", "--tokens", "8", "--json") as process:
        output, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    agreement = json.loads(output)
    assert (agreement["num_answers"], agreement["num_wrong_tokens"]) == (3, 0)


@pytest.mark.long
@pytest.mark.parametrize("name", ["ours", "mlx_lm.server"])
def test_breaking_off_stops_what_was_started(environment: dict[str, str], name: str) -> None:
    """Ctrl-C while a contender runs ends with code 130 and no process left."""
    words = WORDS if name == "ours" else ("peers", *WORDS[1:])
    with bench(environment, *words) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if f"{name}: ready and warm" in line:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert processes_of(environment) == []

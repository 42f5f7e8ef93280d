"""The bench with real processes and a tiny model: all contenders answer, agree, and leave nothing behind."""

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

from bench.contender import ROOT
from bench.names import DEFAULT_PEER, PEER
from tests.checkpoints import make_checkpoint

LIMIT_S = 300.0
ONLY = ("--only", "throughput,sampled,prompt-1350")
WORDS = (*ONLY, "--clients", "3", "--rounds", "1", "--tokens", "8", "--json")


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
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=LIMIT_S)


def processes_of(environment: dict[str, str]) -> list[list[str]]:
    """Command lines of what runs for this test's bench: all of it names its model or its STATE_DIR."""
    names = (environment["MODEL_REPO"], environment["STATE_DIR"])
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words: list[str] = process.info["cmdline"] or []
        if any(name in word for word in words for name in names):
            found.append(words)
    return found


@pytest.mark.slow
def test_all_contenders_are_measured_and_nothing_is_left(environment: dict[str, str]) -> None:
    """A whole small comparison: figures for all, parallel answers equal to solo ones, no process left."""
    with bench(environment, *WORDS) as process:
        output, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    data = json.loads(output)
    assert data["ratios"].keys() == {"greedy-3", "prompt-1350", "sampled_of_greedy"}
    assert data["ratios_to_default_flags"].keys() == data["ratios"].keys()
    by_name = {(record["contender"], record["measure"]): record["summary"] for record in data["records"]}
    for name in ("ours", PEER, DEFAULT_PEER):
        assert by_name[name, "greedy-3"]["num_failed"] == 0
        assert by_name[name, "greedy-3"]["completion_tokens"] > 0
        assert by_name[name, "prompt-1350"]["prompt_tokens"] >= 1350
    assert (
        by_name["ours", "greedy-3"]["prompt_tokens"] == by_name["mlx_lm.server", "greedy-3"]["prompt_tokens"]
    )
    busy = next(record["extra"]["busy"] for record in data["records"] if record["measure"] == "greedy-3")
    assert busy is None or len(busy) == 2
    assert data["agreement"]["num_answers"] == 3
    assert data["agreement"]["num_wrong_tokens"] == 0
    assert processes_of(environment) == []
    assert [path.suffix for path in (Path(environment["STATE_DIR"]) / "bench").iterdir() if path.suffix] == [
        ".json"
    ]


@pytest.mark.long
@pytest.mark.parametrize("name", ["ours", "mlx_lm.server"])
def test_breaking_off_stops_what_was_started(environment: dict[str, str], name: str) -> None:
    """Ctrl-C while a contender runs ends with code 130 and no process left."""
    words = WORDS if name != "ours" else (*WORDS, "--no-peer")
    with bench(environment, *words, "--no-agreement") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if f"{name}: ready and warm" in line:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert processes_of(environment) == []

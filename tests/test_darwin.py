"""What is done on a Mac only, on a pretended one: no Mac is here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distributed import mac
from distributed.lifeline import EXIT_SUPERVISOR_GONE

ROOT = Path(__file__).resolve().parent.parent
# Says what it was given, and lives as long as the process behind -w.
CAFFEINATE = """#!/bin/sh
{ echo "$*"; env; } >"$0.part"
mv "$0.part" "$0.said"
while kill -0 "$3" 2>/dev/null; do sleep 0.05; done
touch "$0.ended"
"""
# psutil and the like are imported as on Linux; what looks later sees a Mac.
RANK = """
import os, sys
import server
sys.platform = "darwin"
code = server.main(sys.argv[1:])
print("left:", os.environ.get("MLX_METAL_FAST_SYNCH"), flush=True)
os._exit(code)
"""


@pytest.fixture
def caffeinate(tmp_path: Path) -> Path:
    """Make a program of that name in a folder of its own."""
    program = tmp_path / "bin" / "caffeinate"
    program.parent.mkdir()
    program.write_text(CAFFEINATE)
    program.chmod(0o755)
    return program


def wait_for(path: Path) -> str:
    """Read a file once it is there."""
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)
    return path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--rank", "1"), ("--rank", "1", "--spare")])
def test_a_rank_on_a_mac_is_kept_awake_and_drops_a_dangerous_setting(
    tmp_path: Path, caffeinate: Path, flags: tuple[str, ...]
) -> None:
    """Before MLX is imported; the warning comes once, and caffeinate ends with the rank."""
    environment = {
        **os.environ,
        "PATH": f"{caffeinate.parent}:{os.environ['PATH']}",
        "STATE_DIR": str(tmp_path / "state"),
        "MLX_METAL_FAST_SYNCH": "1",
        "MARKER": "mine",
    }
    done = subprocess.run(
        [sys.executable, "-c", RANK, *flags],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == EXIT_SUPERVISOR_GONE, done.stderr
    assert "left: None" in done.stdout
    assert done.stderr.count("MLX_METAL_FAST_SYNCH") == 1
    words, *rest = wait_for(caffeinate.with_name("caffeinate.said")).splitlines()
    assert words.startswith("-ims -w ")
    assert not any(line.startswith("MARKER") for line in rest)
    wait_for(caffeinate.with_name("caffeinate.ended"))


def test_without_caffeinate_a_mac_serves_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Absent, or no program: no error."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert mac.keep_awake() is None
    (tmp_path / "caffeinate").write_bytes(b"\x7fELF nothing")
    (tmp_path / "caffeinate").chmod(0o755)
    assert mac.keep_awake() is None


def test_linux_starts_nothing_to_stay_awake(monkeypatch: pytest.MonkeyPatch, caffeinate: Path) -> None:
    """Even where a program has that name."""
    monkeypatch.setenv("PATH", str(caffeinate.parent))
    monkeypatch.setattr(sys, "platform", "linux")
    assert mac.keep_awake() is None


def test_a_setting_that_is_not_there_is_not_spoken_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No line in the log of most ranks."""
    monkeypatch.delenv(mac.FAST_SYNCH, raising=False)
    mac.drop_fast_synch()
    assert not caplog.records

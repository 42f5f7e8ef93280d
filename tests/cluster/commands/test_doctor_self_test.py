"""`doctor --self-test`: the block, the JSON, parts that fail, and one whole run in the smallest size."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from cluster.commands.command_line import main
from cluster.commands.doctor import self_test
from cluster.commands.doctor.self_test import Line, Options
from cluster.errors import ClusterError
from cluster.supervisor.lock import SupervisorLock
from cluster.terminal import Terminal
from config import REPOSITORY_ROOT, Settings, load_settings
from tests.services.waiting import until

WRITTEN = datetime(2026, 11, 30, 2, 10, tzinfo=UTC)
LINES = [
    Line("fsync", "median 0.41 ms", figures={"median_ms": 0.41}),
    Line("lap-64KB", "failed: RingLost: gone", failed=True),
]


def settings_in(folder: Path) -> Settings:
    """The settings of a machine without a service."""
    return load_settings({"STATE_DIR": str(folder / "var")}, root=folder, environ={})


def program(code: str) -> list[str]:
    """A part that runs this code."""
    return [sys.executable, "-c", code]


def run_code(code: str, limit_s: float = 20.0) -> list[Line]:
    """The lines of such a part."""
    return self_test.run_program("ring", program(code), dict(os.environ), limit_s)


def test_the_block_is_aligned_and_says_what_failed() -> None:
    """Name, then text from one column on."""
    head, *rows = self_test.format_block(LINES, "small", WRITTEN).splitlines()
    assert head == "mlx-ring self-test, 2026-11-30 02:10 UTC, size small: 1 of 2 lines failed"
    assert rows == [f"{line.name:<20} {line.text}" for line in LINES]


def test_the_json_has_the_same_lines_with_their_figures() -> None:
    """By name; ok only if no line failed."""
    found = self_test.to_json(LINES, "small", WRITTEN)
    assert (found["version"], found["ok"], found["size"]) == (1, False, "small")
    assert found["lines"]["fsync"] == {"text": "median 0.41 ms", "failed": False, "median_ms": 0.41}
    assert self_test.to_json(LINES[:1], "small", WRITTEN)["ok"]


def test_a_part_that_fails_is_a_line_and_the_next_one_runs() -> None:
    """The progress says so."""

    def break_down() -> list[Line]:
        raise OSError("no disk")

    stream = StringIO()
    lines = self_test.run_parts({"disk": break_down, "ring": lambda: LINES[:1]}, Terminal(stream))
    assert lines == [Line("disk", "failed: OSError: no disk", failed=True), LINES[0]]
    assert re.fullmatch(r"1/2 disk … [\d.]+ s, 1 failed\n2/2 ring … [\d.]+ s\n", stream.getvalue())


def test_a_part_that_crashes_keeps_the_lines_that_it_wrote() -> None:
    """Other output is skipped; the end, and its last words, are a line more."""
    line = json.dumps({"name": "a", "text": "b", "failed": False, "figures": {}})
    first, crash = run_code(f"import os, sys; print({line!r}); print('hi'); sys.stdout.flush(); os.abort()")
    assert first == Line("a", "b")
    assert (crash.name, crash.failed) == ("ring", True)
    assert crash.text.startswith("failed: its process was ended by SIGABRT")
    (said,) = run_code("raise SystemExit('no ring here')")
    assert said.text == "failed: exit code 1: no ring here"


def test_a_part_that_hangs_ends_with_its_children(tmp_path: Path) -> None:
    """The whole group is killed."""
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid)); time.sleep(600)"
    )
    (line,) = run_code(code, limit_s=1.5)
    assert line.text == "failed: it took more than 1.5 s"
    pid = int(note.read_text())
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_a_running_service_is_not_disturbed(tmp_path: Path) -> None:
    """Unless --force says so."""
    settings = settings_in(tmp_path)
    lock = SupervisorLock(settings.run_dir)
    try:
        with pytest.raises(ClusterError, match=r"\./launch\.sh stop, or add --force"):
            self_test.run_self_test(settings, Terminal(StringIO()), Terminal(StringIO()), Options())
    finally:
        lock.release()


def test_two_self_tests_do_not_run_at_once(tmp_path: Path) -> None:
    """The second is refused; what the first wrote goes with it."""
    with self_test.own_folder(tmp_path) as folder:
        (folder / "model").touch()
        with pytest.raises(ClusterError, match="another self-test"), self_test.own_folder(tmp_path):
            pass
        assert (folder / "model").exists()
    assert not folder.exists()


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A machine whose parts are measured in no time."""
    monkeypatch.setattr(self_test, "describe_machine", lambda _: LINES[:1])
    monkeypatch.setattr(self_test, "_make_part", lambda name, *_: lambda: [Line(name, "fine")])
    monkeypatch.setattr(self_test, "choose_size", lambda _: "small")
    return settings_in(tmp_path)


def test_the_block_goes_to_the_terminal_and_the_json_to_a_file(measured: Settings, tmp_path: Path) -> None:
    """STATE_DIR/self-test.json, or the file that was named; as_json prints it instead."""
    block, progress = StringIO(), StringIO()
    assert self_test.run_self_test(measured, Terminal(block), Terminal(progress), Options()) == 0
    assert block.getvalue().splitlines()[1:] == [
        "fsync                median 0.41 ms",
        *(f"{name:<20} fine" for name in self_test.PARTS),
    ]
    assert progress.getvalue().startswith("1/9 machine …")
    written = json.loads((measured.state_dir / "self-test.json").read_text())
    assert list(written["lines"]) == ["fsync", *self_test.PARTS]
    other, printed = tmp_path / "other.json", StringIO()
    options = Options(file=other, as_json=True)
    self_test.run_self_test(measured, Terminal(printed), Terminal(progress), options)
    assert json.loads(printed.getvalue()) == json.loads(other.read_text())


def test_a_model_that_is_not_here_is_refused(measured: Settings) -> None:
    """Nothing is downloaded for a test."""
    options = replace(Options(), uses_model=True)
    with pytest.raises(ClusterError):
        self_test.run_self_test(measured, Terminal(StringIO()), Terminal(StringIO()), options)


def facts_of(**changed: Any) -> SimpleNamespace:
    """Facts as a Mac gives them."""
    known = {
        "system": "Darwin",
        "release": "15.1",
        "machine": "arm64",
        "python_version": "3.13.1",
        "chip": "Apple M4 Pro",
        "num_cores": 14,
        "total_memory_bytes": 48 * 10**9,
        "gpu_wired_limit_bytes": 38 * 10**9,
    }
    return SimpleNamespace(**{**known, **changed})


def test_a_mac_gets_the_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its GPU has room; elsewhere the small one does."""
    settings = settings_in(tmp_path)
    settings.state_dir.mkdir()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**11))
    for limit, size in ((38 * 10**9, "full"), (5 * 10**9, "small"), (None, "small")):
        monkeypatch.setattr(
            self_test, "_probe_here", lambda _, limit=limit: facts_of(gpu_wired_limit_bytes=limit)
        )
        assert self_test.choose_size(settings) == size


def test_the_machine_is_described_by_its_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions, chip, memory, the GPU's limit, open files."""
    monkeypatch.setattr(self_test, "_probe_here", lambda _: facts_of())
    texts = {line.name: line.text for line in self_test.describe_machine(settings_in(tmp_path))}
    assert texts["system"] == "macOS 15.1, arm64"
    assert texts["versions"].startswith("Python 3.13.1, mlx ")
    assert texts["chip"] == "Apple M4 Pro, 14 cores, 48.0 GB"
    assert texts["gpu-limit"] == "38.0 GB by MLX"
    assert "hard limit" in texts["descriptors"]


def test_flags_of_the_self_test_are_refused_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A file would be ignored otherwise."""
    assert main(["doctor", "--json", "report.json"]) == 1
    assert "belong to --self-test" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_runs_here_and_has_every_line(tmp_path: Path) -> None:
    """In the smallest size, as the CPU it is; nothing is left of it."""
    state = tmp_path / "var"
    command = [sys.executable, "-m", "cluster", "doctor", "--self-test", "--self-test-size", "tiny"]
    environment = {key: value for key, value in os.environ.items() if key != "CALLED_FROM"}
    began = time.monotonic()
    ended = subprocess.run(
        [*command, "--state-dir", str(state)],
        cwd=REPOSITORY_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    took_s = time.monotonic() - began
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert sorted(path.name for path in state.iterdir()) == ["self-test.json", "self-test.lock"]
    found = json.loads((state / "self-test.json").read_text())
    lines = found["lines"]
    assert ended.stdout.splitlines()[1:] == [f"{name:<20} {line['text']}" for name, line in lines.items()]
    assert set(lines) == {
        *("project", "system", "versions", "chip", "gpu-limit", "descriptors"),
        *("fsync", "full-fsync", "accept", "doorbell"),
        *("sockets", "keepalive", "lap-256B", "lap-64KB", "ring-wait"),
        *(f"parity-{name}" for name in ("deepseek_v2", "llama", "ministral3", "mistral", "qwen2", "qwen3")),
        *(
            "parity-qwen3_moe",
            "model",
            "step",
            "pause-0.01s",
            "keep-warm",
            "latents",
            "memory",
            "shared-device",
        ),
        *(
            f"shape-{name}"
            for name in ("rows-1", "rows-4", "rows-8", "rows-16", "chunk-16", "draft-4", "draft-8")
        ),
        *("speed-mlx-lm", "speed", "ready"),
    }
    assert lines["keepalive"]["sockets"] == 2 * [
        {"on": 1, "idle_s": 1, "interval_s": 1, "count": 3, "nodelay": 1}
    ]
    assert all(
        not any(each.values())
        for each in (lines["parity-llama"]["bfloat16"], lines["parity-qwen3"]["8 bits"])
    )
    page = (REPOSITORY_ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    documented = re.findall(r"`([\w*-]+)`", page.partition("## Only a Mac can prove")[2])
    undocumented = {name for name in lines if not any(fnmatch(name, pattern) for pattern in documented)}
    assert undocumented == {"project", "system", "versions", "chip"}
    step = lines["step"]
    parts_ms = sum(step[f"{part}_ms"] for part in ("build", "submit", "wait", "head"))
    assert 0 < step["total_ms"] < 1000 * took_s
    assert parts_ms > 0
    assert lines["memory"]["last_active_bytes"] > 0
    assert lines["speed"]["tokens_per_s"] > 0
    assert lines["speed-mlx-lm"]["tokens_per_s"] > 0

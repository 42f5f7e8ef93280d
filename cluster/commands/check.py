"""`check`: runs lint, format, types, shell scripts and tests of the project itself.

`--fast` leaves out the tests marked slow; `--all` adds the long ones and writes its result, with the commit,
to docs/check-all.txt. Every step runs, even after a failed one. Several processes run the tests, each whole
files, in the order of tests/conftest.py; long tests need the whole machine and run one after the other. Knows
nothing of what the tests test.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cluster.commands import packages
from cluster.terminal import Terminal, format_duration
from config.limits import count_cores

ROOT = Path(__file__).resolve().parent.parent.parent
REPORT = ROOT / "docs" / "check-all.txt"
SHELL_SCRIPTS = ("launch.sh", ".ci/run")
NO_TESTS = 5  # pytest's exit code where nothing was selected
MAX_WORKERS = 8  # each may run a ring, which takes memory
FAST, NORMAL, LONG = "not slow and not long", "not long", "long"  # what pytest selects by marker


@dataclass(frozen=True)
class Step:
    """One tool to run; pytest writes its numbers to `counts`."""

    name: str
    command: tuple[str, ...]
    counts: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    step: Step
    exit_code: int
    duration_s: float

    @property
    def is_good(self) -> bool:
        return self.exit_code == 0 or (self.step.counts is not None and self.exit_code == NO_TESTS)

    @property
    def counts(self) -> str:
        """How many tests passed and failed, after two spaces; empty for other tools."""
        return f"  {read_counts(self.step.counts)}" if self.step.counts else ""


def run_check(terminal: Terminal, *, with_slow: bool = True, with_long: bool = False) -> int:
    """Run all steps; 0 if every one is good, else 1."""
    packages.ensure_dev()
    packages.ensure_builtin()
    if with_long:
        packages.ensure_long()
    with tempfile.TemporaryDirectory() as folder:
        steps = make_steps(Path(folder), with_slow=with_slow, with_long=with_long)
        outcomes = [_run(step, terminal) for step in steps]
        if with_long:
            REPORT.parent.mkdir(exist_ok=True)
            REPORT.write_text(make_report(outcomes), encoding="utf-8")
        terminal.line()
        for outcome in outcomes:
            verdict, color = ("ok", "green") if outcome.is_good else ("FAILED", "red")
            took = f"{format_duration(outcome.duration_s)}{outcome.counts}"
            terminal.line(f"{outcome.step.name:<14} {terminal.colored(verdict, color)}  {took}")
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


def make_steps(folder: Path, *, with_slow: bool = True, with_long: bool = False) -> list[Step]:
    """The steps in order, the tests last; their counts go to `folder`."""
    tool = (sys.executable, "-m")
    shellcheck = str(Path(sys.executable).with_name("shellcheck"))
    several = ("-n", str(count_workers(count_cores())), "--dist", "loadfile", "--no-loadscope-reorder")
    steps = [
        Step("ruff check", (*tool, "ruff", "check", ".")),
        Step("ruff format", (*tool, "ruff", "format", "--check", ".")),
        Step("mypy", (*tool, "mypy")),
        Step("shellcheck", (shellcheck, *SHELL_SCRIPTS)),
        _make_test_step("tests", folder, NORMAL if with_slow else FAST, *several),
    ]
    return [*steps, _make_test_step("long tests", folder, LONG)] if with_long else steps


def count_workers(num_cores: int) -> int:
    """Processes for the tests: more than cores, since many tests wait for their own processes."""
    return min(MAX_WORKERS, num_cores + max(1, num_cores // 2))


def _make_test_step(name: str, folder: Path, markers: str, *flags: str) -> Step:
    counts = folder / f"{name}.xml"
    tests = (sys.executable, "-m", "pytest", "-q", "-m", markers, "--durations=10", f"--junit-xml={counts}")
    return Step(name, (*tests, *flags), counts)


def _run(step: Step, terminal: Terminal) -> Outcome:
    terminal.line(terminal.colored(f"== {step.name}", "bold"))
    started_at = time.monotonic()
    try:
        ended = subprocess.run(
            step.command, cwd=ROOT, env=_make_environment(), stdin=subprocess.DEVNULL, check=False
        )
        exit_code = ended.returncode
    except OSError as error:
        terminal.line(f"{step.command[0]} cannot be run: {error.strerror}")
        exit_code = 127
    duration_s = time.monotonic() - started_at
    terminal.line(f"   {step.name}: exit code {exit_code} after {format_duration(duration_s)}")
    return Outcome(step, exit_code, duration_s)


def _make_environment() -> dict[str, str]:
    """The environment of every tool; Python keeps bytecode, as hundreds of processes run the same files."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def make_report(outcomes: Sequence[Outcome]) -> str:
    """The text of docs/check-all.txt."""
    changed = " with uncommitted changes" if _git("status", "--porcelain", "--untracked-files=no") else ""
    lines = [
        "Last result of ./launch.sh check --all",
        "",
        f"commit   {_git('rev-parse', 'HEAD') or 'none'}{changed}",
        f"date     {datetime.now(UTC).strftime('%Y-%m-%d %H:%M UTC')}",
        f"machine  {platform.system()} {platform.machine()}, {count_cores()} cores",
        f"python   {platform.python_version()}",
        "",
    ]
    for outcome in outcomes:
        verdict = "ok" if outcome.is_good else f"FAILED ({outcome.exit_code})"
        duration = format_duration(outcome.duration_s)
        lines.append(f"{outcome.step.name:<12} {verdict:<12} {duration}{outcome.counts}")
    return "\n".join(lines) + "\n"


def read_counts(path: Path) -> str:
    """`210 passed, 1 failed, 3 skipped` from pytest's JUnit file."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return "no counts"
    suite = root if root.tag == "testsuite" else root.find("testsuite")
    if suite is None:
        return "no counts"
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    return f"{total - failed - skipped} passed, {failed} failed, {skipped} skipped"


def _git(*arguments: str) -> str:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        ended = subprocess.run(
            ["git", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return ended.stdout.strip() if ended.returncode == 0 else ""

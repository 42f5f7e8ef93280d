"""`doctor --self-test`: measures this machine part by part; prints a block to paste, and writes it as JSON.

Each part is a process (distributed/self_test), so that one that crashes or hangs fails alone. All of them
write in STATE_DIR/self-test only, which is removed at the end; the running spool is never opened. Exit codes:
0 every line has its figures, 1 some line failed.

    {"version": 1, "written": "2026-11-30T02:10:00+00:00", "ok": true, "size": "small",
     "lines": {"fsync": {"text": "median 0.41 ms, …", "failed": false, "median_ms": 0.41, …}, …}}

Knows no MLX, and nothing of what a part measures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.commands.doctor.doctor import ask, measure_reached
from cluster.errors import ClusterError
from cluster.hosts.hosts import read_cluster
from cluster.hosts.ssh import close_connections
from cluster.hosts.worker_setup import find_versions
from cluster.ports import free_ring_ports
from cluster.supervisor.service import read_service
from cluster.terminal import Terminal, format_bytes, format_duration
from config import REPOSITORY_ROOT, ModelNotReady, Settings
from config.limits import raise_descriptor_limits
from config.live import to_environment
from config.model_path import missing_files
from spool import FileSystem

FOLDER, LOCK, JSON_NAME = "self-test", "self-test.lock", "self-test.json"
# The parts of distributed/self_test, and how long each may take.
PART_LIMIT_S = 600.0
PARTS = ("disk", "ring", "parity", "model", "steps", "memory", "sharing", "speed")
FULL, SMALL = "full", "small"
# The full size needs so much of what the GPU may use, and of the disk.
FULL_BYTES = 8 << 30
NAME_WIDTH = 20
BELL_PREFIX = "/tmp/bell-"


@dataclass(frozen=True)
class Line:
    """One named line of the block."""

    name: str
    text: str
    failed: bool = False
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """The flags; `file` None is STATE_DIR/self-test.json, `size` None what fits this machine."""

    file: Path | None = None
    as_json: bool = False
    uses_model: bool = False
    is_forced: bool = False
    size: str | None = None


def run_self_test(settings: Settings, terminal: Terminal, progress: Terminal, options: Options) -> int:
    """Measure, print and write; the exit code.

    Raises:
        ClusterError: the service runs, or another self-test, or the model is not here.
    """
    if read_service(settings).holder and not options.is_forced:
        raise ClusterError(
            f"the service of STATE_DIR {settings.state_dir} runs, and would change all figures: "
            "./launch.sh stop, or add --force"
        )
    model = find_model(settings) if options.uses_model else None
    with own_folder(settings.state_dir) as folder:
        size = options.size or choose_size(settings)
        task = {
            "folder": str(folder),
            "model": str(model or folder / "model"),
            "size": size,
            "hosts": [f"127.0.0.1:{port}" for port in free_ring_ports("127.0.0.1", 2)],
        }
        parts: dict[str, Callable[[], list[Line]]] = {"machine": lambda: describe_machine(settings)}
        parts |= {name: _make_part(name, task, settings) for name in PARTS}
        if read_cluster(settings).remote_hosts:
            parts["links"] = lambda: asyncio.run(measure_links(settings))
        lines = run_parts(parts, progress)
    written = datetime.now(UTC).replace(microsecond=0)
    found = to_json(lines, size, written)
    text = json.dumps(found, indent=2, ensure_ascii=False)
    terminal.line(text if options.as_json else format_block(lines, size, written))
    file = options.file or settings.state_dir / JSON_NAME
    file.write_text(text + "\n", encoding="utf-8")
    progress.line(f"The same as JSON is in {file}")
    return 0 if found["ok"] else 1


def find_model(settings: Settings) -> Path:
    """The folder of --model. Raises: ClusterError: it is not on this machine."""
    try:
        folder = settings.model_dir
        missing = missing_files(folder)
    except ModelNotReady as error:
        raise ClusterError(str(error)) from None
    if missing:
        raise ClusterError(
            f"{folder} is not a complete model, {', '.join(missing[:3])} missing: "
            "./launch.sh start fetches or makes it"
        )
    return folder


@contextlib.contextmanager
def own_folder(state_dir: Path) -> Iterator[Path]:
    """An empty folder for one self-test, removed at the end."""
    state_dir.mkdir(parents=True, exist_ok=True)
    lock = FileSystem().try_lock(state_dir / LOCK)
    if lock is None:
        raise ClusterError(f"another self-test runs in {state_dir}: wait for it")
    folder = state_dir / FOLDER
    try:
        _remove(folder)
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def _remove(folder: Path) -> None:
    """Remove the folder, and the bells under /tmp that it names (spool/doorbell.py)."""
    for note in folder.rglob("bell/PATH"):
        with contextlib.suppress(OSError):
            if (place := note.read_text()).startswith(BELL_PREFIX):
                shutil.rmtree(place)
    shutil.rmtree(folder, ignore_errors=True)


def choose_size(settings: Settings) -> str:
    """`full` where there is a GPU with room and the disk has, too."""
    facts = _probe_here(settings)
    limit, free = facts.gpu_wired_limit_bytes, shutil.disk_usage(settings.state_dir).free
    return FULL if limit is not None and min(limit, free) >= FULL_BYTES else SMALL


def _probe_here(settings: Settings) -> Any:
    """The facts of this machine. Raises: ClusterError."""
    host = next(host for host in read_cluster(settings).hosts if host.is_local)
    facts = asyncio.run(ask(host, settings))
    if isinstance(facts, ClusterError):
        raise facts
    return facts


def describe_machine(settings: Settings) -> list[Line]:
    """Versions, chip, memory and limits."""
    facts, packages = _probe_here(settings), find_versions(("mlx", "mlx-lm"))
    gpu = facts.gpu_wired_limit_bytes
    system = "macOS" if facts.system == "Darwin" else facts.system
    memory, commit = facts.total_memory_bytes or 0, read_commit()
    trouble = raise_descriptor_limits(settings)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = f"{soft} open files (hard limit {hard})"
    release = read_release()
    versions = {"Python": facts.python_version, **packages}
    return [
        _line("project", f"{release}, commit {commit or 'unknown'}", release=release, commit=commit),
        _line("system", f"{system} {facts.release}, {facts.machine}", release=facts.release),
        _line("versions", ", ".join(f"{name} {version}" for name, version in versions.items()), **versions),
        _line("chip", f"{facts.chip}, {facts.num_cores} cores, {format_bytes(memory)}", memory_bytes=memory),
        _line("gpu-limit", f"{format_bytes(gpu)} by MLX" if gpu else "no GPU", gpu_limit_bytes=gpu),
        _line("descriptors", f"{files}; {trouble}" if trouble else files, soft=soft, hard=hard),
    ]


def _line(name: str, text: str, **figures: Any) -> Line:
    return Line(name, text, figures=figures)


def read_release() -> str:
    """The last release in CHANGELOG.md, with + if there are changes since."""
    text = (REPOSITORY_ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *others = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    return f"{others[0]}+" if first == "Unreleased" else first


def read_commit() -> str:
    """The commit of this folder; empty where git does not say."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError):
        ended = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False)
        return ended.stdout.strip()
    return ""


async def measure_links(settings: Settings) -> list[Line]:
    """A line for each link of the ring's hosts, as `doctor` measures it."""
    hosts = read_cluster(settings).hosts
    try:
        facts = await asyncio.gather(*(ask(host, settings) for host in hosts))
        links = await measure_reached(hosts, facts, settings)
    finally:
        await close_connections([host for host in hosts if not host.is_local], how="stop")
    troubles = [
        (host.name, known)
        for host, known in zip(hosts, facts, strict=True)
        if isinstance(known, ClusterError)
    ]
    lines = [Line(f"link-{name}", f"failed: {error}", failed=True) for name, error in troubles]
    for link in links:
        name = f"link-{link.source.name}-{link.target.name}"
        if link.trouble:
            lines.append(Line(name, f"failed: {link.trouble}", failed=True))
            continue
        rates = {
            "latency_us": link.latency_us,
            "send_mbps": link.send_mbps,
            "receive_mbps": link.receive_mbps,
        }
        lines.append(_line(name, ", ".join(f"{key} {value}" for key, value in rates.items()), **rates))
    return lines


def run_parts(parts: dict[str, Callable[[], list[Line]]], progress: Terminal) -> list[Line]:
    """Run one part after the other; one that fails is a line, and the next one runs."""
    lines: list[Line] = []
    for number, (name, measure) in enumerate(parts.items(), 1):
        progress.raw(f"{number}/{len(parts)} {name} …")
        began = time.monotonic()
        try:
            found = measure()
        except Exception as error:  # noqa: BLE001 - a part's failure is a line of the block
            found = [Line(name, f"failed: {type(error).__name__}: {error}", failed=True)]
        num_failed = sum(line.failed for line in found)
        took = format_duration(time.monotonic() - began)
        progress.line(f" {took}{f', {num_failed} failed' if num_failed else ''}")
        lines += found
    return lines


def _make_part(name: str, task: dict[str, Any], settings: Settings) -> Callable[[], list[Line]]:
    command = [sys.executable, "-m", "distributed.self_test", name, json.dumps(task)]
    return lambda: run_program(name, command, {**os.environ, **to_environment(settings)}, PART_LIMIT_S)


def run_program(name: str, command: Sequence[str], environment: dict[str, str], limit_s: float) -> list[Line]:
    """Run a part as a process group, and read its lines; how it ended badly is one more.

    It sees the end of its standard input when this process is gone.
    """
    reading, holding = os.pipe()
    try:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY_ROOT,
            env=environment,
            stdin=reading,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    finally:
        os.close(reading)
    trouble = ""
    try:
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        _kill_group(process)
        output, errors = process.communicate()
        trouble = f"it took more than {limit_s:g} s"
    finally:
        _kill_group(process)
        os.close(holding)
    lines = list(_read_lines(output))
    if not trouble and (process.returncode or not lines):
        said = errors.decode(errors="replace").strip().splitlines()
        trouble = f"{_describe_end(process.returncode)}{f': {said[-1]}' if said else ''}"
    return [*lines, Line(name, f"failed: {trouble}", failed=True)] if trouble else lines


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a part; on macOS a group of zombies refuses it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _describe_end(code: int) -> str:
    return f"its process was ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _read_lines(output: bytes) -> Iterator[Line]:
    """Lines of JSON; what a library prints between them is skipped."""
    for text in output.decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError):
            yield Line(**json.loads(text))


def to_json(lines: Sequence[Line], size: str, written: datetime) -> dict[str, Any]:
    """All lines, by name."""
    return {
        "version": 1,
        "written": written.isoformat(),
        "ok": not any(line.failed for line in lines),
        "size": size,
        "lines": {line.name: {"text": line.text, "failed": line.failed, **line.figures} for line in lines},
    }


def format_block(lines: Sequence[Line], size: str, written: datetime) -> str:
    """The block to paste."""
    num_failed = sum(line.failed for line in lines)
    verdict = f"{num_failed} of {len(lines)} lines failed" if num_failed else f"all {len(lines)} lines"
    head = f"mlx-ring self-test, {written:%Y-%m-%d %H:%M} UTC, size {size}: {verdict}"
    return "\n".join([head, *(f"{line.name:<{NAME_WIDTH}} {line.text}" for line in lines)])

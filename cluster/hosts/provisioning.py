"""Prepares the hosts before ranks start there: checks them, then places code, packages and model files.

Every step handles all hosts at the same time, does only what is missing, and reports to `Show`.
STATE_DIR/run/placed.json keeps the result: the supervisor uses what `start` placed, and places again what has
changed since. Knows nothing of epochs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cluster.errors import ClusterError
from cluster.findings import Finding, refuse_failed
from cluster.hosts import host_checks
from cluster.hosts.code_marks import mark_rank
from cluster.hosts.copy_progress import CopyProgress
from cluster.hosts.hosts import Cluster, Host
from cluster.hosts.model_files import ensure_models
from cluster.hosts.probe import HostFacts, probe
from cluster.hosts.ring_plan import RingLayout, find_short_hosts, plan_ring
from cluster.hosts.ssh import HostUnreachable
from cluster.hosts.worker_setup import (
    ROOT,
    Worker,
    ensure_environment,
    environment_mark,
    list_workers,
    read_environment,
    sync_code,
)
from config import Settings
from config.run_files import read_json, write_json

PLACED_NAME = "placed.json"
PLAN_KEYS = (
    *("MODEL_REPO", "MODEL_SYNC", "LAYER_SPLIT", "WORKER_DIR", "WORKER_PYTHON"),
    *("KV_CACHE_RESERVED_MEMORY_MB", "MAX_ROWS_PER_MICROBATCH", "MICROBATCHES", "MAX_SEQUENCE_LENGTH"),
)

T = TypeVar("T")


class Show(Protocol):
    """Shows people the progress of the steps."""

    def done(self, name: str, detail: str) -> None:
        """Show the end of a step."""

    def say(self, host: str, text: str) -> None:
        """Show progress on a host."""


@dataclass(frozen=True)
class PlainSteps:
    """Writes each step and progress as a line of text."""

    write: Callable[[str], None]

    def done(self, name: str, detail: str) -> None:
        self.write(f"{name}: {detail}")

    def say(self, host: str, text: str) -> None:
        self.write(f"{host}: {text}")


class HostsFailed(ClusterError):
    """Several hosts cannot be used; one sentence per line."""

    def __init__(self, errors: Sequence[ClusterError]) -> None:
        super().__init__("\n".join(str(error) for error in errors))
        self.errors = tuple(errors)


def is_away(error: ClusterError) -> bool:
    """Whether a later try may succeed without any change: a host did not answer."""
    if isinstance(error, HostsFailed):
        return all(is_away(one) for one in error.errors)
    return isinstance(error, HostUnreachable)


async def on_all(things: Sequence[T], action: Callable[[T], Awaitable[Any]]) -> list[Any]:
    """Run an action for each thing at the same time; the results in order.

    Raises:
        ClusterError: the only one, or HostsFailed with all of them, after every action has ended.
    """
    results = await asyncio.gather(*(action(thing) for thing in things), return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    refused = [error for error in errors if isinstance(error, ClusterError)]
    if len(refused) < len(errors):
        raise next(error for error in errors if not isinstance(error, ClusterError))
    if refused:
        raise refused[0] if len(refused) == 1 else HostsFailed(refused)
    return results


@dataclass(frozen=True)
class Provisioned:
    """What was placed: each host's model folder, and the layers of each rank."""

    key: str
    layers: tuple[int, ...] | None = None
    dequantize: bool | None = None
    model_folders: Mapping[str, str] = field(default_factory=dict)  # by the host's ssh destination

    def save(self, run_dir: Path) -> None:
        """Keep it for the next epoch; if the disk refuses, everything is checked again."""
        with contextlib.suppress(OSError):
            write_json(run_dir / PLACED_NAME, asdict(self))


def load_provisioned(run_dir: Path, key: str) -> Provisioned | None:
    """What was placed last, if `key` has not changed since."""
    found = read_json(run_dir / PLACED_NAME) or {}
    if found.get("key") != key:
        return None
    layers = found["layers"]
    return Provisioned(**{**found, "layers": None if layers is None else tuple(layers)})


def forget_provisioned(run_dir: Path) -> None:
    """Check everything again before the next epoch."""
    with contextlib.suppress(OSError):  # no such file, or a read-only disk
        (run_dir / PLACED_NAME).unlink()


def make_key(settings: Settings, cluster: Cluster) -> str:
    """A mark of all that decides what to place: hosts, settings of the plan, code, packages."""
    parts = [
        [asdict(host) for host in cluster.hosts],
        [str(settings.value(key)) for key in PLAN_KEYS],
        [[path, str(mark)] for path, mark in mark_rank(ROOT)],
        environment_mark(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


async def check_hosts(cluster: Cluster, settings: Settings, show: Show) -> tuple[HostFacts, ...]:
    """Check every host as the doctor does; facts in the order of the hosts.

    Raises:
        ClusterError: a sentence for each host that cannot be used, with the fix.
    """
    workers = {worker.host.ssh: worker for worker in list_workers(cluster, settings)}

    async def check(host: Host) -> HostFacts:
        facts = await probe(host, settings)
        if not host.is_local:
            environment = await read_environment(workers[host.ssh])
            _refuse_failed(host, host_checks.check_host(facts, environment))
        elif host is cluster.hosts[0]:
            _refuse_failed(host, host_checks.check_first_host(facts, is_single=cluster.is_single))
        return facts

    facts = tuple(await on_all(cluster.hosts, check))
    others = [entry for entry in facts if not entry.host.is_local]
    words = [f"{entry.host.name} (Python {entry.python_version}{_describe_free(entry)})" for entry in others]
    show.done("hosts", f"{len(facts)} reached: this one, {', '.join(words)}")
    return facts


def _refuse_failed(host: Host, findings: Sequence[Finding]) -> None:
    for finding in findings:
        if (
            finding.level == "failed" and finding.check == "ring"
        ):  # a cable may be out, and its address with it
            raise HostUnreachable(host, finding.text, finding.fix)
    refuse_failed(findings)


def _describe_free(facts: HostFacts) -> str:
    return "" if facts.free_memory_bytes is None else f", {facts.free_memory_bytes / 1e9:.1f} GB free"


async def place_code(workers: Sequence[Worker], show: Show) -> None:
    """Bring code and environments up to date. Raises: ClusterError."""

    async def sync(worker: Worker) -> str:
        changed = await sync_code(worker)
        return f"{worker.host.name} {_count_files(changed)}"

    async def make(worker: Worker) -> str:
        made = await ensure_environment(worker, lambda text: show.say(worker.host.name, text))
        return f"{worker.host.name} {'made' if made else 'there'}"

    show.done("code", ", ".join(await on_all(workers, sync)))
    show.done("packages", ", ".join(await on_all(workers, make)))


def _count_files(names: Sequence[str]) -> str:
    if not names:
        return "up to date"
    return names[0] if len(names) == 1 else f"{len(names)} files"


async def plan_model(
    cluster: Cluster,
    settings: Settings,
    facts: Sequence[HostFacts],
    show: Show,
    held_bytes: Mapping[str, int] | None = None,
) -> RingLayout:
    """Plan the layers by the hosts' memory.

    Raises:
        PlanRefused: the model does not fit.
        ModelRefused: it cannot be served.
        ModelUnknown: its sizes are not known yet.
    """
    layout = await plan_ring(settings, cluster, facts, held_bytes or {})
    short = [f"{name}: {text}" for name, text in find_short_hosts(layout).items()]
    show.done("plan", "; ".join([describe_shares(layout), *short]))
    return layout


def describe_shares(layout: RingLayout) -> str:
    """The number of layers of each rank, in a line."""
    shares = [f"rank {share.rank} on {share.host} {share.num_layers}" for share in layout.ranks]
    return f"layers of {', '.join(shares)}"


async def place_model(cluster: Cluster, settings: Settings, layout: RingLayout, show: Show) -> Provisioned:
    """Copy to each host the model files of its layers. Raises: ClusterError."""
    workers = list_workers(cluster, settings)
    folders = await ensure_models(cluster, workers, layout, settings, CopyProgress(show.say).report)
    show.done("files", ", ".join(f"{worker.host.name} verified" for worker in workers))
    return Provisioned(make_key(settings, cluster), layout.counts, layout.dequantize, folders)


async def place_all(cluster: Cluster, settings: Settings, show: Show) -> Provisioned:
    """Run all steps, for the supervisor; the model must be on this machine. Raises: ClusterError."""
    facts = await check_hosts(cluster, settings, show)
    layout = await plan_model(cluster, settings, facts, show)
    await place_code(list_workers(cluster, settings), show)
    placed = await place_model(cluster, settings, layout, show)
    placed.save(settings.run_dir)
    return placed

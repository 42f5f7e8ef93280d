"""Copies to each host the model files that its ranks need, and no others.

With MODEL_SYNC=copy rsync sends them from this machine, and continues an interrupted copy; with hub the
host's own environment fetches the same files from the Hub. Either way every file's sha256 there is then
compared with the one here (model_sums.py).

    WORKER_DIR/models/{name}-{mark}/    mark: of config and index, so that no two models share a folder

rsync runs with options that 2.6.9 and openrsync know: -L --partial --progress -e --rsync-path. Without -t a
copied file never has the time of its source, so rsync compares the contents.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.hosts.hosts import Cluster, Host
from cluster.hosts.model_sums import (
    FileSum,
    FolderSums,
    ModelFilesRefused,
    ProgressLines,
    Report,
    run_long,
    sum_local,
    sum_on_worker,
)
from cluster.hosts.ring_plan import RingLayout
from cluster.hosts.ssh import shell_words, ssh_words
from cluster.hosts.worker_setup import Worker, describe_rsync
from cluster.log_files import LineBuffer
from config import Settings
from config.model_path import is_hub_name
from distributed.planning.checkpoint import ModelError
from distributed.planning.layer_plan import weights_hash
from distributed.planning.stage_files import needed_files

RSYNC_FLAGS = ("-L", "--partial", "--progress")
SPARE_DISK_BYTES = 1_000_000_000
# A copy that differs is made once more.
MAX_COPIES = 2
_PROGRESS = re.compile(r"\s+([\d,.]+)\s+\d+%")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Shipment:
    """The files that one worker must have, with their sums."""

    worker: Worker
    source: Path
    target: str  # below WORKER_DIR
    files: Mapping[str, FileSum]

    @property
    def host(self) -> Host:
        return self.worker.host


async def ensure_models(
    cluster: Cluster, workers: Sequence[Worker], layout: RingLayout, settings: Settings, report: Report
) -> dict[str, str]:
    """Bring all workers their files at the same time; the absolute folder there, by ssh destination.

    Raises:
        HostUnreachable: ssh does not get through.
        ModelFilesRefused: no room, or a copy failed or differs.
    """
    source = settings.model_dir
    try:
        wanted = {
            worker.host.ssh: needed_files(source, layout.ranges, cluster.ranks_of(worker.host))
            for worker in workers
        }
        target = f"models/{folder_name(settings.model_name, source)}"
    except ModelError as error:
        raise ModelFilesRefused(str(error)) from error
    names = sorted({name for files in wanted.values() for name in files})
    here = await sum_local(cluster.hosts[0], settings, source, names, report)
    shipments = [
        Shipment(worker, source, target, {name: here.files[name] for name in wanted[worker.host.ssh]})
        for worker in workers
    ]
    folders = await asyncio.gather(
        *(ensure_shipment(shipment, settings, report) for shipment in shipments), return_exceptions=True
    )
    errors = [result for result in folders if isinstance(result, BaseException)]
    if errors:
        raise errors[0]
    return {str(shipment.host.ssh): str(folder) for shipment, folder in zip(shipments, folders, strict=True)}


def folder_name(model_name: str, folder: Path) -> str:
    """A name for a model's folder on other hosts: safe in a shell, with the mark of config and index."""
    return f"{_UNSAFE.sub('_', model_name).lstrip('.-_')}-{weights_hash(folder)[:8]}"


async def ensure_shipment(shipment: Shipment, settings: Settings, report: Report) -> str:
    """Bring one worker the files it lacks; the absolute folder there.

    Raises:
        HostUnreachable, ModelFilesRefused: see `ensure_models`.
    """
    there = await sum_on_worker(shipment.worker, settings, shipment.target, shipment.files, report)
    for _ in range(MAX_COPIES):
        lacking = find_lacking(shipment.files, there.files)
        if not lacking:
            return there.folder
        check_room(shipment, there, lacking)
        report(shipment.host.name, 0, sum(entry.size for entry in lacking.values()), "copying")
        if settings.model_sync == "hub" and is_hub_name(settings.model_repo, settings.root):
            await _fetch(shipment, settings, there.folder, lacking, report)
        else:
            await _copy(shipment, lacking, report)
        there = await sum_on_worker(shipment.worker, settings, shipment.target, shipment.files, report)
    lacking = find_lacking(shipment.files, there.files)
    if lacking:
        raise ModelFilesRefused(
            f"{shipment.host.name}: {there.folder}/{min(lacking)} differs from the file here after "
            f"{MAX_COPIES} copies: check the disk and memory of both hosts"
        )
    return there.folder


def find_lacking(wanted: Mapping[str, FileSum], there: Mapping[str, FileSum]) -> dict[str, FileSum]:
    """The files that are missing there or differ."""
    return {
        name: entry
        for name, entry in wanted.items()
        if name not in there or there[name].sha256 != entry.sha256
    }


def check_room(shipment: Shipment, there: FolderSums, lacking: Mapping[str, FileSum]) -> None:
    """Refuse to fill the disk; rsync keeps the old file until the new one is complete.

    Raises:
        ModelFilesRefused: with the sizes.
    """
    old = [there.files[name].size for name in lacking if name in there.files]
    needed = sum(entry.size for entry in lacking.values()) - sum(old) + max(old, default=0)
    if needed + SPARE_DISK_BYTES > there.free_bytes:
        raise ModelFilesRefused(
            f"{shipment.host.name}: {len(lacking)} files of the model need {needed / 1e9:.2f} GB more, its "
            f"disk has {there.free_bytes / 1e9:.2f} GB free at {there.folder} (and "
            f"{SPARE_DISK_BYTES / 1e9:.0f} GB should stay free): remove other models there, or name "
            "another folder with WORKER_DIR"
        )


async def _copy(shipment: Shipment, lacking: Mapping[str, FileSum], report: Report) -> None:
    host, total = shipment.host, sum(entry.size for entry in lacking.values())
    lines = CopyLines(lacking, lambda num: report(host.name, num, total, "copying"))
    words = [
        *("rsync", *RSYNC_FLAGS, "-e", shlex.join(ssh_words(host, is_shared=False))),
        *("--rsync-path=umask 077; rsync", "--"),
        *(str(shipment.source / name) for name in lacking),
        shipment.worker.rsync_path(shipment.target),
    ]
    done = await run_long(host, words, lines.feed)
    if done.code:
        raise ModelFilesRefused(
            f"{host.name}: rsync ended with code {done.code} ({describe_rsync(done)}); "
            "./launch.sh start continues where it ended"
        )


class CopyLines(LineBuffer):
    """rsync's --progress: file names on lines of their own, after each `  123,456  45% …` between \\r."""

    def __init__(self, lacking: Mapping[str, FileSum], on_copied: Callable[[int], None]) -> None:
        super().__init__()
        self._lacking = lacking
        self._on_copied = on_copied
        self._current = ""
        self._copied: dict[str, int] = {}

    def feed(self, data: bytes) -> None:
        """Take a piece of standard output."""
        super().feed(data.replace(b"\r", b"\n"))

    def put_line(self, line: str) -> None:
        """Take one line, or one report of the progress."""
        if line in self._lacking:
            self._current = line
        elif self._current and (match := _PROGRESS.match(line)):
            copied = int(re.sub(r"\D", "", match[1]))
            self._copied[self._current] = min(copied, self._lacking[self._current].size)
            self._on_copied(sum(self._copied.values()))


async def _fetch(
    shipment: Shipment, settings: Settings, folder: str, lacking: Mapping[str, FileSum], report: Report
) -> None:
    """Let the worker's own environment fetch the files from the Hub, at this machine's revision."""
    worker, total = shipment.worker, sum(entry.size for entry in lacking.values())
    endpoint = os.environ.get("HF_ENDPOINT")
    prefix = f"HF_ENDPOINT={shlex.quote(endpoint)} " if endpoint else ""
    arguments = ["--repo", settings.model_repo, "--revision", shipment.source.name, "--into", folder]
    command = (
        f"umask 077; cd {worker.shell_path('code')} && {prefix}exec {worker.shell_path('venv/bin/python')} "
        f"-m distributed.prepare {shlex.join([*arguments, *lacking])}"
    )
    lines = ProgressLines(lambda num: report(worker.host.name, num, total, "fetching"))
    done = await run_long(worker.host, shell_words(worker.host, command, is_shared=False), lines.feed)
    if done.code:
        raise ModelFilesRefused(f"{worker.host.name}: {done.last_line}")

"""The doctor's checks of the model: the plan that `start` would make, or why not, and the files to copy.

Plans as hosts/ring_plan.py does, and saves nothing. Knows nothing of ssh.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import ClusterError
from cluster.findings import Finding
from cluster.hosts.host_rooms import PlanRefused, measure_rooms
from cluster.hosts.hosts import LOCAL_NAME, Cluster
from cluster.hosts.model_files import SPARE_DISK_BYTES, folder_name
from cluster.hosts.model_source import HubOutOfReach, ModelRefused, ModelUnknown, read_source
from cluster.hosts.probe import HostFacts, probe
from cluster.hosts.ring_plan import RingLayout, choose_layout, find_short_hosts
from cluster.supervisor.service import Service
from cluster.terminal import format_bytes
from cluster.threads import run_beside
from config import Settings
from distributed.planning.checkpoint import ModelError
from distributed.planning.stage_files import needed_files


async def check_plan(
    settings: Settings, cluster: Cluster, facts: Sequence[HostFacts], service: Service
) -> list[Finding]:
    """One finding per host, or one on why there is no plan."""
    try:
        rooms = measure_rooms(cluster, facts, service.held_bytes if service.holder else {})
        source = await run_beside(read_source, settings)
        layout = choose_layout(settings, source, rooms)
    except PlanRefused as error:
        return [Finding(LOCAL_NAME, "plan", "failed", str(error), "./launch.sh plan --help")]
    except ModelRefused as error:
        return [Finding(LOCAL_NAME, "plan", "failed", str(error), "set MODEL_REPO to another model")]
    except HubOutOfReach as error:
        return [Finding(LOCAL_NAME, "plan", "failed", str(error))]
    except ModelUnknown as error:
        return [Finding(LOCAL_NAME, "plan", "note", f"cannot tell yet whether the model fits: {error}")]
    findings = [_describe_share(layout, name) for name in dict.fromkeys(room.name for room in layout.rooms)]
    findings += [Finding(name, "memory", "note", text) for name, text in find_short_hosts(layout).items()]
    remote = [known for known in facts if not known.host.is_local]
    if source.folder is not None:
        checks = (_check_files(settings, cluster, layout, known, source.folder) for known in remote)
        findings += await asyncio.gather(*checks)
    return findings


async def _check_files(
    settings: Settings, cluster: Cluster, layout: RingLayout, known: HostFacts, folder: Path
) -> Finding:
    """Whether a host has the files of its layers, by size; `start` compares their sums."""
    name, ranks = known.host.name, cluster.ranks_of(known.host)
    there = f"{known.worker_dir}/models/{folder_name(settings.model_name, folder)}"
    try:
        files = needed_files(folder, layout.ranges, ranks)
        listed = (await probe(known.host, settings, model_folder=there, num_ports=0)).model_files or {}
    except (ClusterError, ModelError) as error:
        return Finding(name, "model", "note", f"cannot tell whether it has the model's files: {error}")
    sizes = {file: (folder / file).stat().st_size for file in files}
    missing = [file for file, size in sizes.items() if listed.get(file) != size]
    if not missing:
        return Finding(name, "model", "ok", f"it has all {len(files)} files of its layers")
    num_bytes = sum(sizes[file] for file in missing)
    text = f"it lacks {len(missing)} of {len(files)} files of its layers, {format_bytes(num_bytes)}"
    if known.disk_free_bytes is not None and known.disk_free_bytes < num_bytes + SPARE_DISK_BYTES:
        text += f", and only {format_bytes(known.disk_free_bytes)} are free"
        return Finding(
            name, "model", "failed", text, "make room there, or set WORKER_DIR to a folder on another disk"
        )
    return Finding(name, "model", "note", f"{text}: `start` copies them")


def _describe_share(layout: RingLayout, name: str) -> Finding:
    shares = layout.ranks_of(name)
    layers = ", ".join(f"{share.first_layer}-{share.layers.stop - 1}" for share in shares)
    needed = sum(share.weights_bytes + share.kv_bytes for share in shares)
    usable = sum(room.usable_bytes for room in layout.rooms if room.name == name)
    text = f"layers {layers} need {format_bytes(needed)} of {format_bytes(usable)} usable"
    return Finding(name, "plan", "ok", text)

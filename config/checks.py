"""Checks settings against each other, and checks what a start needs.

The loader compares pairs of settings. `start_problems` has the checks that only a start needs, so that
`config show` works for settings that cannot start. Reads no source of settings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from config.api_keys import KeysUnreadable, read_api_keys
from config.binding import BindingRefused, check_binding, resolve
from config.errors import Problem
from config.ring_hosts import list_hosts

if TYPE_CHECKING:
    from config.settings import Settings

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Relation:
    """Two settings and the condition between them."""

    first: str
    must: str
    second: str
    holds: Callable[[Settings], bool]


def _layer_counts_match(settings: Settings) -> bool:
    counts = settings.layer_counts
    has_hosts = bool(settings.worker_hosts or settings.ring_hostfile)  # `start_problems` counts theirs
    return counts is None or has_hosts or len(counts) == settings.local_ranks


RELATIONS = (
    Relation(
        "FILE_DESCRIPTOR_SOFT_LIMIT",
        "must not be more than",
        "FILE_DESCRIPTOR_HARD_LIMIT",
        lambda settings: settings.file_descriptor_soft_limit <= settings.file_descriptor_hard_limit,
    ),
    Relation(
        "MAX_BODY_BYTES",
        "must fit into the MiB of",
        "MAX_QUEUE_MB",
        lambda settings: settings.max_body_bytes <= settings.max_queue_mb * MIB,
    ),
    Relation(
        "POLL_INTERVAL",
        "must be less than",
        "REQUEST_TIMEOUT",
        lambda settings: settings.poll_interval < settings.request_timeout,
    ),
    Relation(
        "RESULT_RETENTION_HOURS",
        "must not be a shorter time than the seconds of",
        "REQUEST_TIMEOUT",
        lambda settings: settings.result_retention_hours * 3600 >= settings.request_timeout,
    ),
    Relation(
        "LAYER_SPLIT",
        "must hold one count for each rank, as many as",
        "LOCAL_RANKS",
        _layer_counts_match,
    ),
)


def relation_problems(settings: Settings, unusable: Set[str] = frozenset()) -> list[Problem]:
    """Return a problem for each relation that fails, without those about a key in `unusable`."""
    return [
        settings.problem(
            relation.first,
            f"{_written(settings, relation.first)} {relation.must} {_written(settings, relation.second)} "
            f"(from {settings.origin(relation.second)})",
        )
        for relation in RELATIONS
        if unusable.isdisjoint((relation.first, relation.second)) and not relation.holds(settings)
    ]


def start_problems(settings: Settings) -> list[Problem]:
    """Return the problems that stop a start with well-formed settings."""
    problems = _host_problems(settings)
    for key in ("API_KEYS_FILE", "RING_SECRET_FILE"):
        path = settings.value(key)
        if path is None:
            continue
        if not (path.is_file() and os.access(path, os.R_OK)):
            problems.append(settings.problem(key, f"{key} names a file that cannot be read"))
        elif key == "API_KEYS_FILE":
            try:
                read_api_keys(path)
            except KeysUnreadable as error:
                problems.append(settings.problem(key, str(error)))
    try:
        _check_access(settings)
    except BindingRefused as error:
        problems.append(settings.problem("API_HOST", str(error)))
    return problems


def start_warnings(settings: Settings) -> list[str]:
    """Return the warnings that a start should show."""
    try:
        warning = _check_access(settings)
    except BindingRefused:
        warning = None
    found = [] if warning is None else [f"API_HOST = {settings.api_host}: {warning}"]
    if settings.api_keys_file is None:
        limits = [key for key in ("KEY_MAX_IN_FLIGHT", "KEY_REQUESTS_PER_MINUTE") if settings.value(key)]
        found += [f"{_written(settings, key)} limits nothing without API_KEYS_FILE" for key in limits]
    return [*settings.warnings, *found]


def _check_access(settings: Settings) -> str | None:
    return check_binding(resolve(settings.api_host), has_keys=settings.api_keys_file is not None)


def _host_problems(settings: Settings) -> list[Problem]:
    """Return problems of the ring's hosts that show without a connection to them."""
    key = "RING_HOSTFILE" if settings.ring_hostfile else "WORKER_HOSTS"
    if settings.ring_hostfile and settings.worker_hosts:
        return [settings.problem(key, "RING_HOSTFILE and WORKER_HOSTS both name the hosts: keep one of them")]
    try:
        hosts = list_hosts(settings.worker_hosts, settings.ring_hostfile, settings.local_ranks)
    except ValueError as error:
        return [settings.problem(key, f"{key}: {error}")]
    size, counts = sum(host.num_ranks for host in hosts), settings.layer_counts
    if counts is None or len(counts) == size:
        return []
    ranks = ", ".join(f"{host.name} {host.num_ranks}" for host in hosts)
    split = _written(settings, "LAYER_SPLIT")
    sentence = f"{split} has {len(counts)} counts, the ring {size} ranks ({ranks})"
    return [settings.problem("LAYER_SPLIT", sentence)]


def _written(settings: Settings, key: str) -> str:
    return f"{key} = {settings.shown(key)}"

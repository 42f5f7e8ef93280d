"""What must hold between settings, and what must hold before a start.

Pure comparisons of two settings are made when settings are loaded; what only a start needs
(`start_problems`) is kept apart, so that `config show` works on settings that cannot be served. This file
reads no source of settings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from config.errors import Problem

if TYPE_CHECKING:
    from config.manager import Settings

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Relation:
    """Two settings and what must hold between them."""

    first: str
    must: str
    second: str
    holds: Callable[[Settings], bool]


def _layer_counts_match(settings: Settings) -> bool:
    counts = settings.layer_counts
    return counts is None or bool(settings.worker_hosts) or len(counts) == settings.local_ranks


RELATIONS = (
    Relation(
        "DEFAULT_MAX_TOKENS",
        "must be less than",
        "MAX_SEQUENCE_LENGTH",
        lambda settings: settings.default_max_tokens < settings.max_sequence_length,
    ),
    Relation(
        "FILE_DESCRIPTOR_SOFT_LIMIT",
        "must not be more than",
        "FILE_DESCRIPTOR_HARD_LIMIT",
        lambda settings: settings.file_descriptor_soft_limit <= settings.file_descriptor_hard_limit,
    ),
    Relation(
        "MAX_PROMPT_LEN_BYTES",
        "must not be more than",
        "MAX_BODY_BYTES",
        lambda settings: settings.max_prompt_len_bytes <= settings.max_body_bytes,
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
    """Name every relation that does not hold, leaving out those about a key in `unusable`."""
    return [
        Problem(
            str(settings.origin(relation.first)),
            f"{_written(settings, relation.first)} {relation.must} {_written(settings, relation.second)} "
            f"(from {settings.origin(relation.second)})",
            relation.first,
        )
        for relation in RELATIONS
        if unusable.isdisjoint((relation.first, relation.second)) and not relation.holds(settings)
    ]


def start_problems(settings: Settings) -> list[Problem]:
    """Name what keeps well-formed settings from being served here."""
    problems = []
    if settings.worker_hosts:
        problems.append(
            Problem(
                str(settings.origin("WORKER_HOSTS")),
                f"WORKER_HOSTS = {settings.worker_hosts!r} names other hosts, and this release does not "
                "serve a ring over several hosts yet; leave WORKER_HOSTS empty and choose the ranks of this "
                "machine with LOCAL_RANKS",
                "WORKER_HOSTS",
            )
        )
    for key in ("API_KEYS_FILE", "RING_SECRET_FILE"):
        path = settings.value(key)
        if path is not None and not (path.is_file() and os.access(path, os.R_OK)):
            problems.append(
                Problem(str(settings.origin(key)), f"{key} names a file that cannot be read", key)
            )
    return problems


def _written(settings: Settings, key: str) -> str:
    return f"{key} = {settings.shown(key)}"

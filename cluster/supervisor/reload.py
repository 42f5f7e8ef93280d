"""New settings for a running supervisor: an edit of `.env` or config.json, and the orders of `restart`.

    run/restart.json   {"id", "overrides": {KEY: value}, "environment": {KEY: value}}   written by `restart`,
                       which then sends SIGHUP and reads the outcome in supervisor.json

Reads and compares only; the supervisor sends values to processes and restarts them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from config import Settings, SettingsError, load_settings
from config.checks import start_problems
from config.live import apply_live, find_changes, mark_files
from config.run_files import read_json, write_json

ORDER_NAME = "restart.json"
# Fixed for as long as a supervisor runs: another value needs another supervisor.
FIXED_KEYS = ("API_HOST", "API_PORT", "STATE_DIR")

logger = logging.getLogger("cluster.supervisor.supervisor")


@dataclass
class Sources:
    """Where the supervisor's settings come from: the files in `root`, its flags and its environment."""

    root: Path
    overrides: Mapping[str, str]
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def load(self) -> Settings:
        """Read all sources again. Raises: SettingsError."""
        return load_settings(self.overrides, root=self.root, environ=self.environ)


@dataclass(frozen=True)
class Edit:
    """The result of an edit: the new settings, the live values for the children, and what needs a restart."""

    settings: Settings
    values: dict[str, Any]
    needs_restart: list[str]
    error: str | None = None


class SettingsWatch:
    """Notices edits of the settings files."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self._mark = mark_files(sources.root)

    def look(self, running: Settings) -> Edit | None:
        """The edit since the last look, with each difference logged; None if there was none."""
        mark = mark_files(self.sources.root)
        if mark == self._mark:
            return None
        self._mark = mark
        try:
            edited = self.sources.load()
        except SettingsError as error:
            logger.error("the edited settings are refused: %s", "; ".join(map(str, error.problems)))
            return Edit(running, {}, [], "; ".join(map(str, error.problems)))
        settings, values = apply_live(running, edited)
        for change in find_changes(running, settings):
            logger.info("settings: %s", change)
        waiting = find_changes(settings, edited)
        for change in waiting:
            logger.info("settings: %s needs a restart", change)
        return Edit(settings, values, [str(change) for change in waiting])


@dataclass(frozen=True)
class RestartOrder:
    """A `restart` that a running supervisor has to do."""

    id: str
    overrides: dict[str, str]
    environment: dict[str, str]  # the settings in the environment of the `restart` command


def write_order(run_dir: Path, order: RestartOrder) -> None:
    """Write an order for the supervisor."""
    write_json(run_dir / ORDER_NAME, vars(order))


def take_order(run_dir: Path) -> RestartOrder | None:
    """Read and remove the order; None for a SIGHUP without one."""
    found = read_json(run_dir / ORDER_NAME) or {}
    with contextlib.suppress(OSError):  # on a read-only disk the order stays and is taken again
        (run_dir / ORDER_NAME).unlink(missing_ok=True)
    try:
        return RestartOrder(str(found["id"]), dict(found["overrides"]), dict(found["environment"]))
    except (KeyError, TypeError, ValueError):
        return None


def load_ordered(sources: Sources, running: Settings) -> Settings:
    """The settings for a restart.

    Raises:
        SettingsError: they are wrong, or cannot be served.
        ClusterError: they need another supervisor.
    """
    settings = sources.load()
    if problems := start_problems(settings):
        raise SettingsError(problems)
    changed = [key for key in FIXED_KEYS if settings.value(key) != running.value(key)]
    if changed:
        raise ClusterError(
            f"{', '.join(changed)} can only be changed by stop and start: ./launch.sh stop, ./launch.sh start"
        )
    return settings

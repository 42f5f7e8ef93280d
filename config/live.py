"""Live settings: finds what an edit changes, and passes new values to running processes.

Only the supervisor reads `.env` and `config.json`. It starts each process with every effective value in the
environment, and with SETTINGS_FROM=environment: a bad edit of a file must not stop a rank's restart. Later it
writes each change of a live setting as a line {"event": "settings", "values": {KEY: value}} to the process's
standard input. Knows no key by name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from config.errors import SettingsError
from config.fields import format_value, json_value
from config.layers import collect, validation_problems
from config.manager import REPOSITORY_ROOT, load_settings, make_settings
from config.settings import Settings
from config.sources import DOTENV_NAME, ENVIRONMENT, JSON_NAME, read_mapping

SETTINGS_FROM = "SETTINGS_FROM"
FROM_ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that an edit changed, for people (secrets are masked)."""

    key: str
    old: str
    new: str
    is_live: bool

    def __str__(self) -> str:
        return f"{self.key} {self.old or '(none)'} -> {self.new or '(none)'}"


def find_changes(running: Settings, edited: Settings) -> list[Change]:
    """Return every key whose value differs, in the order of the class."""
    return [
        Change(key, running.shown(key), edited.shown(key), running.about(key).is_live)
        for key in running.all_keys()
        if running.value(key) != edited.value(key)
    ]


def apply_live(running: Settings, edited: Settings) -> tuple[Settings, dict[str, Any]]:
    """Apply the live settings of an edit; return the new settings, and the new values by key for JSON.

    This cannot break a relation of config/checks.py: none is between a live setting and another kind.
    """
    changed = [change.key for change in find_changes(running, edited) if change.is_live]
    values = {key: json_value(edited.value(key)) for key in changed}
    return with_values(running, values), values


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Return the settings with other values, checked as the loader checks them.

    Raises:
        pydantic.ValidationError: a value is not allowed, or the key is unknown.
    """
    fields = {**settings.model_dump(), **{key.lower(): value for key, value in values.items()}}
    changed = Settings(**fields)
    changed._origins = settings._origins
    return changed


def to_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of a process that must run with exactly these settings."""
    values = {key: format_value(settings.value(key)) for key in settings.all_keys()}
    return {SETTINGS_FROM: FROM_ENVIRONMENT, **values}


def load_inherited_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings of a process: from its supervisor if it has one, otherwise from all sources.

    Raises:
        SettingsError: as load_settings.
    """
    environ = os.environ if environ is None else environ
    if environ.get(SETTINGS_FROM) != FROM_ENVIRONMENT:
        return load_settings(environ=environ)
    known = {key: environ[key] for key in Settings.all_keys() if key in environ}
    entries = read_mapping(known, ENVIRONMENT).entries
    try:
        return make_settings(REPOSITORY_ROOT, entries)
    except ValidationError as error:
        raise SettingsError(validation_problems(error, entries)) from error


def load_for_looking(overrides: Mapping[str, str], root: Path | None = None) -> Settings:
    """Read all sources without wrong values, for a command that inspects or stops a running service.

    The service did not take a bad edit, so the edit must not stop these commands.

    Raises:
        SettingsError: the remaining values are wrong, too.
    """
    try:
        return load_settings(overrides, root=root)
    except SettingsError as error:
        folder = (root or REPOSITORY_ROOT).resolve()
        entries, _, _ = collect(folder, overrides, os.environ)
        try:
            return make_settings(folder, entries, error.problems)
        except ValidationError:
            raise error from None


def mark_files(root: Path, names: Collection[str] = (DOTENV_NAME, JSON_NAME)) -> tuple[object, ...]:
    """Return time, inode and length of each settings file; an edit changes them."""
    marks: list[object] = []
    for name in names:
        try:
            stat = (root / name).stat()
        except OSError:
            marks.append(None)
        else:
            marks.append((stat.st_mtime_ns, stat.st_ino, stat.st_size))
    return tuple(marks)


class SettingsLines:
    """Splits the supervisor's input into lines, and calls `on_settings` with the values of each."""

    def __init__(self, on_settings: Callable[[dict[str, Any]], None]) -> None:
        self._on_settings = on_settings
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Process input; skip lines of other kinds."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                body = json.loads(line)
                is_ours = body["event"] == "settings"
                values = dict(body["values"])
            except (ValueError, TypeError, KeyError):
                continue
            if is_ours:
                self._on_settings(values)

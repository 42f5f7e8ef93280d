"""Merges the sources of settings, and describes wrong values. Knows only the keys that callers pass in."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from config.errors import Problem
from config.fields import about, allowed_values
from config.retired import RETIRED_KEYS, drop_retired
from config.sources import (
    COMMAND_LINE,
    DOTENV_NAME,
    ENVIRONMENT,
    JSON_NAME,
    Entry,
    Layer,
    Origin,
    read_dotenv,
    read_json_settings,
    read_mapping,
)


def collect(
    root: Path, overrides: Mapping[str, str], environ: Mapping[str, str], fields: Mapping[str, FieldInfo]
) -> tuple[dict[str, Entry], list[Problem], list[str]]:
    """Return the winning entry of each key, the problems of the sources, and warnings."""
    known_environment = {key: value for key, value in environ.items() if key in fields or key in RETIRED_KEYS}
    layers = (
        read_json_settings(root / JSON_NAME),
        read_dotenv(root / DOTENV_NAME),
        read_mapping(known_environment, ENVIRONMENT),
        read_mapping(overrides, COMMAND_LINE),
    )
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    warnings: list[str] = []
    for layer in layers:
        warnings += drop_retired(layer)
        problems += layer.problems
        problems += _unknown_keys(layer, fields)
        problems += _unprintable_values(layer, fields)
        entries.update({key: entry for key, entry in layer.entries.items() if key in fields})
    return entries, problems, warnings


def validation_problems(
    error: ValidationError, entries: Mapping[str, Entry], fields: Mapping[str, FieldInfo]
) -> list[Problem]:
    """Describe pydantic's errors, one for each wrong key: the value, the reason and the allowed values."""
    reasons: dict[str, str] = {}
    for detail in error.errors(include_url=False, include_input=False):
        key = str(detail["loc"][0]).upper()
        cause = detail.get("ctx", {}).get("error") if detail["type"] == "value_error" else None
        reasons[key] = reasons.get(key) or (str(cause) if cause is not None else "")
    return [_wrong_value(key, reason, entries[key], fields[key]) for key, reason in reasons.items()]


def unknown_key(key: str, known: Collection[str], origin: Origin) -> Problem:
    """Describe an unknown key, with the closest known key; its value is not shown."""
    near = difflib.get_close_matches(key.upper(), known, n=1)
    if near:
        advice = f"did you mean {near[0]}?"
    else:
        advice = "config/README.md lists the keys; set other programs' variables in the environment"
    return Problem(str(origin), f"{_printable(key)} is not a setting; {advice}", key)


def _unknown_keys(layer: Layer, fields: Mapping[str, FieldInfo]) -> list[Problem]:
    return [
        unknown_key(key, fields, entry.origin) for key, entry in layer.entries.items() if key not in fields
    ]


def _unprintable_values(layer: Layer, fields: Mapping[str, FieldInfo]) -> list[Problem]:
    return [
        _wrong_value(key, "it holds a character that cannot be printed", entry, fields[key])
        for key, entry in layer.entries.items()
        if key in fields and entry.value is not None and not entry.value.isprintable()
    ]


def _wrong_value(key: str, reason: str, entry: Entry, field: FieldInfo) -> Problem:
    if about(field).is_secret:
        value = "(hidden)"
    elif entry.value is None:
        value = "null"
    else:
        value = _shortened(repr(entry.value))
    because = f" ({reason})" if reason else ""
    sentence = f"{key} = {value} is not allowed{because}; allowed: {allowed_values(field)}"
    return Problem(str(entry.origin), sentence, key)


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."


def _printable(key: str) -> str:
    return key if re.fullmatch(r"[!-~]{1,120}", key) else _shortened(repr(key))

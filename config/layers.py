"""Merges the sources of settings, and describes wrong values. Knows no key by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from config.errors import Problem
from config.fields import allowed_values
from config.retired import RETIRED_KEYS, drop_retired
from config.settings import Settings
from config.sources import (
    COMMAND_LINE,
    DOTENV_NAME,
    ENVIRONMENT,
    JSON_NAME,
    Entry,
    Origin,
    read_dotenv,
    read_json_settings,
    read_mapping,
)


def collect(
    root: Path, overrides: Mapping[str, str], environ: Mapping[str, str]
) -> tuple[dict[str, Entry], list[Problem], list[str]]:
    """Return the winning entry of each key, the problems of the sources, and warnings."""
    keys = Settings.fields().keys()
    known_environment = {key: value for key, value in environ.items() if key in keys | RETIRED_KEYS}
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
        for key, entry in layer.entries.items():
            if key not in keys:
                problems.append(_unknown_key(key, entry.origin))
                continue
            entries[key] = entry
            if entry.value is not None and not entry.value.isprintable():
                problems.append(_wrong_value(key, "it holds a character that cannot be printed", entry))
    return entries, problems, warnings


def validation_problems(error: ValidationError, entries: Mapping[str, Entry]) -> list[Problem]:
    """Describe pydantic's errors, one for each wrong key: the value, the reason and the allowed values."""
    reasons: dict[str, str] = {}
    for detail in error.errors(include_url=False, include_input=False):
        key = str(detail["loc"][0]).upper()
        cause = detail.get("ctx", {}).get("error") if detail["type"] == "value_error" else None
        reasons[key] = reasons.get(key) or (str(cause) if cause is not None else "")
    return [_wrong_value(key, reason, entries[key]) for key, reason in reasons.items()]


def _unknown_key(key: str, origin: Origin) -> Problem:
    """Describe an unknown key, with the closest known key; its value is not shown."""
    near = difflib.get_close_matches(key.upper(), Settings.all_keys(), n=1)
    if near:
        advice = f"did you mean {near[0]}?"
    else:
        advice = "config/README.md lists the keys; set other programs' variables in the environment"
    return Problem(str(origin), f"{_printable(key)} is not a setting; {advice}", key)


def _wrong_value(key: str, reason: str, entry: Entry) -> Problem:
    if Settings.about(key).is_secret:
        value = "(hidden)"
    elif entry.value is None:
        value = "null"
    else:
        value = _shortened(repr(entry.value))
    because = f" ({reason})" if reason else ""
    allowed = allowed_values(Settings.fields()[key])
    sentence = f"{key} = {value} is not allowed{because}; allowed: {allowed}"
    return Problem(str(entry.origin), sentence, key)


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."


def _printable(key: str) -> str:
    return key if re.fullmatch(r"[!-~]{1,120}", key) else _shortened(repr(key))

"""Loads the settings.

Precedence: command line, environment, `.env`, `config.json`, default. Relative paths start from the folder of
`.env` and `config.json`. Knows nothing of how the other folders use a setting; never imports MLX.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from config.checks import relation_problems
from config.errors import Problem, SettingsError
from config.layers import collect, validation_problems
from config.settings import Settings
from config.sources import Entry

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent


def load_settings(
    overrides: Mapping[str, str] | None = None,
    *,
    root: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read all sources and return the effective settings.

    Args:
        overrides: the command line's values, by key.
        root: the folder of `.env` and `config.json`; the repository by default.
        environ: the environment; the process's own by default.
    Raises: SettingsError with every problem at once, for the process's entry point to print.
    """
    folder = (root or REPOSITORY_ROOT).resolve()
    entries, problems, warnings = collect(folder, overrides or {}, os.environ if environ is None else environ)
    # An unreadable file would make relations between its values look wrong.
    is_whole = all(problem.key for problem in problems)
    try:
        settings = make_settings(folder, entries, problems)
    except ValidationError as error:
        problems += validation_problems(error, entries)
        settings = make_settings(folder, entries, problems)
    if is_whole:
        problems += relation_problems(settings, {problem.key for problem in problems})
    if problems:
        raise SettingsError(problems)
    settings._warnings = tuple(warnings)
    return settings


def make_settings(root: Path, entries: Mapping[str, Entry], problems: Sequence[Problem] = ()) -> Settings:
    """Make settings of the entries without a problem. Raises: pydantic.ValidationError."""
    wrong = {problem.key for problem in problems}
    good = {key: entry for key, entry in entries.items() if key not in wrong}
    values: dict[str, Any] = {key.lower(): entry.value for key, entry in good.items()}
    settings = Settings(root=root, **values)
    settings._origins = {key: entry.origin for key, entry in good.items()}
    return settings

"""The exceptions of this room.

    ConfigError
    ├── SettingsError    a setting is wrong or unknown: nothing starts (exit code 2)
    └── ModelNotReady    MODEL_REPO is well formed, but the model is not on this machine yet

Each carries a stable `code` and the HTTP status under which the front door would report it. This file knows
nothing of where settings come from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Problem:
    """One wrong setting: where it stands (`.env:12`), the sentence about it, and its key if it has one."""

    origin: str
    sentence: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.origin}: {self.sentence}"


class ConfigError(Exception):
    """Something about the settings keeps the service from going on."""

    code: ClassVar[str] = "config_error"
    status: ClassVar[int] = 500


class SettingsError(ConfigError):
    """Holds every problem that was found, so that one reading mends them all."""

    code: ClassVar[str] = "settings_invalid"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ModelNotReady(ConfigError):
    """The model named by MODEL_REPO has to be made or downloaded first."""

    code: ClassVar[str] = "model_not_ready"
    status: ClassVar[int] = 503

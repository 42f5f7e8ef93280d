"""The root of the service's exceptions, and those of this room.

    ServiceError             500 internal_error
    ├── ConfigError          500 config_error       the settings keep a process from going on (exit code 2)
    │   ├── SettingsError    500 settings_invalid   a setting is wrong or unknown
    │   ├── BindingRefused   500 binding_refused    binding.py: nobody may listen there without keys
    │   └── ModelNotReady    503 model_not_ready    MODEL_REPO is well formed, but the model is not here yet
    ├── SpoolError           spool/errors.py
    └── InvalidRequest, …    frontdoor/http/errors.py

Each class carries its HTTP status and a stable `code`: plain data, which the front door's one handler turns
into an answer (frontdoor/http/errors.py). This file knows nothing of where settings come from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SOON_SECONDS = 2  # when nothing better is known


class ServiceError(Exception):
    """Something went wrong that a user has to hear of; `status` and `code` are promises to clients.

    `param` names the field or header that is wrong; `retry_seconds` says when to come back, where that helps.
    """

    status = 500
    code = "internal_error"
    param: str | None = None
    retry_seconds: int | None = None

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.param = param or self.param
        self.code = code or self.code
        self.status = status or self.status


@dataclass(frozen=True, slots=True)
class Problem:
    """One wrong setting: where it stands (`.env:12`), the sentence about it, and its key if it has one."""

    origin: str
    sentence: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.origin}: {self.sentence}"


class ConfigError(ServiceError):
    """Something about the settings keeps the service from going on."""

    code = "config_error"


class SettingsError(ConfigError):
    """Holds every problem that was found, so that one reading fixes them all."""

    code = "settings_invalid"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ModelNotReady(ConfigError):
    """The model named by MODEL_REPO has to be made or downloaded first."""

    status = 503
    code = "model_not_ready"

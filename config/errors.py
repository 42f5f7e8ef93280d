"""The root of the service's exceptions, and the exceptions of the settings.

    ServiceError             500 internal_error
    ├── ConfigError          500 config_error       the settings stop the process (exit code 2)
    │   ├── SettingsError    500 settings_invalid   a setting is wrong or unknown
    │   ├── BindingRefused   500 binding_refused    binding.py: this address needs API keys
    │   ├── KeysUnreadable   500 keys_unreadable    api_keys.py: API_KEYS_FILE cannot be used
    │   └── ModelNotReady    503 model_not_ready    MODEL_REPO is valid, but the model is not downloaded
    ├── SpoolError           spool/errors.py
    └── InvalidRequest, …    frontdoor/http/errors.py

Each class carries its HTTP status and a stable `code`, which the front door's one handler turns into an
answer (frontdoor/http/errors.py). Knows nothing of the sources of settings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SOON_SECONDS = 2  # Retry-After without an estimate


class ServiceError(Exception):
    """An error that a user must see; `status` and `code` are stable for clients.

    `param` names the wrong field or header; `retry_seconds` says when a retry may succeed.
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
    """One wrong setting: its place (`.env:12`), the message, and its key if it has one."""

    origin: str
    sentence: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.origin}: {self.sentence}"


class ConfigError(ServiceError):
    """The settings stop the process."""

    code = "config_error"


class SettingsError(ConfigError):
    """Holds every problem at once, so that a user can fix all of them together."""

    code = "settings_invalid"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ModelNotReady(ConfigError):
    """The model named by MODEL_REPO has to be made or downloaded first."""

    status = 503
    code = "model_not_ready"

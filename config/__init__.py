"""Settings of the service: one class, one loader, and the set-up that every process makes of them.

Knows what may be set and where it was written; knows nothing of requests, rings or models. Imports no other
room.
"""

from config.errors import ConfigError, ModelNotReady, Problem, SettingsError
from config.manager import REPOSITORY_ROOT, load_settings
from config.settings import Settings

__all__ = [
    "REPOSITORY_ROOT",
    "ConfigError",
    "ModelNotReady",
    "Problem",
    "Settings",
    "SettingsError",
    "load_settings",
]

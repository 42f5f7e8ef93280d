"""Settings of the service: one class, one loader, and what every process sets up from them.

Knows the settings and the sources of their values; knows nothing of requests, rings or models. Imports no
other folder.
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

"""The Settings class: every setting, and values that follow from several settings.

A key is in capitals; its attribute has the same name in small letters. Reads no source; `manager` fills it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr
from pydantic.fields import FieldInfo

from config import model_path
from config.errors import Problem
from config.fields import (
    About,
    about,
    format_value,
    is_setting,
    json_value,
    parse_layer_counts,
    split_list,
)
from config.ring_setting_groups import EngineSettings, RingSettings
from config.setting_groups import ApiSettings, ModelSettings, ProcessSettings, StateSettings
from config.sources import DEFAULT, Origin

MASK = "********"


class Settings(
    # The fields of the last class come first.
    ProcessSettings,
    EngineSettings,
    RingSettings,
    StateSettings,
    ApiSettings,
    ModelSettings,
):
    """Every effective setting; frozen. `load_settings` makes it and checks relations between settings."""

    _origins: Mapping[str, Origin] = PrivateAttr(default_factory=dict)
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @property
    def spool_dir(self) -> Path:
        """The folder of the file queue."""
        return self.state_dir / "spool"

    @property
    def run_dir(self) -> Path:
        """The folder of the running service's status files."""
        return self.state_dir / "run"

    @property
    def log_dir(self) -> Path:
        """The folder of the logs of the processes that the supervisor starts."""
        return self.state_dir / "logs"

    @property
    def ring_secret_path(self) -> Path:
        """The file of the ring's secret."""
        return self.ring_secret_file or self.state_dir / "ring.secret"

    @property
    def model_dir(self) -> Path:
        """The folder of the model. Raises ModelNotReady where a Hub model is not downloaded."""
        return model_path.locate_model(
            self.model_repo, root=self.root, state_dir=self.state_dir, cache_dir=self.model_cache_dir
        )

    @property
    def model_name(self) -> str:
        """The short public name of the model."""
        return model_path.short_name(self.model_repo)

    @property
    def model_alias_list(self) -> tuple[str, ...]:
        """MODEL_ALIASES as single names."""
        return split_list(self.model_aliases)

    @property
    def layer_counts(self) -> tuple[int, ...] | None:
        """LAYER_SPLIT as numbers by rank; None for auto."""
        return None if self.layer_split == "auto" else parse_layer_counts(self.layer_split)

    @property
    def cors_origin_list(self) -> tuple[str, ...]:
        """CORS_ORIGINS as single origins."""
        return split_list(self.cors_origins)

    @property
    def allowed_host_list(self) -> tuple[str, ...]:
        """ALLOWED_HOSTS as single patterns."""
        return split_list(self.allowed_hosts)

    @classmethod
    def fields(cls) -> dict[str, FieldInfo]:
        """The field of every key, in the order of the class."""
        return {name.upper(): field for name, field in cls.model_fields.items() if is_setting(field)}

    @classmethod
    def all_keys(cls) -> tuple[str, ...]:
        """Every key, in the order of the class."""
        return tuple(cls.fields())

    @classmethod
    def about(cls, key: str) -> About:
        """The description of a key."""
        return about(cls.model_fields[key.lower()])

    def value(self, key: str) -> Any:
        """The effective value of a key."""
        return getattr(self, key.lower())

    def shown(self, key: str) -> str:
        """The effective value as text, masked where it is a secret."""
        text = format_value(self.value(key))
        return MASK if text and self.about(key).is_secret else text

    def origin(self, key: str) -> Origin:
        """The source of a key's effective value."""
        return self._origins.get(key, DEFAULT)

    def problem(self, key: str, sentence: str) -> Problem:
        """A problem of a key's effective value."""
        return Problem(str(self.origin(key)), sentence, key)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about retired keys and values."""
        return self._warnings

    def public(self) -> dict[str, str | int | float | None]:
        """Return the effective settings by key, without secrets, for JSON."""
        return {key: json_value(self.value(key)) for key in self.all_keys() if not self.about(key).is_secret}

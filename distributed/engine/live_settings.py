"""Applies edits of live settings to rank 0 while it runs.

Called in the watchdog's thread; the main thread reads a value when it uses it. Knows which parts of rank 0
hold a live setting; nothing of who edits them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from config import Settings
from config.live import with_values
from distributed.engine.engine import Engine
from distributed.engine.engine_config import make_engine_limits
from spool import PromptFileDefaults, SpoolOwner

logger = logging.getLogger(__name__)


class LiveSettings:
    """Rank 0's settings as they are now."""

    def __init__(self, settings: Settings, owner: SpoolOwner, engine: Engine) -> None:
        self._settings, self._owner, self._engine = settings, owner, engine

    def on_settings(self, values: Mapping[str, Any]) -> None:
        """Apply new values, by key; all of them or none."""
        try:
            self._settings = with_values(self._settings, values)
        except ValidationError as error:
            logger.error("live settings not applied: %s", error)
            return
        apply_to_spool(self._settings, self._owner)
        self._engine.limits = make_engine_limits(self._settings)


def apply_to_spool(settings: Settings, owner: SpoolOwner) -> None:
    """Set the defaults of dropped prompt files and the limits of the queue."""
    owner.file_defaults = PromptFileDefaults(settings.model_name, settings.default_max_tokens)
    owner.spool.admission.max_depth = settings.max_queue_depth
    owner.spool.admission.max_bytes = settings.max_queue_mb * 2**20

"""A front door under a supervisor: reports when it serves, takes live settings, ends with its supervisor.

    standard input    {"event": "settings", "values": {KEY: value}}; end of file: the supervisor is gone
    standard output   {"event": "serving"}

Knows which parts hold a setting; nothing of the settings' sources.
"""

import json
import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from config import Settings
from config.live import SettingsLines, with_values
from config.logs import set_level
from frontdoor.state import FrontDoor

log = logging.getLogger(__name__)


class SupervisedServer(uvicorn.Server):
    """Reports to the supervisor when it takes connections; waits `patience_s` for its clients at the end.

    Its successor serves already, so the clients get all the time that they are ready to wait.
    """

    def __init__(self, config: uvicorn.Config, patience_s: Callable[[], float]) -> None:
        super().__init__(config)
        self._patience_s = patience_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down within the current patience, not that of the start."""
        self.config.timeout_graceful_shutdown = int(self._patience_s()) + 1
        await super().shutdown(sockets=sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then report it."""
        await super().startup(sockets=sockets)
        if self.started:
            print(json.dumps({"event": "serving"}), flush=True)


class LiveSettings:
    """Applies new values of live settings to all new work; runs in the watchdog's thread."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def on_settings(self, values: dict[str, Any]) -> None:
        """Replace the app's settings as a whole, so that every request sees consistent ones."""
        front: FrontDoor = self._app.state.front_door
        try:
            settings = with_values(front.settings, values)
        except ValidationError as error:
            log.error("cannot apply live settings of another release: %s; run ./launch.sh restart", error)
            return
        set_level(settings.log_level)
        self._app.state.front_door = replace(front, settings=settings)
        apply_to_parts(front, settings)


def apply_to_parts(front: FrontDoor, settings: Settings) -> None:
    """Pass new values to the parts that keep a setting."""
    front.spool.admission.max_depth = settings.max_queue_depth
    front.spool.admission.max_bytes = settings.max_queue_mb * 2**20
    front.subscriptions.poll_interval_seconds = settings.poll_interval
    front.disconnects.grace_seconds = settings.disconnect_grace_seconds


def follow_supervisor(app: FastAPI, on_end: Callable[[], None]) -> None:
    """Read standard input in a thread, and call `on_end` when the supervisor is gone."""

    def follow() -> None:
        lines = SettingsLines(LiveSettings(app).on_settings)
        while data := os.read(0, 65536):
            lines.feed(data)
        on_end()

    threading.Thread(target=follow, name="watchdog", daemon=True).start()

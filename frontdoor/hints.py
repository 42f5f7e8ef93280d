"""Logs once which hints clients send, because these fields change no output here."""

import logging
from collections.abc import Set

from frontdoor.schemas import Hints

log = logging.getLogger(__name__)


class HintLog:
    """Remembers which names were logged."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def note(self, body: Hints) -> None:
        """Log the hints of a body."""
        self.note_names(body.model_fields_set & Hints.model_fields.keys())

    def note_names(self, names: Set[str]) -> None:
        """Log the names that are used for the first time; never a value."""
        for name in sorted(names - self._logged):
            self._logged.add(name)
            log.info("clients send %s, which changes no output here (docs/request-bodies.md)", name)

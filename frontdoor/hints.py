"""Logs once which hints clients send, and which tools are skipped: neither changes an output here."""

import logging
from collections.abc import Iterable, Set

from frontdoor.schemas import Hints

MAX_LOGGED = 200
MAX_KIND_LENGTH = 40

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
        for name in self._new(names):
            log.info("clients send %s, which changes no output here (docs/request-bodies.md)", name)

    def note_skipped(self, kinds: Iterable[str]) -> None:
        """Log the kinds of tools that are skipped for the first time."""
        for kind in self._new(f"tool {kind[:MAX_KIND_LENGTH]!r}" for kind in kinds):
            log.info("clients offer the %s, which is skipped: only functions and custom tools work", kind)

    def _new(self, names: Iterable[str]) -> list[str]:
        found = sorted(set(names) - self._logged)[: MAX_LOGGED - len(self._logged)]
        self._logged.update(found)
        return found

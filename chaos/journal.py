"""The clients' journals; the oracle reads nothing else of the clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Question:
    """One request body with a known answer: its token ids from a calm service."""

    number: int
    body: dict[str, Any]
    answer: tuple[int, ...] = ()
    form: str = ""  # one of chaos/forms.py, whose answers are checked

    @property
    def num_choices(self) -> int:
        """The requests that this question makes."""
        return int(self.body.get("n", 1))

    @property
    def is_chat(self) -> bool:
        """Asked through /v1/chat/completions, which splits the answer."""
        return "tools" in self.body

    @property
    def is_simple(self) -> bool:
        """One request, which a client can fetch by its id; others it asks for again under its key."""
        return self.num_choices == 1 and not self.is_chat


@dataclass
class Entry:
    """One request from a client's side; `tokens` as they came, over all connections."""

    question: int
    kind: str  # one of client.KINDS
    key: str  # the Idempotency-Key of all its posts
    asked_unix: float
    leave_after: int = 0  # tokens after which the client hangs up and attaches again; 0: never
    ids: list[str] = field(default_factory=list)  # that the service sent; one, unless something is doubled
    tokens: list[tuple[int, int]] = field(default_factory=list)  # (index, token id)
    tokens_before_reset: list[tuple[int, int]] = field(default_factory=list)
    num_resets: int = 0
    shown: list[dict[int, str]] = field(default_factory=list)  # each connection's texts by choice, not simple
    num_connections: int = 0
    result: dict[str, Any] | None = None
    is_abandoned: bool = False  # the client left for good before the reply
    ended_unix: float | None = None
    trouble: list[str] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """There is an answer, or the client has left for good."""
        return self.result is not None or self.is_abandoned

    def take_id(self, request_id: str) -> None:
        """Note an id; a second one for the same key is a doubled request."""
        request_id = request_id.removeprefix("chatcmpl-")
        if request_id not in self.ids:
            self.ids.append(request_id)

    def reset(self) -> None:
        """Note that the service sent a reset."""
        self.num_resets += 1
        self.tokens_before_reset += self.tokens
        self.tokens.clear()

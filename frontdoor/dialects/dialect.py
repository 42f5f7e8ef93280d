"""What an API of another vendor consists of: a body that becomes a draft, and a renderer."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from frontdoor.accepting import Accepted
from frontdoor.answering import Renderer
from frontdoor.chat_answer import ChatAnswer
from frontdoor.encoding import Draft
from frontdoor.schemas import Body
from spool import Result


class DialectBody(Body, ABC):
    """The body of a route."""

    @abstractmethod
    def draft(self) -> Draft:
        """Translate the body; this may take long.

        Raises:
            InvalidRequest: a field is wrong.
        """

    @property
    @abstractmethod
    def is_streamed(self) -> bool: ...


@dataclass(frozen=True)
class Asked:
    """An accepted request, for the renderer of its answer. `model`: the name that the client sees."""

    accepted: Accepted
    answer: ChatAnswer
    model: str


class DialectRenderer(Renderer):
    """Writes an answer, as a whole or in frames; it has one choice."""

    @abstractmethod
    def whole(self, result: Result) -> dict[str, Any]:
        """Write a whole answer."""

"""The routes that a line of a batch may ask: how each reads a body, and how it writes the answer.

A new route is one line in ENDPOINTS. Knows the routes' own functions; nothing of batches.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from frontdoor.accepting import Accepted
from frontdoor.chat_request import make_answer
from frontdoor.dialects import dialect
from frontdoor.dialects.anthropic_bodies import MessagesBody
from frontdoor.dialects.responses_bodies import ResponsesBody
from frontdoor.encoding import Draft
from frontdoor.http.errors import InvalidRequest
from frontdoor.routes import generate, messages, openai_chat, openai_completions, responses
from frontdoor.routes.openai_text import Asked, TextApi, check_stream_options, whole_answer
from frontdoor.schemas import ChatBody, CompletionBody, GenerateBody, OpenAIFields, SamplingFields
from frontdoor.state import FrontDoor
from spool import Result

LOWEST_PRIORITY = 9


@dataclass(frozen=True)
class Question:
    """What a body asks for: drafts, `num_choices` answers to each, and how results become an answer."""

    drafts: Sequence[Draft]
    num_choices: int
    write: Callable[[Sequence[Accepted], Sequence[Result]], dict[str, Any]]


@dataclass(frozen=True)
class Endpoint:
    """A route: the form of its body, and what such a body asks for."""

    model: type[SamplingFields] | type[MessagesBody]
    read: Callable[[FrontDoor, Any], Question]


def _text(
    api: TextApi, read_body: Callable[[FrontDoor, Any], Asked], front: FrontDoor, body: Any
) -> Question:
    assert isinstance(body, OpenAIFields)
    check_stream_options(body)
    asked = read_body(front, body)
    return Question(_lowest(asked.drafts), asked.num_choices, partial(whole_answer, front, api, asked))


def _generate(front: FrontDoor, body: GenerateBody) -> Question:
    """Read a body of /generate; like a prompt file it may name its priority, and has no limit in bytes."""
    if body.background:
        raise InvalidRequest("a line of a batch always runs in the background", param="background")
    draft = replace(generate.draft_of(body, front.settings), max_text_bytes=None)
    drafts = [draft] if body.priority is not None else _lowest([draft])

    def write(_: Sequence[Accepted], results: Sequence[Result]) -> dict[str, Any]:
        return generate.whole_answer(results, front.tokenizer.detokenizer)

    return Question(drafts, body.n or 1, write)


def _dialect(
    make_renderer: Callable[[FrontDoor, Any, dialect.Asked], dialect.DialectRenderer],
    front: FrontDoor,
    body: dialect.DialectBody,
) -> Question:
    """Read a body of another API; a reference to an item of an earlier answer is refused."""
    draft = body.draft()

    def write(accepted: Sequence[Accepted], results: Sequence[Result]) -> dict[str, Any]:
        asked = dialect.Asked(accepted[0], make_answer(front, draft, accepted[0]), front.model_name)
        return make_renderer(front, body, asked).whole(results[0])

    return Question(_lowest([draft]), 1, write)


def _lowest(drafts: Sequence[Draft]) -> list[Draft]:
    return [replace(draft, priority=LOWEST_PRIORITY) for draft in drafts]


ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": Endpoint(ChatBody, partial(_text, openai_chat.API, openai_chat.read_body)),
    "/v1/completions": Endpoint(
        CompletionBody, partial(_text, openai_completions.API, openai_completions.read_body)
    ),
    "/v1/responses": Endpoint(ResponsesBody, partial(_dialect, responses.make_renderer)),
    "/v1/messages": Endpoint(MessagesBody, partial(_dialect, messages.make_renderer)),
    "/generate": Endpoint(GenerateBody, _generate),
}

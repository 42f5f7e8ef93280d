"""Turns a chat into a draft, and makes the reader of its answer.

`ChatBody` is the internal form of a chat: the adapters of other APIs translate their bodies to it
(`make_chat`). Knows nothing of how an answer comes about.
"""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from frontdoor.accepting import Accepted
from frontdoor.chat_answer import ChatAnswer
from frontdoor.encoding import Draft
from frontdoor.http.bodies import explain
from frontdoor.request_lookup import find, may_see
from frontdoor.schemas import ChatBody
from frontdoor.state import FrontDoor
from frontdoor.tools import make_tool_use
from prompts.formats import AnswerReader, Tool
from spool import Result

BodyModel = TypeVar("BodyModel", bound=BaseModel)


def make_chat(fields: dict[str, Any]) -> ChatBody:
    """Make a chat of its fields, as OpenAI's clients would send them; those that are None are left out.

    Raises:
        InvalidRequest: a field is wrong.
    """
    return make_body(ChatBody, fields)


def make_body(model: type[BodyModel], fields: dict[str, Any]) -> BodyModel:
    """Make a body of its fields, as clients would send them; those that are None are left out.

    Raises:
        InvalidRequest: a field is wrong.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return model.model_validate_json(json.dumps(given))
    except ValidationError as error:
        raise explain(error) from None


def make_draft(body: ChatBody) -> Draft:
    """Turn a chat into a draft.

    Raises:
        InvalidRequest: a tool is demanded that does not exist.
    """
    return Draft(
        prompt=body.messages,
        prompt_field="messages",
        sampling=body,
        effort=body.reasoning_effort,
        logprobs=body.num_alternatives,
        tool_use=make_tool_use(body.tools, body.tool_choice, is_parallel=body.parallel_tool_calls),
        variables=body.chat_template_kwargs,
    )


def earlier_answer(
    front: FrontDoor, request_id: str, owner: str, tools: Sequence[Tool]
) -> tuple[ChatAnswer, Result] | None:
    """Return a finished answer and its reader; None: it does not exist, or belongs to another key.

    Args:
        tools: of the request, which the spool does not have.
    """
    found = find(front.spool, request_id)
    request = front.spool.read_request(request_id) if found is not None else None
    if found is None or request is None or found.result is None or not may_see(found, owner):
        return None
    reasoning = front.tokenizer.formats.reasoning
    is_thinking = reasoning is not None and reasoning.is_open(request.text or "")
    reader = front.tokenizer.formats.reader(tools, is_thinking=is_thinking)
    return ChatAnswer(request_id, reader, lambda _: None), found.result


def make_answer(front: FrontDoor, draft: Draft, accepted: Accepted) -> ChatAnswer:
    """Make the reader of an accepted request's answer; without `tool_use` all of it is content."""

    def keep(text: str) -> None:
        if accepted.prompt is not None:
            front.kept_turns.note(accepted.id, accepted.prompt, text)

    if draft.tool_use is None:
        return ChatAnswer(accepted.id, AnswerReader(None), lambda _: None)
    reader = front.tokenizer.formats.reader(draft.tools, is_thinking=accepted.is_thinking)
    return ChatAnswer(accepted.id, reader, keep)

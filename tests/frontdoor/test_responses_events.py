"""The events of POST /v1/responses, as the official client puts them together. Without a service."""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import openai
from hypothesis import given
from hypothesis import strategies as st
from openai._models import construct_type_unchecked
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent

from frontdoor.accepting import Accepted
from frontdoor.chat_answer import ChatAnswer
from frontdoor.dialects.dialect import Asked
from frontdoor.dialects.responses_bodies import ResponsesBody
from frontdoor.dialects.responses_renderer import ResponsesRenderer
from prompts.formats import AnswerPart, CallArguments, CallStart, Content, Reasoning
from spool import Result, TokenRecord, Usage
from tests.frontdoor.test_responses import CUSTOM, LOOK

TEXTS = st.text(min_size=1, max_size=5)
CALLING = st.tuples(st.sampled_from(["look", "wait"]), st.lists(TEXTS, max_size=3))
SEGMENTS = st.lists(st.one_of(TEXTS.map(Content), TEXTS.map(Reasoning), CALLING), max_size=8)


def make_parts(segments: list[Any]) -> list[AnswerPart]:
    """Number the calls among parts."""
    parts: list[AnswerPart] = []
    num_calls = 0
    for segment in segments:
        if isinstance(segment, tuple):
            name, pieces = segment
            parts += [CallStart(num_calls, name), *(CallArguments(num_calls, piece) for piece in pieces)]
            num_calls += 1
        else:
            parts.append(segment)
    return parts


class PartReader:
    """A reader whose answer is a list of parts: one for each text that comes."""

    def __init__(self, parts: Sequence[AnswerPart]) -> None:
        self.left = list(parts)
        self.num_calls = sum(isinstance(part, CallStart) for part in parts)

    def add(self, _: str) -> list[AnswerPart]:
        return [self.left.pop(0)] if self.left else []

    def finish(self) -> list[AnswerPart]:
        return self.left


def make_renderer(parts: Sequence[AnswerPart]) -> ResponsesRenderer:
    body = ResponsesBody.model_validate_json(json.dumps({"input": "x", "tools": [LOOK, CUSTOM]}))
    reader: Any = PartReader(parts)
    answer = ChatAnswer("0" * 32, reader, lambda _: None)
    tokenizer: Any = SimpleNamespace(encode_raw=list, detokenizer=None)
    return ResponsesRenderer(body, Asked(Accepted("0" * 32, None, 1.0), answer, "tiny"), tokenizer)


@given(SEGMENTS, st.integers(0, 8), st.sampled_from(["stop", "length"]))
def test_any_answer_streams_as_the_client_puts_it_together(
    segments: list[Any], num_streamed: int, reason: Any
) -> None:
    """Its accumulator takes every event, its text is the answer's, and the last response is the whole one."""
    parts = make_parts(segments)
    result = Result("0" * 32, "tiny", "x", (), reason, Usage(), {}, None, 1.0)
    renderer = make_renderer(parts)
    frames = renderer.opening() + renderer.silence("waiting")
    for index in range(num_streamed):
        frames += renderer.tokens(0, (TokenRecord(index, index, "x"),)) + renderer.silence("working")
    frames += renderer.done(0, result)
    state: ResponseStreamState[Any] = ResponseStreamState(input_tools=openai.omit, text_format=openai.omit)
    texts: dict[str, str] = {}
    for line in frames.decode().split("\n"):
        if not line.startswith("data: "):
            continue
        event: Any = construct_type_unchecked(type_=ResponseStreamEvent, value=json.loads(line[6:]))  # type: ignore[arg-type]
        state.handle_event(event)
        if event.type.endswith(".delta"):
            texts[event.item_id] = texts.get(event.item_id, "") + event.delta
    whole = make_renderer(parts).whole(result)
    assert event.response.to_dict() == whole
    assert event.type == f"response.{whole['status']}"
    for item in whole["output"]:
        Response.model_validate({**whole, "output": [item]})
        said = item["content"][0]["text"] if item.get("content") else item.get("arguments", item.get("input"))
        assert texts.get(item["id"], "") == (said or "")
    assert "".join(part.text for part in parts if isinstance(part, Content)) == "".join(
        item["content"][0]["text"] for item in whole["output"] if item["type"] == "message"
    )

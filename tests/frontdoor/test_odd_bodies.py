"""Bodies with one odd value anywhere, however deep: answered, or refused by name."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.frontdoor_service import Service, running_service

ODD: list[Any] = [None, True, -1, 2.5, 10**30, "", "<|end|>\0😀", [], [None], {}, {"z": None}, {"$ref": "#"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"$ref": "#/$defs/x"}}, "b": {"enum": ["c"]}},
    "required": ["a"],
    "$defs": {"x": {"anyOf": [{"const": 1}, {"type": "string", "pattern": "a+"}]}},
}
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "", "strict": True, "parameters": SCHEMA},
}
CALL = {"id": f"call_{'0' * 32}_0", "type": "function", "function": {"name": "f", "arguments": '{"a":[1]}'}}
TURNS = [
    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": CALL["id"], "content": "wet"},
    {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
]
FLAT = [
    {"type": "function", **TOOL["function"]},  # type: ignore[dict-item]
    {"type": "custom", "name": "g", "format": {"type": "grammar", "definition": "start: /a/"}},
    {"type": "web_search"},
]
ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "r"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
    {"type": "function_call", "call_id": CALL["id"], "name": "f", "arguments": '{"a":[1]}'},
    {"type": "custom_tool_call", "call_id": "c", "name": "g", "input": "a"},
    {"type": "function_call_output", "call_id": CALL["id"], "output": [{"type": "text", "text": "wet"}]},
    {"type": "custom_tool_call_output", "call_id": "c", "output": "wet"},
]
SAMPLING = {
    "max_tokens": 2,
    "stop": ["z"],
    "logit_bias": {"5": 1},
    "n": 2,
    "seed": 1,
    "repetition_penalty": 1.5,
}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"max_tokens": 2, "messages": TURNS, "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", {"max_tokens": 2, "messages": TURNS[:1], "tools": [TOOL], "tool_choice": TOOL}),
    (
        "/v1/chat/completions",
        {
            "max_tokens": 2,
            "messages": TURNS[:1],
            "parallel_tool_calls": False,
            "chat_template_kwargs": {},
            "reasoning_effort": "none",
            "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": True}},
            "extra_body": {"top_k": 3},
        },
    ),
    (
        "/v1/completions",
        {**SAMPLING, "prompt": ["a", [5, 6]], "echo": True, "logprobs": 1, "best_of": 2, "suffix": ""},
    ),
    (
        "/generate",
        {**SAMPLING, "prompt": "a", "priority": 1, "raw": True, "structured_outputs": {"choice": ["a"]}},
    ),
    (
        "/v1/responses",
        {"max_output_tokens": 2, "input": ITEMS, "tools": FLAT, "tool_choice": FLAT[0], "top_logprobs": 2},
    ),
    (
        "/v1/responses",
        {
            "max_output_tokens": 2,
            "input": "a",
            "instructions": "b",
            "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}},
            "reasoning": {"effort": "none", "summary": "auto"},
            "include": ["message.output_text.logprobs"],
            "metadata": {"a": "b"},
            "parallel_tool_calls": False,
            "stream_options": {"include_obfuscation": False},
        },
    ),
    ("/tokenize", {"messages": TURNS, "tools": [TOOL], "return_token_strs": True}),
    ("/tokenize", {"prompt": "a", "add_special_tokens": False}),
    ("/detokenize", {"tokens": [5, 6]}),
]


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value in a body."""
    steps = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for step in steps:
        yield (*above, step)
        yield from places(value[step], (*above, step))


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose context holds tools."""
    folder: Path = tmp_path_factory.mktemp("odd")
    with running_service(folder, {"MAX_SEQUENCE_LENGTH": "8192"}) as service:
        yield service


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_an_odd_value_anywhere_is_no_error_of_ours(roomy: Service, path: str, body: dict[str, Any]) -> None:
    """200, or a refusal that names a field in one short message."""
    for *above, last in places(body):
        for odd in ODD:
            changed = copy.deepcopy(body)
            inner: Any = changed
            for step in above:
                inner = inner[step]
            inner[last] = odd
            answer = roomy.http.post(path, json=changed)
            where = f"{above} {last}: {odd!r}: {answer.text[:500]}"
            assert answer.status_code in (200, 400, 404), where
            if answer.status_code == 400:
                error = answer.json()["error"]
                assert error["param"], where
                assert len(error["message"]) < 1000, where

"""Tools, reasoning and constrained answers over HTTP, some by the official client."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

from frontdoor.constraints import (
    MAX_PLACE_LENGTH,
    MAX_REASON_LENGTH,
    find_refusal,
    read_structured_outputs,
    schema_grammar,
)
from prompts.grammars import lark_grammar
from tests.services.frontdoor_service import Service, make_model_folder, running_service

SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look at a place.",
            "parameters": SCHEMA,
            "strict": False,
        },
    },
    {"type": "function", "function": {"name": "wait"}},
]
CALLS = (
    'I look.\n<tool_call>\n{"name": "look", "arguments": {"at": "sea"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "wait", "arguments": {}}\n</tool_call>'
)
THINKING_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}:{{ m.content }}<|end|>{% endfor %}<|start|>assistant:"
    "<think>\n{% if enable_thinking is defined and not enable_thinking %}\n</think>\n\n{% endif %}"
)


def ask(word: str, **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": word}], "max_tokens": 100, **fields}


@pytest.fixture
def roomy(tmp_path: Path) -> Any:
    """A service whose context holds tools."""
    with running_service(tmp_path, {"MAX_SEQUENCE_LENGTH": "8192"}) as service:
        yield service


@pytest.fixture
def agent(roomy: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{roomy.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_calls_come_whole_with_their_ids(agent: openai.OpenAI, roomy: Service) -> None:
    """Text before a call is content; each id names the request and the call; the reason is tool_calls."""
    roomy.engine.texts["sea"] = CALLS
    choice = agent.chat.completions.create(**ask("sea", tools=TOOLS)).choices[0]
    assert (choice.finish_reason, (choice.message.content or "").strip()) == ("tool_calls", "I look.")
    calls: list[Any] = list(choice.message.tool_calls or ())
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("look", {"at": "sea"}),
        ("wait", {}),
    ]
    request_id = roomy.engine.claimed[-1].id
    assert [call.id for call in calls] == [f"call_{request_id}_0", f"call_{request_id}_1"]
    assert "Look at a place." in (roomy.engine.claimed[-1].text or "")


def test_calls_stream_as_the_client_expects(agent: openai.OpenAI, roomy: Service) -> None:
    """Index, id and type first, then pieces of the arguments; the helper of the client puts them together."""
    roomy.engine.texts["sea"] = CALLS
    with agent.chat.completions.stream(**ask("sea", tools=TOOLS)) as stream:
        kinds = [event.type for event in stream]
        completion = stream.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert "tool_calls.function.arguments.delta" in kinds
    choice = completion.choices[0]
    assert choice.finish_reason == "tool_calls"
    calls: list[Any] = list(choice.message.tool_calls or ())
    assert [call.function.name for call in calls] == ["look", "wait"]
    assert json.loads(calls[0].function.arguments) == {"at": "sea"}


@pytest.mark.parametrize("length", [27, 39, 60])
def test_half_a_call_is_not_lost(agent: openai.OpenAI, roomy: Service, length: int) -> None:
    """Cut by length before its arguments it is text; cut inside them, the client has the piece of them."""
    roomy.engine.texts["sea"] = CALLS
    choice = agent.chat.completions.create(**(ask("sea", tools=TOOLS) | {"max_tokens": length // 3})).choices[
        0
    ]
    assert choice.finish_reason == "length"
    calls: list[Any] = list(choice.message.tool_calls or ())
    if calls:
        assert '{"at": "sea"}'.startswith(calls[0].function.arguments)
    else:
        assert choice.message.content == CALLS[:length]


def test_without_tools_a_call_is_text(agent: openai.OpenAI, roomy: Service) -> None:
    """Nobody asked for calls; the choice none hides the tools from the model as well."""
    roomy.engine.texts["sea"] = CALLS
    fields: dict[str, Any]
    for fields in ({}, {"tools": []}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = agent.chat.completions.create(**ask("sea", **fields)).choices[0]
        assert (choice.message.content, choice.message.tool_calls) == (CALLS, None)
        assert choice.finish_reason == "stop"
        assert "Look at a place." not in (roomy.engine.claimed[-1].text or "")


def test_a_demanded_call_is_constrained(roomy: Service) -> None:
    """Required and named calls carry a grammar, and so does a single one; an unconstrained answer none."""
    named = {"type": "function", "function": {"name": "look"}}
    fields: dict[str, Any]
    for fields, is_constrained in (
        ({"tool_choice": "auto"}, False),
        ({"tool_choice": "required"}, True),
        ({"tool_choice": named}, True),
        ({"parallel_tool_calls": True}, False),
        ({"parallel_tool_calls": False}, True),
        ({"parallel_tool_calls": False, "tool_choice": "none"}, False),
    ):
        body = ask("sea", tools=TOOLS, **fields)
        assert roomy.http.post("/v1/chat/completions", json=body).status_code == 200
        assert (roomy.engine.claimed[-1].params.grammar is not None) == is_constrained


def test_a_tool_whose_schema_cannot_be_kept_is_refused_only_where_it_must_be(roomy: Service) -> None:
    """Free calls need no grammar, demanded ones ignore what is unknown, strict ones are refused by name."""
    parameters = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    for strict, choice, status in ((False, "auto", 200), (False, "required", 200), (True, "required", 400)):
        function = {"name": "odd", "parameters": parameters, "strict": strict}
        body = ask("x", tools=[{"type": "function", "function": function}], tool_choice=choice)
        answer = roomy.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == status, answer.text
        if status == 400:
            assert answer.json()["error"]["param"] == "tools"
            message = answer.json()["error"]["message"]
            assert message.startswith("'tools': [0].function.parameters.properties.a")
            assert "uniqueItems" in message
            assert "'odd'" in message


class Place(pydantic.BaseModel):
    """What `parse` asks for."""

    at: str
    depth: int


def test_parse_sends_a_strict_schema(agent: openai.OpenAI, roomy: Service) -> None:
    """The official helper: the schema becomes the grammar, the answer the model's object."""
    roomy.engine.texts["sea"] = '{"at": "sea", "depth": 3}'
    completion = agent.chat.completions.parse(**ask("sea", response_format=Place))
    assert completion.choices[0].message.parsed == Place(at="sea", depth=3)
    assert "depth" in (roomy.engine.claimed[-1].params.grammar or "")


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"regex": "[0-9]+"}},
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"structured_outputs": {"grammar": 'start: "a"+'}},
        {"guided_json": json.dumps(SCHEMA)},
    ],
)
def test_every_form_of_constraint_reaches_the_ring(roomy: Service, fields: dict[str, Any]) -> None:
    """On chats, completions and /generate under the same names."""
    for path, body in (
        ("/v1/chat/completions", ask("x")),
        ("/v1/completions", {"prompt": "x"}),
        ("/generate", {"prompt": "x"}),
    ):
        answer = roomy.http.post(path, json={**body, **fields})
        assert answer.status_code == 200, answer.text
        assert roomy.engine.claimed[-1].params.grammar is not None


def test_a_deep_grammar_does_not_end_the_front_door(roomy: Service) -> None:
    """A schema and a grammar of rules that each name the next: llguidance recurses over them."""
    numbers = range(8000)
    definitions = {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in numbers}
    schema = {"$defs": {**definitions, "d8000": {"type": "string"}}, "$ref": "#/$defs/d0"}
    rules = "".join(f"r{number}: r{number + 1}\n" for number in numbers)
    for asked in ({"json": schema}, {"grammar": f'start: r0\n{rules}r8000: "a"\n'}):
        answer = roomy.http.post("/v1/chat/completions", json=ask("x", structured_outputs=asked))
        assert answer.status_code == 200, answer.text


def test_a_strict_schema_is_refused_with_the_place(roomy: Service) -> None:
    """The innermost part that llguidance refuses is named; without strict that part is ignored."""
    inner = {"type": "object", "properties": {"c": {"type": "array", "uniqueItems": True}}}
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"anyOf": [{}, inner]}}}
    for strict, status in ((True, 400), (False, 200)):
        described = {"name": "x", "schema": schema, "strict": strict}
        body = ask("x", response_format={"type": "json_schema", "json_schema": described})
        answer = roomy.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == status, answer.text
        if status == 400:
            error = answer.json()["error"]
            assert error["param"] == "response_format"
            assert "json_schema.schema.properties.b.anyOf[1].properties.c" in error["message"]


def test_a_json_object_may_have_a_schema_that_is_not_strict(roomy: Service) -> None:
    """As in llama.cpp: the same grammar as a json_schema without strict; null is none."""
    part = {"type": "object", "properties": {"c": {"type": "array", "uniqueItems": True}}}
    grammars = []
    for asked in (
        {"type": "json_object", "schema": part},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": part}},
        {"type": "json_object", "schema": None},
        {"type": "json_object"},
    ):
        answer = roomy.http.post("/v1/chat/completions", json=ask("x", response_format=asked))
        assert answer.status_code == 200, answer.text
        grammars.append(roomy.engine.claimed[-1].params.grammar or "")
    assert grammars[0] == grammars[1] != grammars[2] == grammars[3]
    assert '"c"' in grammars[0]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("regex", 1, "regex must be a string"),
        ("grammar", ["a"], "grammar must be a string"),
        ("choice", ["a", 1], "choice must be a list of strings"),
        ("json_object", False, "json_object must be true"),
        ("json", 5, "json must be a JSON schema"),
        ("colour", "red", "colour is no such constraint: use one of json, json_object, regex"),
    ],
)
def test_a_constraint_of_a_wrong_type_is_refused_with_the_type_that_is_wanted(
    field: str, value: object, reason: str
) -> None:
    """And one that does not exist with those that do."""
    with pytest.raises(ValueError, match=reason):
        read_structured_outputs({field: value})


@pytest.mark.parametrize("part", [{"type": "array", "uniqueItems": True}, {"required": "😀" * 50}])
def test_a_deep_place_leaves_the_reason_visible(part: dict[str, Any]) -> None:
    """Its middle is left out."""
    schema = part
    for number in range(60):
        schema = {"type": "object", "properties": {f"name_{number}": schema}}
    with pytest.raises(ValueError, match=r"^json_schema\.schema") as refusal:
        schema_grammar(schema, is_strict=True, place="json_schema.schema")
    place, reason = str(refusal.value).split(": ", 1)
    assert len(place) <= MAX_PLACE_LENGTH + 1
    assert place.endswith("properties.name_0")
    assert "…" in place
    assert 0 < len(reason) <= MAX_REASON_LENGTH


@pytest.mark.parametrize(
    "text", ['start: "<|im_end|>"', "start: <[7]>", "start: <|im_end|>", 'start: "" | "a"']
)
def test_a_grammar_that_only_a_model_can_try_is_not_refused(text: str) -> None:
    """It names a token of the model, or allows the end at once."""
    assert find_refusal(lark_grammar(text), is_content=True) is None


def test_reasoning_is_split_off_and_can_be_switched_off(tmp_path: Path) -> None:
    """A template that opens the tag itself; whole, streamed, and retried under a key."""
    folder = make_model_folder(tmp_path / "thinker" / "tiny", template=THINKING_TEMPLATE)
    with running_service(tmp_path, {"MODEL_REPO": str(folder), "MAX_SEQUENCE_LENGTH": "4096"}) as service:
        service.engine.texts["sea"] = "It is wet.\n</think>\n\nThe sea."
        headers = {"Idempotency-Key": "thoughts"}
        for _ in range(2):
            answer = service.http.post("/v1/chat/completions", json=ask("sea"), headers=headers)
            assert answer.status_code == 200, answer.text
            message = answer.json()["choices"][0]["message"]
            assert message["content"] == "The sea."
            assert message["reasoning_content"].strip() == "It is wet."
        streamed = service.http.post("/v1/chat/completions", json=ask("sea", stream=True)).text
        deltas = [
            json.loads(line[6:])["choices"][0]["delta"]
            for line in streamed.splitlines()
            if line.startswith("data: {")
        ]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas).strip() == "It is wet."
        assert "".join(delta.get("content", "") for delta in deltas) == "The sea."
        service.engine.texts["sea"] = "The sea."
        off = ask("sea", chat_template_kwargs={"enable_thinking": False})
        message = service.http.post("/v1/chat/completions", json=off).json()["choices"][0]["message"]
        assert message["content"] == "The sea."
        assert "reasoning_content" not in message


def test_logprobs_of_tokens_that_are_held_back_are_not_lost(roomy: Service) -> None:
    """Every token of a streamed call has its entry, in order."""
    roomy.engine.texts["sea"] = CALLS
    body = ask("sea", tools=TOOLS, logprobs=True, stream=True)
    lines = roomy.http.post("/v1/chat/completions", json=body).text.splitlines()
    entries = [
        entry["logprob"]
        for line in lines
        if line.startswith("data: {")
        for entry in (json.loads(line[6:])["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert entries == [-(100 + index) / 1000 for index in range(len(entries))]
    assert len(entries) == -(-len(CALLS) // 3)

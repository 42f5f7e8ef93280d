"""What real clients send: values that mean none, turns of the history, hints; some by the openai client."""

import inspect
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import openai
import pytest
from openai.types.shared.reasoning_effort import ReasoningEffort
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from config import REPOSITORY_ROOT
from frontdoor.schemas import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    GenerateBody,
    Hints,
    Only,
    PastFields,
    TokenizeBody,
)
from spool import SamplingParams
from tests.services.frontdoor_service import TEMPLATE, Service, make_model_folder, running_service

USER = {"role": "user", "content": "hi"}
ROUTES = (("/generate", {"prompt": "hi"}), ("/v1/completions", {"prompt": "hi"}))
ROUTES += (("/v1/chat/completions", {"messages": [USER]}),)  # type: ignore[assignment]
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sea"}'}}
TOOL_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}:{{ m.content if m.content is not none else 'NONE' }}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.name }} {{ call.function.arguments | tojson }}]"
    "{% endfor %}{{ '(' + m.reasoning_content + ')' if m.reasoning_content else '' }}<|end|>{% endfor %}"
)


def params_of(service: Service, path: str, body: dict[str, Any]) -> SamplingParams:
    answer = service.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return service.engine.claimed[-1].params


def text_of(service: Service, messages: list[dict[str, Any]]) -> str:
    """The prompt that a chat becomes."""
    answer = service.http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
    assert answer.status_code == 200, answer.text
    return service.engine.claimed[-1].text or ""


@pytest.mark.parametrize(("path", "prompt"), ROUTES)
@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"top_p": 0, "temperature": 1}, {"temperature": 0.0, "top_p": 1.0}),
        ({"top_p": 0.0}, {"temperature": 0.0}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 0}, {"top_k": 0}),
        ({"top_k": 16.0}, {"top_k": 16}),
        ({"max_tokens": 3.0}, {"max_tokens": 3}),
        ({"temperature": 2}, {"temperature": 2.0}),
        ({"min_p": 0}, {"min_p": 0.0}),
        ({"stop": ""}, {"stop": ()}),
        ({"stop": []}, {"stop": ()}),
        ({"stop": None}, {"stop": ()}),
        ({"stop": ["", "zz", ""]}, {"stop": ("zz",)}),
        ({"stop": [f"z{i}" for i in range(16)]}, {"stop": tuple(f"z{i}" for i in range(16))}),
        ({"seed": 0}, {"seed": 0}),
        ({"seed": 7.0}, {"seed": 7}),
        ({"seed": 2**63 - 1}, {"seed": 2**63 - 1}),
        ({"seed": -5}, {"seed": -5}),
        ({"seed": -(2**63)}, {"seed": -(2**63)}),
        ({"ignore_eos": True}, {"ignore_eos": True}),
        (dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "ignore_eos")), {"temperature": 0.0}),
        ({"frequency_penalty": 0.0, "presence_penalty": 0, "repetition_penalty": 1.0}, {}),
    ],
)
def test_values_are_taken_as_the_peers_take_them(
    service: Service, path: str, prompt: dict[str, Any], body: dict[str, Any], wanted: dict[str, Any]
) -> None:
    """Neutral values are none, top_p 0 is greedy, whole floats are integers, a seed is any int64."""
    params = params_of(service, path, {**prompt, **body})
    assert {name: getattr(params, name) for name in wanted} == wanted
    assert all(type(getattr(params, name)) is type(value) for name, value in wanted.items())


@pytest.mark.parametrize("seed", [-1, None])
def test_no_seed_is_a_drawn_one(service: Service, seed: int | None) -> None:
    """-1 as vLLM and llama.cpp read it: two requests do not share a seed."""
    seeds = {params_of(service, "/generate", {"prompt": "hi", "seed": seed}).seed for _ in range(2)}
    assert len(seeds) == 2
    assert min(seeds) >= 0


def test_a_whole_float_counts_as_one_choice(client: openai.OpenAI) -> None:
    """n 1.0 is n 1; true is not."""
    client.completions.create(model="tiny", prompt="hi", extra_body={"n": 1.0})
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="hi", extra_body={"n": True})
    assert caught.value.param == "n"


@pytest.mark.parametrize(
    "turn",
    [
        {"content": None},
        {},
        {"content": ""},
        {"content": "ok", "refusal": None, "parsed": None, "annotations": [], "audio": None},
        {
            "content": "ok",
            "parsed": {"a": 1},
            "annotations": [{"type": "url_citation"}],
            "audio": {"id": "a"},
        },
        {
            "content": "ok",
            "reasoning": "hm",
            "reasoning_content": "hm",
            "reasoning_details": [{"text": "hm"}],
        },
        {"content": None, "refusal": "no"},
        {"content": [{"type": "text", "text": "o"}, {"type": "text", "text": "k"}]},
        {"content": [{"type": "refusal", "refusal": "no"}]},
        {"content": None, "tool_calls": [CALL]},
        {"tool_calls": [CALL, {**CALL, "id": "call_2"}]},
        {"content": "", "tool_calls": []},
        {"content": "x", "tool_calls": None, "function_call": None},
        {"content": None, "function_call": CALL["function"]},
        {
            "content": None,
            "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}],
        },
        {"content": None, "tool_calls": [{"index": 0, "function": {"name": "f", "arguments": None}}]},
        {"content": "ok", "provider_specific_fields": {}, "thinking_blocks": None, "id": "msg_1"},
        {"content": [{"type": "text", "text": "ok", "cache_control": {"type": "ephemeral"}}]},
    ],
)
def test_an_assistants_turn_comes_back_as_sdks_send_it(service: Service, turn: dict[str, Any]) -> None:
    """With other members, without text, with tool calls: all of it is a turn of the history."""
    results = (
        [{"role": "tool", "tool_call_id": "call_1", "content": "blue"}] if turn.get("tool_calls") else []
    )
    for path in ("/v1/chat/completions", "/generate"):
        body = {"messages": [USER, {"role": "assistant", **turn}, *results, USER], "max_tokens": 1}
        answer = service.http.post(path, json=body)
        assert answer.status_code == 200, answer.text


def test_what_an_answer_says_can_be_sent_back(client: openai.OpenAI) -> None:
    """The SDK's own message object is a turn of the next request."""
    first = client.chat.completions.create(model="tiny", messages=[USER], max_tokens=2)  # type: ignore[list-item]
    message = first.choices[0].message
    again: list[Any] = [USER, message, USER]
    client.chat.completions.create(model="tiny", messages=again, max_tokens=2)
    again = [USER, message.model_dump(), USER]
    client.chat.completions.create(model="tiny", messages=again, max_tokens=2)


def test_tool_calls_are_text_where_the_template_knows_none(service: Service) -> None:
    """Call and result stay in the chat, and turns go on alternating."""
    tool: dict[str, Any] = {"role": "tool", "tool_call_id": "call_1"}
    turns: list[dict[str, Any]] = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {**tool, "content": [{"type": "text", "text": "blue"}]},
        {**tool, "content": "green"},
        {"role": "user", "content": "and?"},
    ]
    assert text_of(service, turns) == (
        "<|start|>user:hi<|end|>"
        '<|start|>assistant:<tool_call>\n{"name": "look", "arguments": {"at": "sea"}}\n</tool_call><|end|>'
        "<|start|>user:<tool_response>\nblue\n</tool_response>\n<tool_response>\ngreen\n</tool_response>\nand?"
        "<|end|><|start|>assistant:"
    )


def test_a_template_that_knows_tool_calls_gets_them(tmp_path: Path) -> None:
    """Arguments are objects there, a turn of calls alone has no content, reasoning goes along."""
    model = make_model_folder(tmp_path / "tools", template=TOOL_TEMPLATE)
    with running_service(tmp_path, {"MODEL_REPO": str(model), "MAX_SEQUENCE_LENGTH": "2000"}) as service:
        turns: list[dict[str, Any]] = [
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "hm"},
            {"role": "tool", "tool_call_id": "call_1", "content": None},
            {"role": "assistant", "content": None, "function_call": {"name": "old", "arguments": "no JSON"}},
            {"role": "function", "name": "old", "content": "x"},
            {"role": "assistant", "content": ""},
        ]
        assert text_of(service, turns) == (
            '<|start|>assistant:NONE[look {"at": "sea"}](hm)<|end|><|start|>tool:<|end|>'
            '<|start|>assistant:NONE[old "no JSON"]<|end|><|start|>tool:x<|end|><|start|>assistant:<|end|>'
        )


def test_a_template_that_fails_on_a_turn_without_text_gets_an_empty_one(tmp_path: Path) -> None:
    """Some templates look into the content of every turn, others recognize turns of calls by its absence."""
    template = "{% for m in messages %}{{ m.role + m.content }}{{ m.tool_calls | length }};{% endfor %}"
    model = make_model_folder(tmp_path / "tools", template=template)
    with running_service(tmp_path, {"MODEL_REPO": str(model)}) as service:
        turns = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
        assert text_of(service, turns) == "assistant1;"


@pytest.mark.parametrize("template", [TOOL_TEMPLATE, TEMPLATE])
def test_arguments_that_are_no_object_stay_text(tmp_path: Path, template: str) -> None:
    """Whatever a model once wrote comes back without harm, with and without tools in the template."""
    model = make_model_folder(tmp_path / "model", template=template)
    with running_service(tmp_path, {"MODEL_REPO": str(model), "MAX_SEQUENCE_LENGTH": "20000"}) as service:
        for arguments in (
            '{"a": "\\ud800"}',
            "[" * 5000,
            '{"a": ' * 900,
            "[1]",
            "{",
            "",
            '{"a": NaN}',
            "1" * 5000,
        ):
            call = {"id": "c", "type": "function", "function": {"name": "call_me", "arguments": arguments}}
            turns: list[dict[str, Any]] = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
            assert "call_me" in text_of(service, turns)


def test_a_template_that_takes_not_all_tool_calls_gets_text(tmp_path: Path) -> None:
    """Such as one call at a time, or ids of nine characters."""
    template = (
        "{% for m in messages %}{% if m.tool_calls %}{{ raise_exception('one call at a time') }}{% endif %}"
        "{{ m.role + ':' + m.content + ';' }}{% endfor %}"
    )
    model = make_model_folder(tmp_path / "tools", template=template)
    with running_service(tmp_path, {"MODEL_REPO": str(model)}) as service:
        turns: list[dict[str, Any]] = [
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "content": "x"},
        ]
        assert text_of(service, turns).count(";") == 2
        assert "<tool_call>" in text_of(service, turns)


HINTS: dict[str, Any] = {
    "keep_alive": "5m",
    "cache_prompt": True,
    "num_ctx": 8192,
    "session_id": "s",
    "chat_id": "c",
    "repeat_penalty": 1.0,
    "add_generation_prompt": True,
    "skip_special_tokens": True,
    "extra_headers": {"a": "b"},
}


def test_hints_are_accepted_and_logged_once_a_name(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """They change no output; the log names each once and never repeats a value."""
    with caplog.at_level(logging.INFO, logger="frontdoor.hints"):
        for path, prompt in ROUTES * 2:
            params_of(service, path, {**prompt, **HINTS})
    lines = [record.getMessage() for record in caplog.records if record.name == "frontdoor.hints"]
    assert sorted(line.split()[2].strip(",") for line in lines) == sorted(HINTS)
    assert "8192" not in " ".join(lines)


def test_extra_body_is_read_as_if_it_stood_outside(service: Service) -> None:
    """The openai client lifts it; what speaks HTTP by itself may not. Fields beside it win."""
    body = {"prompt": "hi", "top_k": 3, "extra_body": {"top_k": 5, "min_p": 0.5, "keep_alive": 1}}
    params = params_of(service, "/v1/completions", body)
    assert (params.top_k, params.min_p) == (3, 0.5)
    for extra, named in (({"unheard_of": 1}, "unheard_of"), ("x", "extra_body"), ([], None), (None, None)):
        answer = service.http.post("/v1/completions", json={"prompt": "hi", "extra_body": extra})
        assert answer.status_code == (200 if named is None else 400)
        assert named is None or answer.json()["error"]["param"] == named
    assert service.http.post("/generate", json={"prompt": '"extra_body"'}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("includes", [False, True])
def test_usage_comes_with_every_chunk_where_it_is_asked_for(
    service: Service, path: str, includes: bool
) -> None:
    """Answer tokens are counted up to the chunk's own; benchmarks read their number from it."""
    body = {**dict(ROUTES[1:])[path], "stream": True, "max_tokens": 5}
    options = {"include_usage": includes, "continuous_usage_stats": True}
    text = service.http.post(path, json={**body, "stream_options": options}).text
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    chunks = [json.loads(line) for line in lines[:-1]]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 5
    num_prompt_tokens = len(service.engine.claimed[-1].token_ids or ())
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {num_prompt_tokens}
    assert sum(not chunk["choices"] for chunk in chunks) == includes


@pytest.mark.parametrize(
    ("route", "body"),
    [(openai.resources.chat.Completions, ChatBody), (openai.resources.Completions, CompletionBody)],
)
def test_every_field_of_the_openai_client_is_known(route: Any, body: type[BaseModel]) -> None:
    """Those without an effect here too: none is called unknown."""
    fields = set(inspect.signature(route.create).parameters) - {"self", "extra_body"}
    assert fields <= set(body.model_fields)


def test_every_effort_of_the_openai_client_is_known() -> None:
    """A chat template that has no such level refuses it, the schema does not."""
    names = {name for part in get_args(ReasoningEffort) for name in get_args(part)}
    assert len(names) >= 5
    for name in names:
        ChatBody.model_validate({"messages": [USER], "reasoning_effort": name})


def test_the_page_lists_every_hint_and_no_other() -> None:
    """docs/request-bodies.md and the schema name the same fields."""
    page = (REPOSITORY_ROOT / "docs" / "request-bodies.md").read_text("utf-8")
    for heading, fields in (
        ("Hints", Hints.model_fields),
        ("Members of earlier turns", PastFields.model_fields),
    ):
        section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
        assert re.findall(r"^\| `(\w+)`", section, re.MULTILINE) == list(fields)


@pytest.mark.parametrize("body", [GenerateBody, ChatBody, CompletionBody, TokenizeBody, DetokenizeBody])
def test_the_pages_name_every_field(body: type[BaseModel]) -> None:
    """A client finds what it may send in docs/request-bodies.md or docs/api.md."""
    pages = [(REPOSITORY_ROOT / "docs" / name).read_text("utf-8") for name in ("request-bodies.md", "api.md")]
    named = set(re.findall(r"\w+", " ".join(pages)))
    refused = {name for name, field in body.model_fields.items() if _is_refused(field)}
    assert set(body.model_fields) - refused <= named


def _is_refused(field: FieldInfo) -> bool:
    return any(isinstance(note, Only) for note in field.metadata)


@pytest.fixture
def aliased(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path, {"MODEL_ALIASES": "gpt-5, claude/sonnet"}) as running:
        yield running


def test_aliases_are_names_of_the_model(aliased: Service) -> None:
    """They are listed, found and accepted on every route; answers carry the model's own name."""
    with openai.OpenAI(base_url=f"{aliased.url}/v1", api_key="any", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["tiny", "gpt-5", "claude/sonnet"]
        assert client.models.retrieve("claude/sonnet").id == "claude/sonnet"
        answer = client.chat.completions.create(model="gpt-5", messages=[USER])  # type: ignore[list-item]
        assert answer.model == "tiny"
        with pytest.raises(openai.NotFoundError) as caught:
            client.completions.create(model="gpt-4", prompt="hi")
        assert "MODEL_ALIASES" in caught.value.message
    for path, prompt in ROUTES:
        params_of(aliased, path, {**prompt, "model": "gpt-5"})


def test_a_star_takes_any_name(tmp_path: Path) -> None:
    """Whatever a client is set to; the list has the one model."""
    with running_service(tmp_path, {"MODEL_ALIASES": "*"}) as service:
        params_of(service, "/v1/completions", {"prompt": "hi", "model": "claude-sonnet-9"})
        assert [model["id"] for model in service.http.get("/v1/models").json()["data"]] == ["tiny"]
        assert service.http.get("/v1/models/anything").json()["id"] == "anything"

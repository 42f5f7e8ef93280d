"""Anthropic's Messages API over HTTP, mostly by its official client."""

import http.client
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anthropic
import httpx2
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from hypothesis import given
from hypothesis import strategies as st

from frontdoor.accepting import Accepted
from frontdoor.chat_answer import ChatAnswer
from frontdoor.dialects.anthropic_bodies import CountTokensBody, MessagesBody
from frontdoor.dialects.anthropic_renderer import MessagesRenderer, find_stop, read_input
from frontdoor.dialects.dialect import Asked
from frontdoor.http.errors import GenerationFailed
from prompts.formats import AnswerPart, CallArguments, CallStart, Content, Reasoning
from prompts.tokenizer import load_tokenizer
from spool import Result, TokenRecord, Usage
from tests.frontdoor.test_chat_tools import CALLS, SCHEMA, THINKING_TEMPLATE
from tests.services.frontdoor_service import Service, make_model_folder, running_service, until

SETTINGS = {"MAX_SEQUENCE_LENGTH": "8192"}
TOOLS: list[Any] = [
    {"name": "look", "description": "Look at a place.", "input_schema": SCHEMA},
    {"type": "custom", "name": "wait", "input_schema": {"type": "object"}},
]
THOUGHT = "I think of it.\n</think>\n\n"
PATH = "/v1/messages"


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def ask(content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "max_tokens": 200, "messages": [user(content)], **fields}


@pytest.fixture
def client(service: Service) -> Iterator[anthropic.Anthropic]:
    with make_client(service) as client:
        yield client


def make_client(service: Service, **options: Any) -> anthropic.Anthropic:
    http = anthropic.DefaultHttpxClient(verify=False)
    return anthropic.Anthropic(base_url=service.url, api_key="any", http_client=http, **options)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose model thinks first."""
    folder = tmp_path_factory.mktemp("thinker")
    model = make_model_folder(folder / "other" / "tiny", template=THINKING_TEMPLATE)
    with running_service(folder, {**SETTINGS, "MODEL_REPO": str(model)}) as service:
        yield service


def prompt_of(service: Service) -> str:
    """The newest prompt."""
    return service.engine.claimed[-1].text or ""


def test_an_answer_has_its_blocks(service: Service, client: anthropic.Anthropic) -> None:
    """Text and calls in their order, with the client's own name of the model."""
    service.engine.texts["sea"] = CALLS
    message = client.messages.create(**ask("sea", tools=TOOLS))
    request = service.engine.claimed[-1]
    assert message.id == f"msg_{request.id}"
    assert (message.model, message.role, message.stop_reason) == ("tiny", "assistant", "tool_use")
    kinds = [block.type for block in message.content]
    assert kinds == ["text", "tool_use", "tool_use"]
    _, look, wait = message.content
    assert look.type == wait.type == "tool_use"
    assert (look.name, look.input, look.id) == ("look", {"at": "sea"}, f"call_{request.id}_0")
    assert (wait.name, wait.input, wait.id) == ("wait", {}, f"call_{request.id}_1")


def test_a_stream_has_the_same_blocks(service: Service, client: anthropic.Anthropic) -> None:
    """The client's own helper puts them together."""
    service.engine.texts["sea"] = CALLS
    with client.messages.stream(**ask("sea", tools=TOOLS)) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    whole = client.messages.create(**ask("sea", tools=TOOLS))
    assert [_without_id(block) for block in message.content] == [_without_id(b) for b in whole.content]
    assert (message.stop_reason, message.usage) == (whole.stop_reason, whole.usage)
    assert kinds.count("content_block_stop") == 3


def _without_id(block: Any) -> dict[str, Any]:
    return {name: value for name, value in block.to_dict().items() if name != "id"}


def test_reasoning_is_a_thinking_block(thinker: Service) -> None:
    """Signed with nothing, because clients send back only signed blocks."""
    service = thinker.start_over()
    service.engine.texts["sea"] = f"{THOUGHT}It is wet."
    with make_client(service) as client, client.messages.stream(**ask("sea")) as stream:
        streamed = stream.get_final_message()
        whole = client.messages.create(**ask("sea"))
    for message in (streamed, whole):
        thinking, text = list[Any](message.content)
        assert thinking.type == "thinking"
        assert (thinking.thinking, thinking.signature) == ("I think of it.", "")
        assert text.type == "text"
        assert text.text == "It is wet."
        assert message.stop_reason == "end_turn"


def test_usage_counts_cached_tokens_apart(service: Service, client: anthropic.Anthropic) -> None:
    """The engine reuses two tokens of the prompt; a stream knows that at its end."""
    num_tokens = client.messages.count_tokens(**_counted(ask("hello"))).input_tokens
    usage = client.messages.create(**ask("hello", max_tokens=3)).usage
    assert num_tokens == len(service.engine.claimed[-1].token_ids or ())
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (num_tokens - 2, 2)
    assert (usage.output_tokens, usage.cache_creation_input_tokens) == (3, 0)
    with client.messages.stream(**ask("hello", max_tokens=3)) as stream:
        first = next(iter(stream))
        assert first.type == "message_start"
        assert first.message.usage.input_tokens == num_tokens
        assert stream.get_final_message().usage == usage


def test_a_limit_ends_an_answer_and_is_cut_to_the_room(service: Service, client: anthropic.Anthropic) -> None:
    """Agents ask for more tokens than any local model has."""
    assert client.messages.create(**ask("x", max_tokens=2)).stop_reason == "max_tokens"
    client.messages.create(**ask("x", max_tokens=64000), timeout=10)
    assert service.engine.claimed[-1].params.max_tokens < 8192


def test_turns_are_translated_in_their_order(service: Service) -> None:
    """Results of tools are turns; text beside them keeps its place; user texts in a row are one turn."""
    call = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "sea"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1"}
    messages = [
        user([{"type": "text", "text": "A"}, {"type": "text", "text": "B", "cache_control": {}}]),
        user("C"),
        {"role": "assistant", "content": [{"type": "text", "text": "D", "citations": None}, call]},
        user(
            [
                {**result, "content": [{"type": "text", "text": "E"}, {"type": "text", "text": "F"}]},
                {**result, "content": "G", "is_error": True},
                result,
                {"type": "text", "text": "H"},
            ]
        ),
        {"role": "system", "content": [{"type": "text", "text": "I"}]},
    ]
    body = {"model": "tiny", "max_tokens": 2, "system": [{"type": "text", "text": "S"}], "messages": messages}
    assert service.http.post(PATH, json=body).status_code == 200
    draft = MessagesBody.model_validate_json(json.dumps(body)).draft()
    turns = [turn.for_template() for turn in draft.prompt]  # type: ignore[union-attr]
    written = [(turn["role"], turn["content"]) for turn in turns]
    assert written == [
        ("system", "S"),
        ("user", "A\nB\nC"),
        ("assistant", "D"),
        ("tool", "E\nF"),
        ("tool", "Error: G"),
        ("tool", ""),
        ("user", "H\n<system>\nI\n</system>"),
    ]
    assert turns[2]["tool_calls"][0]["function"] == {"name": "look", "arguments": {"at": "sea"}}
    assert {turn["tool_call_id"] for turn in turns if turn["role"] == "tool"} == {"toolu_1"}


def test_early_system_messages_join_the_system_prompt(service: Service) -> None:
    """Claude Code sends one after the first question, and a line for accounts that no model needs."""
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197.f12;"},
        {"type": "text", "text": "Be brief."},
    ]
    body = ask("sea", system=system)
    body["messages"].append({"role": "system", "content": "Be kind."})
    assert service.http.post(PATH, json=body).status_code == 200
    assert prompt_of(service).startswith("<|start|>system:Be brief.\nBe kind.<|end|><|start|>user:sea<|end|>")


def test_an_agents_next_turn_begins_with_its_last_one(thinker: Service) -> None:
    """Its blocks come back, reasoning too, as other JSON and with defaults filled in."""
    service = thinker.start_over()
    service.engine.texts["sea"] = f"{THOUGHT}{CALLS}"
    filled = {**SCHEMA, "properties": {**SCHEMA["properties"], "far": {"type": "boolean", "default": False}}}  # type: ignore[dict-item]
    tools = [{**TOOLS[0], "input_schema": filled}, TOOLS[1]]
    messages: list[Any] = [user("sea")]
    with make_client(service) as client:
        for turn in range(3):
            message = client.messages.create(
                model="tiny", max_tokens=300, messages=messages, tools=tools, thinking={"type": "adaptive"}
            )
            if turn:
                first, last = service.engine.claimed[-2:]
                done = service.spool.read_result(first.id)
                assert done is not None
                known = (*(first.token_ids or ()), *done.token_ids)
                assert (last.token_ids or ())[: len(known)] == known
            blocks = [block.to_dict() for block in message.content]
            calls = [block for block in blocks if block["type"] == "tool_use"]
            calls[0]["input"] = {"far": False, "at": "sea"}
            results = [{"type": "tool_result", "tool_use_id": c["id"], "content": "wet"} for c in calls]
            messages += [{"role": "assistant", "content": blocks}, user(results)]


def test_a_deferred_tool_appears_where_it_is_found(service: Service) -> None:
    """Claude Code's own search returns references; the beginning of the prompt stays as it was."""
    tools = [{**TOOLS[0], "defer_loading": True}, TOOLS[1]]
    call = {"type": "tool_use", "id": "toolu_1", "name": "wait", "input": {}}
    found = [{"type": "tool_reference", "tool_name": name} for name in ("look", "gone")]
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": found}
    body = ask("x", tools=tools)
    assert service.http.post(PATH, json=body).status_code == 200
    first = prompt_of(service)
    assert "Look at a place." not in first
    body["messages"] += [{"role": "assistant", "content": [call]}, user([result])]
    assert service.http.post(PATH, json=body).status_code == 200
    assert prompt_of(service).startswith(first)
    assert '"description": "Look at a place."' in prompt_of(service)
    assert "gone" in prompt_of(service)


@pytest.mark.parametrize(
    ("fields", "is_thinking"),
    [
        ({}, True),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, True),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, False),
        ({"output_config": {"effort": "max"}}, True),
    ],
)
def test_thinking_reaches_the_template(thinker: Service, fields: dict[str, Any], is_thinking: bool) -> None:
    """By its switch."""
    service = thinker.start_over()
    assert service.http.post(PATH, json=ask("x", **fields)).status_code == 200
    assert prompt_of(service).endswith("<think>\n") == is_thinking


def test_a_model_that_does_not_think_ignores_an_effort(service: Service) -> None:
    """Agents always ask for one."""
    thinking = {"type": "enabled", "budget_tokens": 31999}
    body = ask("x", thinking=thinking, output_config={"effort": "xhigh"})
    assert service.http.post(PATH, json=body).status_code == 200
    assert service.http.post(f"{PATH}/count_tokens", json=_counted(body)).status_code == 200


def _counted(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "max_tokens"}


@pytest.mark.parametrize(
    ("choice", "is_constrained"),
    [
        ({"type": "auto"}, False),
        ({"type": "auto", "disable_parallel_tool_use": True}, True),
        ({"type": "any"}, True),
        ({"type": "tool", "name": "look"}, True),
        ({"type": "none"}, False),
    ],
)
def test_a_choice_constrains_the_answer(service: Service, choice: Any, is_constrained: bool) -> None:
    """As in chats."""
    assert service.http.post(PATH, json=ask("x", tools=TOOLS, tool_choice=choice)).status_code == 200
    assert (service.engine.claimed[-1].params.grammar is not None) == is_constrained
    assert ("Look at a place." in prompt_of(service)) == (choice["type"] != "none")


def test_output_formats_constrain_the_answer(service: Service) -> None:
    """The field of today, and the one of the first SDKs that had it."""
    asked = {"type": "json_schema", "schema": SCHEMA}
    for fields in ({"output_config": {"format": asked}}, {"output_format": asked}):
        assert service.http.post(PATH, json=ask("x", **fields)).status_code == 200
        assert '"at"' in (service.engine.claimed[-1].params.grammar or "")


def test_sampling_reaches_the_ring(service: Service) -> None:
    """With Anthropic's names."""
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "stop_sequences": ["n1"]}
    assert service.http.post(PATH, json=ask("x", **fields)).status_code == 200
    params = service.engine.claimed[-1].params
    assert (params.temperature, params.top_p, params.top_k, params.stop) == (0.5, 0.9, 7, ("n1",))


def test_hints_and_servers_tools_are_logged_once(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """They change nothing; the model does not see the tools."""
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
    hints = {"metadata": {"user_id": "a secret"}, "context_management": {"edits": []}, "service_tier": "auto"}
    with caplog.at_level(logging.INFO, logger="frontdoor.hints"):
        for _ in range(2):
            body = ask("x", tools=[*TOOLS, search], **hints)
            assert service.http.post(f"{PATH}?beta=true", json=body).status_code == 200
    logged = [record.getMessage() for record in caplog.records if record.name == "frontdoor.hints"]
    assert sorted(line.split()[2] for line in logged) == [
        "context_management,",
        "metadata,",
        "service_tier,",
        "the",
    ]
    assert "web_search" not in prompt_of(service)
    assert "secret" not in caplog.text


def refusal(answer: httpx2.Response, status: int, kind: str) -> str:
    """Check an error in Anthropic's form; return its sentence."""
    said = answer.json()
    assert (answer.status_code, said["type"], said["error"]["type"]) == (status, "error", kind), said
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    return str(said["error"]["message"])


ODD_SCHEMA = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
ODD_FORMAT = {"format": {"type": "json_schema", "schema": ODD_SCHEMA}}
ODD_TOOL = {"name": "odd", "input_schema": ODD_SCHEMA, "strict": True}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": 0}, "max_tokens: must be"),
        ({"max_tokens": None}, "max_tokens"),
        ({"tools": [{"type": "function", "function": {"name": "a"}}]}, "tools.0.custom.type"),
        ({"messages": []}, "messages: List should"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role: Input"),
        ({"messages": [user("x"), {"role": "assistant", "content": "I"}]}, "messages: the last one"),
        ({"messages": [user([{"type": "image", "source": {}}])]}, "messages.0.content.0.image.type: image"),
        ({"messages": [user([{"type": "document", "source": {}}])]}, "document blocks are not supported"),
        ({"messages": [user([{"type": "server_tool_use"}])]}, "messages.0.content.0: Input tag 'server_"),
        ({"messages": [user([{"type": "thinking", "thinking": "x"}])]}, "thinking blocks cannot be in user"),
        (
            {"messages": [user([{"type": "text", "text": "a", "x": 1}])]},
            "messages.0.content.0.text.x: Extra inputs are not permitted",
        ),
        (
            {"messages": [user([{"type": "tool_result"}])]},
            "messages.0.content.0.tool_result.tool_use_id: Field",
        ),
        ({"tools": [{"name": "a"}]}, "tools.0.custom.input_schema: Field required"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools: two tools"),
        ({"tools": [{**TOOLS[0], "name": "\n"}]}, "tools.0.name must have"),
        ({"tools": [ODD_TOOL]}, "tools.0.input_schema.properties.a: "),
        ({"tool_choice": {"type": "any"}}, "'tool_choice' demands a call"),
        ({"tool_choice": {"type": "tool", "name": "b"}}, "'tools' has no function 'b'"),
        ({"output_config": ODD_FORMAT}, "output_config.format.schema.properties.a: "),
        ({"stop_sequences": [1]}, "stop_sequences: "),
        ({"temperature": 3}, "temperature: must"),
        ({"mcp_servers": [{}]}, "mcp_servers: this server does not support it yet"),
        ({"container": "c"}, "container: this server does not support it yet"),
        ({"n": 2}, "n: Extra inputs are not permitted"),
        ({"system": "x" * 8200}, "prompt is too long: "),
    ],
)
def test_refusals_name_anthropics_fields(service: Service, fields: dict[str, Any], named: str) -> None:
    """In sentences that its clients look for."""
    assert named in refusal(service.http.post(PATH, json=ask("x", **fields)), 400, "invalid_request_error")
    assert not service.engine.claimed


def test_a_thread_is_refused_so_that_the_tool_runner_goes_on_without_it(
    service: Service, client: anthropic.Anthropic
) -> None:
    """It begins one by default, and looks for the code of this error."""

    @anthropic.beta_tool
    def wait() -> str:
        """Wait."""
        return "It is wet."

    service.engine.texts["It is wet."] = "Done."
    service.engine.texts["sea"] = '<tool_call>\n{"name": "wait", "arguments": {}}\n</tool_call>'
    asked: dict[str, Any] = ask("sea", tools=[wait])
    (text,) = client.beta.messages.tool_runner(**asked).until_done().content
    assert text.type == "text"
    assert text.text == "Done."
    assert len(service.engine.claimed) == 2


def test_a_long_prompt_is_refused_with_its_numbers(service: Service, client: anthropic.Anthropic) -> None:
    """Claude Code reads them and makes its chat shorter."""
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**ask("a " * 5000))
    assert "prompt is too long: 10018 tokens > 8192 maximum" in str(caught.value)
    assert caught.value.request_id


def test_a_refusal_of_the_ring_has_the_same_words(service: Service) -> None:
    """Where only rank 0 knows the exact context."""
    answer = service.http.post(PATH, json=ask("[too long]"))
    assert refusal(answer, 400, "invalid_request_error").startswith(
        "prompt is too long: 100 tokens > 99 maximum."
    )


def test_an_answer_that_takes_too_long(tmp_path: Path) -> None:
    """A 504 that its clients do not retry, and in a stream an error event."""
    with running_service(tmp_path, {"REQUEST_TIMEOUT": "1"}) as service:
        answer = service.http.post(PATH, json=ask("[hold]"))
        refusal(answer, 504, "timeout_error")
        assert answer.headers["x-should-retry"] == "false"
        streamed = events_of(service.http.post(PATH, json=ask("[hold]", stream=True)))
        assert streamed[-1][1]["error"]["type"] == "timeout_error"


def events_of(answer: httpx2.Response) -> list[tuple[str, Any]]:
    """Split a stream into names and data."""
    found = []
    for frame in answer.text.split("\n\n")[:-1]:
        event, data = frame.split("\n")
        found.append((event.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert all(name == data["type"] for name, data in found)
    return found


def test_a_stream_that_fails_ends_with_an_error(service: Service, client: anthropic.Anthropic) -> None:
    """After text that the client has; nothing follows it."""
    answer = service.http.post(PATH, json=ask("[fail]", stream=True))
    names = [name for name, _ in events_of(answer)]
    assert names == ["message_start", "content_block_start", "content_block_delta", "error"]
    assert events_of(answer)[-1][1]["error"] == {"type": "api_error", "message": "it went wrong"}
    with (
        pytest.raises(anthropic.APIStatusError, match="it went wrong"),
        client.messages.stream(**ask("[fail]")) as stream,
    ):
        stream.until_done()


def test_a_cancelled_stream_ends_with_an_error(service: Service) -> None:
    """Anthropic has no stop reason for it."""
    with service.http.stream("POST", PATH, json=ask("[hold]", stream=True)) as answer:
        lines = answer.iter_lines()
        while "text_delta" not in next(lines):
            pass
        assert service.http.delete(f"/requests/msg_{service.engine.claimed[-1].id}").json()["cancelled"]
        assert any('"the request was cancelled"' in line for line in lines)


def test_silence_is_pings(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some readers of this API do not know comments. The first event comes before the first token."""
    monkeypatch.setattr("frontdoor.answering.COMMENT_SECONDS", 0.05)
    monkeypatch.setattr(MessagesRenderer, "patience_seconds", 0.05)
    with service.http.stream("POST", PATH, json=ask("[hold]", stream=True)) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: message_start"
        while next(lines) != "event: ping":
            pass
        assert next(lines) == 'data: {"type":"ping"}'
        service.engine.release()
        assert not any(line.startswith(":") for line in lines)


def test_a_lost_client_cancels_and_a_key_finds_its_answer(service: Service) -> None:
    """As on other routes of /v1."""
    body = ask("sea", max_tokens=5)
    headers = {"Idempotency-Key": f"messages-{service.url}"}
    first = service.http.post(PATH, json=body, headers=headers)
    again = service.http.post(PATH, json={**body, "stream": False}, headers=headers)
    assert first.json() == again.json()
    address = urlsplit(service.url)
    connection = http.client.HTTPConnection(address.netloc, timeout=10)
    connection.request("POST", PATH, json.dumps(ask("[hold]")), {"Content-Type": "application/json"})
    until(lambda: "[hold]" in prompt_of(service))
    connection.close()
    request_id = service.engine.claimed[-1].id
    until(lambda: service.spool.read_result(request_id) is not None)
    result = service.spool.read_result(request_id)
    assert result is not None
    assert result.finish_reason == "cancelled"


def test_models_have_anthropics_fields_too(service: Service, client: anthropic.Anthropic) -> None:
    """Beside OpenAI's."""
    page = client.models.list()
    assert [(model.id, model.type, model.display_name) for model in page.data] == [("tiny", "model", "tiny")]
    assert page.data[0].max_input_tokens == 8192
    assert (page.has_more, page.first_id, page.last_id) == (False, "tiny", "tiny")
    assert client.models.retrieve("tiny").created_at.year > 2000


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one, two", (", ", "two"), ", "),
        ("one, two", ("two", "t"), "t"),
        ("one, two", ("x",), None),
        ("one, two", (), None),
    ],
)
def test_the_stop_sequence_is_found(
    service: Service, text: str, stops: tuple[str, ...], expected: str | None
) -> None:
    """Its tokens are in the result, as rank 0 leaves them: the last one completes it."""
    tokenizer = load_tokenizer(service.settings)
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    end, start = min(found, default=(len(text), len(text)))
    ids = tokenizer.encode_rendered(text[:end]) + ([] if found else list(tokenizer.end_token_ids)[:1])
    result = Result("0" * 32, "m", text[:start], tuple(ids), "stop", Usage(), {}, None, 0.0)
    assert find_stop(tokenizer, stops, result) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ('{"a": 1}', {"a": 1}),
        ('{"a": "b\nc"}', {"a": "b\nc"}),
        ('{"a": 1, "b": "x', {"a": 1}),
        ("{'a': 1}", {}),
        ("[1]", {}),
        ('{"a": NaN}', {}),
        ('{"a": 1e999}', {}),
        ('{"a": 1, "b": "\\ud83d"}', {}),
        ('{"a":' * 100000, {}),
    ],
)
def test_arguments_become_an_object(arguments: str, expected: dict[str, Any]) -> None:
    """What breaks off is kept as far as it goes."""
    assert read_input(arguments) == expected


Call = tuple[str, Any, list[int], int]
TEXTS = st.text(min_size=1, max_size=5)
PARTS = st.lists(
    st.one_of(
        st.builds(Reasoning, TEXTS),
        st.builds(Content, TEXTS),
        st.tuples(
            st.text(min_size=1), st.dictionaries(TEXTS, TEXTS, max_size=3), st.integers(1, 9), st.booleans()
        ),
    ),
    max_size=8,
)


class Scripted(ChatAnswer):
    """An answer with parts of a test's own."""

    def __init__(self, parts: list[AnswerPart]) -> None:
        self.request_id, self.parts = "0" * 32, parts

    def add(self, text: str) -> list[AnswerPart]:
        return [self.parts[int(text)]]

    def finish(self) -> list[AnswerPart]:
        return []

    def whole(self, result: Result) -> list[AnswerPart]:
        return self.parts

    def finish_reason(self, result: Result) -> str:
        return "tool_calls" if any(isinstance(part, CallStart) for part in self.parts) else "stop"


def written(drawn: list[Any]) -> list[AnswerPart]:
    """Return the parts of an answer; arguments come in pieces, and may break off."""
    parts: list[AnswerPart] = []
    num_calls = 0
    for each in drawn:
        if not isinstance(each, tuple):
            parts.append(each)
            continue
        name, arguments, size, is_cut = each
        text = json.dumps(arguments)
        text = text[: len(text) // 2] if is_cut else text
        parts.append(CallStart(num_calls, name))
        parts += [CallArguments(num_calls, text[at : at + size]) for at in range(0, len(text), size)]
        num_calls += 1
    return parts


@given(PARTS)
def test_any_parts_are_events_that_the_official_client_takes(drawn: list[Any]) -> None:
    """Its accumulator makes of them the message that a whole answer has; blocks open and close in turn."""
    parts = written(drawn)
    answer, result = Scripted(parts), Result("0" * 32, "m", "", (), "stop", Usage(9, 5, 2), {}, None, 0.0)
    asked = Asked(Accepted("0" * 32, None, 0.0, 9), answer, "m")
    renderer = MessagesRenderer(asked, lambda _: None)
    frames = renderer.opening()
    for number in range(len(parts)):
        frames += renderer.tokens(0, (TokenRecord(number, 1, str(number)),)) + renderer.silence("")
    frames += renderer.done(0, result)
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    is_open = False
    for frame in frames.decode().split("\n\n")[:-1]:
        data = json.loads(frame.split("data: ", 1)[1])
        if data["type"] == "ping":
            continue
        assert is_open == (data["type"] in ("content_block_delta", "content_block_stop"))
        is_open = data["type"] in ("content_block_start", "content_block_delta")
        snapshot = accumulate_event(event=data, current_snapshot=snapshot, json_bufs=buffers)
    whole = MessagesRenderer(asked, lambda _: None).whole(result)
    assert [block.to_dict() for block in snapshot.content] == whole["content"]
    assert (snapshot.stop_reason, snapshot.usage.output_tokens) == (whole["stop_reason"], 5)


def test_errors_of_results_have_the_form_in_streams() -> None:
    """A renderer writes them for its path."""
    answer = Scripted([])
    renderer = MessagesRenderer(Asked(Accepted("0" * 32, None, 0.0, 9), answer, "m"), lambda _: None)
    frame = renderer.error(GenerationFailed({"code": "x", "message": "no", "status": 503})).decode()
    assert (
        frame == 'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"no"}}\n\n'
    )


def test_the_page_describes_the_bodies(service: Service) -> None:
    """Both."""
    described = service.http.get("/openapi.json").json()["components"]["schemas"]
    assert {MessagesBody.__name__, CountTokensBody.__name__} <= described.keys()

"""Bodies of POST /v1/responses: items that become turns, fields, and refusals by name."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.frontdoor.dialects.test_responses import LOOK, WAIT, post, turns
from tests.services.frontdoor_service import Service, running_service

ASKED = {"role": "user", "content": [{"type": "input_text", "text": "sea"}]}
CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "sea"}', "id": "fc_1"}
WET = {"type": "function_call_output", "call_id": "c1", "output": "wet"}
SAID = {
    "type": "message",
    "id": "msg_1",
    "status": "completed",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}],
}
CALLED = '<tool_call>\n{"name": "look", "arguments": {"at": "sea"}}\n</tool_call>'
RESPONSE = "user:<tool_response>\nwet\n</tool_response>"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("responses"), {"MAX_SEQUENCE_LENGTH": "8192"}) as service:
        yield service


@pytest.fixture
def roomy(shared: Service) -> Service:
    """A service whose context holds tools."""
    return shared.start_over()


def refusal(service: Service, **fields: Any) -> dict[str, Any]:
    answer = service.http.post("/v1/responses", json={"input": "sea", **fields})
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def test_fields_of_other_routes_shape_the_draw(roomy: Service) -> None:
    """Sampling has the same names everywhere; the length has its own here."""
    post(roomy, temperature=0.5, top_p=0.9, top_k=5, seed=7, stop="x", max_output_tokens=3)
    params = roomy.engine.claimed[-1].params
    assert (params.temperature, params.top_p, params.top_k, params.seed) == (0.5, 0.9, 5, 7)
    assert (params.stop, params.max_tokens) == (("x",), 3)
    post(roomy, max_output_tokens=10**9)
    assert roomy.engine.claimed[-1].params.max_tokens < 8192


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([ASKED], ["user:sea"]),
        ([{"type": "message", "role": "developer", "content": "Be brief."}, ASKED],
         ["system:Be brief.", "user:sea"]),
        ([{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}, ASKED, ASKED],
         ["system:a\n\nb", "user:sea\n\nsea"]),
        ([ASKED, SAID, CALL, WET], ["user:sea", f"assistant:I look.\n{CALLED}", RESPONSE]),
        ([ASKED, CALL, {**WET, "output": [{"type": "input_text", "text": "wet"}]}],
         ["user:sea", f"assistant:{CALLED}", RESPONSE]),
        ([ASKED, SAID, SAID, ASKED], ["user:sea", "assistant:I look.", "assistant:I look.", "user:sea"]),
        ([ASKED, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, ASKED],
         ["user:sea", "assistant:No.", "user:sea"]),
        ([ASKED, {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None}, SAID, ASKED],
         ["user:sea", "assistant:I look.", "user:sea"]),
        ([ASKED,
          {"type": "custom_tool_call", "call_id": "c1", "name": "run", "input": "a\n"},
          {"type": "custom_tool_call_output", "call_id": "c1", "output": "wet"}],
         ["user:sea", 'assistant:<tool_call>\n{"name": "run", "arguments": {"input": "a\\n"}}\n</tool_call>',
          RESPONSE]),
    ],
)  # fmt: skip
def test_items_become_turns(roomy: Service, items: list[Any], expected: list[str]) -> None:
    """The items of one answer are one turn; neighbours of one role are joined."""
    post(roomy, input=items)
    assert turns(roomy) == expected


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": []}, "input", "a string or a list of items"),
        ({"input": [5]}, "input[0]", "must be an object"),
        ({"input": [ASKED, {"type": "web_search_call"}]}, "input[1].type", "'web_search_call' are not"),
        ({"input": [ASKED, {"type": "item_reference", "id": "msg_1"}]}, "input[1]", "no such item"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "must be one of"),
        ({"input": [{"role": "user"}]}, "input[0].content", "must be a string"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "image"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]", "file"),
        ({"input": [{**CALL, "call_id": None}]}, "input[0].call_id", "must be a string"),
        ({"input": [{**WET, "output": None}]}, "input[0].output", "must be a string or a list"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation"),
        ({"conversation": "conv_1"}, "conversation", "whole conversation"),
        ({"background": True}, "background", "/generate"),
        ({"prompt": {"id": "p"}}, "prompt", "templates"),
        ({"max_tokens": 5}, "max_tokens", "max_output_tokens"),
        ({"response_format": {"type": "text"}}, "text.format", "of response_format"),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "'text.format': must have the type"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort", "does not think"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "'reasoning.effort'"),
        ({"tools": [{"type": "web_search"}, {"type": "function"}]}, "tools[1]", "tools[1].name must"),
        ({"tools": [{}]}, "tools[0]", "needs a type"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "must be"),
        ({"tool_choice": "required", "tools": [{"type": "web_search"}]}, "tool_choice", "demands a call"),
        ({"n": 2}, "n", "not support"),
        ({"colour": "red"}, "colour", "unknown field"),
        ({"top_logprobs": 21}, "top_logprobs", "20"),
    ],
)
def test_a_refusal_names_this_apis_field(
    roomy: Service, fields: dict[str, Any], param: str, words: str
) -> None:
    """With its place, and what to do instead."""
    error = refusal(roomy, **fields)
    assert error["param"] == param
    assert words in error["message"]
    assert not roomy.engine.claimed


def test_schemas_that_are_refused_name_their_place(roomy: Service) -> None:
    """In the names of this API."""
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    form = {"type": "json_schema", "name": "x", "strict": True, "schema": schema}
    assert "'text.format': schema.properties.a: " in refusal(roomy, text={"format": form})["message"]
    tool = {"type": "function", "name": "x", "strict": True, "parameters": schema}
    message = refusal(roomy, tools=[{"type": "web_search"}, tool])["message"]
    assert "'tools': parameters.properties.a: " in message
    assert "(the tool 'x')" in message


def test_codes_that_clients_look_for(roomy: Service) -> None:
    """A prompt that is too long, and a response that is not stored."""
    assert refusal(roomy, input="a " * 9000)["code"] == "context_length_exceeded"
    assert refusal(roomy, previous_response_id="resp_1")["code"] == "previous_response_not_found"
    for method, path in (("GET", "/resp_1"), ("DELETE", "/resp_1"), ("POST", "/resp_1/cancel")):
        answer = roomy.http.request(method, f"/v1/responses{path}")
        assert answer.status_code == 404
        assert "stores no responses" in answer.json()["error"]["message"]


def test_a_number_that_json_does_not_know_is_refused_before_it_is_repeated(roomy: Service) -> None:
    """The answer could not be written."""
    answer = roomy.http.post(
        "/v1/responses",
        content=b'{"input": "sea", "metadata": {"a": NaN}}',
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 400


def test_what_clients_send_by_default_is_accepted(roomy: Service, caplog: pytest.LogCaptureFixture) -> None:
    """Stores, keys of caches and the like change nothing; tools of other kinds are skipped and logged."""
    tools = [LOOK, {"type": "web_search"}, {"type": "namespace", "name": "a", "tools": []}]
    with caplog.at_level(logging.INFO, logger="frontdoor.hints"):
        for _ in range(2):
            answer = post(
                roomy,
                store=True,
                include=["reasoning.encrypted_content"],
                reasoning={"summary": "auto", "effort": None},
                prompt_cache_key="a",
                client_metadata={"a": "b"},
                user="u",
                safety_identifier="s",
                service_tier="auto",
                truncation="auto",
                parallel_tool_calls=True,
                tool_choice="auto",
                tools=tools,
                stream_options={"include_obfuscation": False},
                background=False,
            )
    assert answer["tools"] == tools
    assert answer["store"] is False
    assert '"look"' in (roomy.engine.claimed[-1].text or "")
    assert "web_search" not in (roomy.engine.claimed[-1].text or "")
    lines = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert len(lines) == 2
    assert "'namespace'" in lines[0]


def test_a_tool_can_be_demanded(roomy: Service) -> None:
    """In this API's form; the choice none hides the tools."""
    post(roomy, tools=[LOOK, WAIT], tool_choice={"type": "function", "name": "wait"})
    assert "wait" in (roomy.engine.claimed[-1].params.grammar or "")
    post(roomy, tools=[LOOK], tool_choice="none")
    assert "look" not in (roomy.engine.claimed[-1].text or "")

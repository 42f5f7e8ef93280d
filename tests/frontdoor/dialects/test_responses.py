"""POST /v1/responses: items, events, errors, retries, an agent's next turn; some by the official client."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from openai.types.responses import Response

from tests.frontdoor.test_chat_tools import CALLS, SCHEMA, THINKING_TEMPLATE
from tests.services.frontdoor_service import Service, make_model_folder, post_by_hand, running_service, until

LOOK: Any = {"type": "function", "name": "look", "description": "Look.", "parameters": SCHEMA}
WAIT: Any = {"type": "function", "name": "wait", "strict": False}
CUSTOM: Any = {
    "type": "custom",
    "name": "wait",
    "description": "Wait.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("responses"), {"MAX_SEQUENCE_LENGTH": "8192"}) as service:
        yield service


@pytest.fixture
def roomy(shared: Service) -> Service:
    """A service whose context holds tools."""
    return shared.start_over()


@pytest.fixture
def client(roomy: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{roomy.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def post(service: Service, **fields: Any) -> dict[str, Any]:
    answer = service.http.post("/v1/responses", json={"input": "sea", **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def stream(service: Service, **fields: Any) -> list[dict[str, Any]]:
    """Return the events of a stream; each frame names its event's type."""
    answer = service.http.post("/v1/responses", json={"input": "sea", **fields, "stream": True})
    assert answer.status_code == 200, answer.text
    events = []
    for frame in answer.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in frame.split("\n") if line and not line.startswith(":"))
        if fields:
            events.append(json.loads(fields["data"]))
            assert fields["event"] == events[-1]["type"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def turns(service: Service) -> list[str]:
    """Return the turns of the newest prompt, without the opening of the answer."""
    text = service.engine.claimed[-1].text or ""
    return text.replace("<|end|>", "").split("<|start|>")[1:-1]


def test_a_whole_answer_is_a_response(client: openai.OpenAI, roomy: Service) -> None:
    """With its items and its usage; what was asked is repeated."""
    roomy.engine.texts["sea"] = "It is wet."
    answer = client.responses.create(
        model="tiny", input="sea", instructions="Be brief.", metadata={"a": "b"}, max_output_tokens=50
    )
    Response.model_validate(answer.to_dict())
    request = roomy.engine.claimed[-1]
    assert (answer.id, answer.status, answer.model) == (f"resp_{request.id}", "completed", "tiny")
    assert answer.output_text == "It is wet."
    assert (answer.instructions, answer.metadata, answer.max_output_tokens) == ("Be brief.", {"a": "b"}, 50)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.usage.input_tokens == len(request.token_ids or ())
    assert turns(roomy) == ["system:Be brief.", "user:sea"]
    assert roomy.http.get(f"/requests/{answer.id}").json()["state"] == "done"


def test_an_answer_that_is_cut_is_incomplete(client: openai.OpenAI, roomy: Service) -> None:
    """Whole and streamed."""
    roomy.engine.texts["sea"] = "It is wet."
    answer = client.responses.create(model="tiny", input="sea", max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output_text == "It is "
    last = stream(roomy, max_output_tokens=2)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_calls_come_by_the_clients_helper(client: openai.OpenAI, roomy: Service) -> None:
    """Streamed, with arguments that the client parses by its own tool; a whole answer has the same items."""

    class Look(pydantic.BaseModel):
        at: str

    roomy.engine.texts["sea"] = CALLS
    tools: Any = [openai.pydantic_function_tool(Look, name="look"), WAIT]
    with client.responses.stream(model="tiny", input="sea", tools=tools) as running:
        kinds = [event.type for event in running]
        final = running.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds.count("response.function_call_arguments.done") == 2
    message, look, wait = final.output
    assert message.type == "message"
    assert look.type == wait.type == "function_call"
    assert (look.name, look.parsed_arguments) == ("look", Look(at="sea"))
    request_id = roomy.engine.claimed[-1].id
    assert [look.call_id, wait.call_id] == [f"call_{request_id}_0", f"call_{request_id}_1"]
    whole = client.responses.parse(model="tiny", input="sea", tools=tools)
    assert shapes([item.to_dict() for item in whole.output]) == shapes([i.to_dict() for i in final.output])


def shapes(items: Sequence[Any]) -> list[Any]:
    """Items without ids and without what a client adds."""
    left_out = ("id", "call_id", "parsed_arguments")
    return [{name: value for name, value in item.items() if name not in left_out} for item in items]


def test_a_schema_is_parsed_by_the_client(client: openai.OpenAI, roomy: Service) -> None:
    """`responses.parse` sends a strict schema, which constrains the answer."""

    class Place(pydantic.BaseModel):
        at: str

    roomy.engine.texts["sea"] = '{"at": "sea"}'
    assert client.responses.parse(model="tiny", input="sea", text_format=Place).output_parsed == Place(
        at="sea"
    )
    assert roomy.engine.claimed[-1].params.grammar is not None
    post(roomy, text={"format": {"type": "json_object"}, "verbosity": "low"})
    assert roomy.engine.claimed[-1].params.grammar is not None
    post(roomy, text={"format": {"type": "text"}})
    assert roomy.engine.claimed[-1].params.grammar is None


def test_a_custom_tool_is_called_with_a_text(client: openai.OpenAI, roomy: Service) -> None:
    """The model sees a function with one string; the client gets the string, whole and streamed."""
    roomy.engine.texts["sea"] = '<tool_call>\n{"name": "wait", "arguments": {"input": "a\\nb"}}\n</tool_call>'
    with client.responses.stream(model="tiny", input="sea", tools=[CUSTOM]) as running:
        kinds = [event.type for event in running]
        (item,) = running.get_final_response().output
    assert item.type == "custom_tool_call"
    assert (item.name, item.input) == ("wait", "a\nb")
    assert "response.custom_tool_call_input.done" in kinds
    assert "start: /.+/" in (roomy.engine.claimed[-1].text or "")
    (whole,) = client.responses.create(model="tiny", input="sea", tools=[CUSTOM]).output
    assert whole.type == "custom_tool_call"
    assert whole.input == "a\nb"


def test_logprobs_come_with_the_text(client: openai.OpenAI, roomy: Service) -> None:
    """Where they are included, whole and streamed."""
    roomy.engine.texts["sea"] = "It is wet."
    asked: Any = {"model": "tiny", "input": "sea", "include": ["message.output_text.logprobs"]}
    (item,) = client.responses.create(**asked, top_logprobs=2).output
    assert item.type == "message"
    assert item.content[0].type == "output_text"
    tokens = item.content[0].logprobs or []
    assert [len(token.top_logprobs) for token in tokens] == [2] * 4
    events = stream(roomy, include=asked["include"], top_logprobs=2)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    streamed = [entry for event in deltas for entry in event["logprobs"]]
    assert streamed == events[-1]["response"]["output"][0]["content"][0]["logprobs"]
    assert [token["logprob"] for token in streamed] == [token.logprob for token in tokens]


def test_an_error_in_a_stream_is_a_failed_response(roomy: Service) -> None:
    """With a code and a message; it is the last event."""
    events = stream(roomy, input="[fail]")
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"].keys() == {"code", "message"}
    answer = roomy.http.post("/v1/responses", json={"input": "[fail]"})
    assert answer.status_code >= 500
    assert answer.json()["error"]["code"] == events[-1]["response"]["error"]["code"]


def test_a_stream_begins_before_the_first_token(roomy: Service) -> None:
    """Clients learn the id at once; by that id a request is cancelled, and its stream ends as failed."""
    with roomy.http.stream("POST", "/v1/responses", json={"input": "[hold]", "stream": True}) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: response.created"
        response_id = json.loads(next(lines).removeprefix("data: "))["response"]["id"]
        until(lambda: bool(roomy.engine.claimed))
        assert roomy.http.delete(f"/requests/{response_id}").status_code < 300
        rest = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert rest[-1]["type"] == "response.failed"
    assert rest[-1]["response"]["error"]["code"] == "cancelled"


def test_a_client_that_leaves_cancels_its_request(roomy: Service) -> None:
    """At once: without an Idempotency-Key nobody can come back."""
    connection = post_by_hand(roomy, json.dumps({"input": "[hold]"}), path="/v1/responses")
    until(lambda: bool(roomy.engine.claimed))
    connection.close()
    request_id = roomy.engine.claimed[-1].id
    until(lambda: roomy.spool.state(request_id) == "done")
    result = roomy.spool.read_result(request_id)
    assert result is not None
    assert result.finish_reason == "cancelled"


def test_a_retry_under_a_key_gets_the_same_response(roomy: Service) -> None:
    """Whole or streamed."""
    headers = {"Idempotency-Key": "again"}
    roomy.engine.texts["sea"] = CALLS
    body = {"input": "sea", "tools": [LOOK, WAIT]}
    first, second = (roomy.http.post("/v1/responses", json=body, headers=headers).json() for _ in range(2))
    assert first["id"] == second["id"]
    assert first["output"] == second["output"]
    assert len(roomy.engine.claimed) == 1
    third = roomy.http.post("/v1/responses", json={**body, "stream": True}, headers=headers).text
    assert f'"id":"{first["id"]}"' in third


def begins_with(service: Service, earlier: int) -> bool:
    """Whether the newest prompt begins with an earlier request's prompt and answer."""
    first, last = service.engine.claimed[earlier], service.engine.claimed[-1]
    done = service.spool.read_result(first.id)
    assert done is not None
    known = (*(first.token_ids or ()), *done.token_ids)
    return (last.token_ids or ())[: len(known)] == known


def results(output: list[Any]) -> list[Any]:
    calls = [item for item in output if item["type"] == "function_call"]
    return [{"type": "function_call_output", "call_id": call["call_id"], "output": "wet"} for call in calls]


def test_an_agents_next_turn_begins_with_the_tokens_of_the_last(roomy: Service) -> None:
    """Over many turns, with arguments that the client wrote in its own JSON."""
    roomy.engine.texts["sea"] = CALLS
    items: list[Any] = [{"role": "user", "content": "sea"}]
    for turn in range(3):
        output = post(roomy, input=items, tools=[LOOK, WAIT], instructions="Be brief.")["output"]
        assert turn == 0 or begins_with(roomy, turn - 1)
        for item in output:
            if item["type"] == "function_call":
                item["arguments"] = json.dumps(json.loads(item["arguments"]), indent=1)
        items += [*output, *results(output)]


def test_a_reference_is_the_item_of_an_earlier_answer(tmp_path: Path) -> None:
    """For the key that has that answer; for another one there is no such item."""
    (tmp_path / "keys").write_text("one\nanother")
    settings = {"MAX_SEQUENCE_LENGTH": "8192", "API_KEYS_FILE": str(tmp_path / "keys")}
    with running_service(tmp_path, settings) as service:
        service.engine.texts["sea"] = CALLS
        service.http.headers["Authorization"] = "Bearer one"
        output = post(service, tools=[LOOK, WAIT])["output"]
        references = [{"type": "item_reference", "id": item["id"]} for item in output]
        items = [{"role": "user", "content": "sea"}, *references, *results(output)]
        post(service, input=items, tools=[LOOK, WAIT])
        assert begins_with(service, 0)
        service.http.headers["Authorization"] = "Bearer another"
        answer = service.http.post("/v1/responses", json={"input": items, "tools": [LOOK, WAIT]})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "input[1]"


def test_reasoning_is_an_item_of_its_own(tmp_path: Path) -> None:
    """Whole and streamed; sent back, or left out, the next turn begins with the tokens of this one."""
    folder = make_model_folder(tmp_path / "thinker" / "tiny", template=THINKING_TEMPLATE)
    with running_service(tmp_path, {"MODEL_REPO": str(folder), "MAX_SEQUENCE_LENGTH": "8192"}) as service:
        service.engine.texts["sea"] = f"Hm.\n</think>\n\n{CALLS}"
        answer = post(service, tools=[LOOK, WAIT])
        kinds = ["reasoning", "message", "function_call", "function_call"]
        assert [item["type"] for item in answer["output"]] == kinds
        assert answer["output"][0]["content"] == [{"type": "reasoning_text", "text": "Hm."}]
        assert answer["output"][0]["summary"] == []
        assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] == len("Hm.")
        events = stream(service, tools=[LOOK, WAIT])
        assert shapes(events[-1]["response"]["output"]) == shapes(answer["output"])
        assert "response.reasoning_text.delta" in [event["type"] for event in events]
        for output in (answer["output"], answer["output"][1:]):
            items = [{"role": "user", "content": "sea"}, *output, *results(output)]
            post(service, input=items, tools=[LOOK, WAIT])
            assert begins_with(service, 0)
        post(service, reasoning={"effort": "none"})
        assert (service.engine.claimed[-1].text or "").endswith("</think>\n\n")

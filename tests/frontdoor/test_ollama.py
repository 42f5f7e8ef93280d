"""Ollama's API: bodies and answers of its chats and prompts, whole and in streams."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from config import REPOSITORY_ROOT
from frontdoor.dialects.ollama_bodies import (
    OllamaChatBody,
    OllamaGenerateBody,
    OllamaHints,
    OptionHints,
    Options,
    with_call_ids,
)
from tests.frontdoor.test_chat_tools import CALLS, SCHEMA, THINKING_TEMPLATE, TOOLS
from tests.frontdoor.test_kept_turns import begins_with
from tests.services.frontdoor_service import (
    Service,
    make_model_folder,
    running_service,
)

SETTINGS = {"MAX_SEQUENCE_LENGTH": "8192", "MODEL_ALIASES": "small,tagged:latest"}
USER = {"role": "user", "content": "hi"}
TEXT = "Grüße, wörld! 🎉 n0 n1 "
ASKED: dict[str, dict[str, Any]] = {"chat": {"messages": [USER]}, "generate": {"prompt": "hi"}}
BOTH = pytest.mark.parametrize("route", ASKED)


def post(service: Service, route: str, status: Any = 200, **fields: Any) -> Any:
    """Post a body without a stream; return the answer."""
    whole = {"stream": False, **ASKED[route]} if route in ASKED else {}
    body = {**whole, **fields} if "name" in fields else {"model": "tiny", **whole, **fields}
    answer = service.http.post(f"/api/{route}", json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def stream(service: Service, route: str, **fields: Any) -> list[dict[str, Any]]:
    """Return the lines of a stream, which is the default."""
    answer = service.http.post(f"/api/{route}", json={"model": "tiny", **ASKED[route], **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert answer.text.endswith("\n")
    return [json.loads(line) for line in answer.text[:-1].split("\n")]


def refused(service: Service, route: str, status: Any = 400, **fields: Any) -> str:
    answer = post(service, route, status, **fields)
    assert list(answer) == ["error"]
    return str(answer["error"])


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["message"]["content"] if "message" in answer else answer["response"])


@BOTH
def test_an_answer_has_text_reason_counts_and_times(service: Service, route: str) -> None:
    """Whole or in lines, with the name that the client sent; times are in nanoseconds."""
    whole = post(service, route, options={"num_predict": 6}, model="tiny:latest")
    lines = stream(service, route, options={"num_predict": 6}, model="tiny:latest")
    assert text_of(whole) == "".join(map(text_of, lines)) == TEXT
    assert [line["done"] for line in lines] == [False] * 6 + [True]
    assert {line["model"] for line in (whole, *lines)} == {"tiny:latest"}
    for last in (whole, lines[-1]):
        assert last["created_at"].endswith("Z")
        assert (last["done_reason"], last["eval_count"]) == ("length", 6)
        assert (last["total_duration"], last["load_duration"]) == (10_000_000, 1_000_000)
        assert last["prompt_eval_count"] == len(service.engine.claimed[-1].token_ids or ())
        assert last["total_duration"] == sum(
            last[name] for name in ("load_duration", "prompt_eval_duration", "eval_duration")
        )
    assert post(service, route)["done_reason"] == "stop"


@BOTH
def test_nothing_to_answer_loads_the_model(service: Service, route: str) -> None:
    """At once and without a request in the queue; a stream gets the same object."""
    empty: dict[str, Any] = {"messages": []} if route == "chat" else {"prompt": ""}
    for fields in (empty, {**empty, "stream": True, "keep_alive": 0}):
        answer = post(service, route, **fields)
        assert (answer["done"], answer["done_reason"], text_of(answer)) == (True, "load", "")
    assert not service.engine.claimed


@BOTH
def test_options_reach_the_request(service: Service, route: str) -> None:
    """Under this server's names; no limit and no seed as Ollama writes them."""
    options = {"temperature": 1, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "seed": 7, "stop": ["zz"]}
    options |= {"repeat_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.25, "num_predict": 3}
    post(service, route, options=options)
    params = service.engine.claimed[-1].params
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (1, 5, 0.5, 0.1)
    assert (params.seed, params.stop, params.max_tokens) == (7, ("zz",), 3)
    penalties = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
    assert penalties == (1.1, 0.5, 0.25)
    for unlimited in (-1, -2, 0, None):
        post(service, route, options={"num_predict": unlimited, "seed": -1, "repeat_penalty": 0})
        request = service.engine.claimed[-1]
        assert request.params.repetition_penalty == 1
        assert request.params.max_tokens == 8192 - len(request.token_ids or ())


@BOTH
def test_hints_are_accepted(service: Service, route: str, caplog: pytest.LogCaptureFixture) -> None:
    """They change no output here, whatever they hold; each is logged once."""
    options = dict.fromkeys(OptionHints.model_fields, 1)
    hints = {"keep_alive": "5m", "truncate": True, "shift": False}
    assert hints.keys() == OllamaHints.model_fields.keys()
    with caplog.at_level(logging.INFO, logger="frontdoor.hints"):
        for _ in range(2):
            post(service, route, options=options, **hints)
    lines = [record.getMessage() for record in caplog.records if record.name == "frontdoor.hints"]
    assert len(set(lines)) == len(lines)
    assert route == "generate" or any("mirostat_tau" in line for line in lines)


def test_the_page_lists_every_field_and_option() -> None:
    """In the table of docs/api.md."""
    page = (REPOSITORY_ROOT / "docs" / "api.md").read_text("utf-8")
    section = page.split("## Ollama's API")[1].split("\n## ")[0]
    table = "".join(line for line in section.splitlines() if line.startswith("|"))
    named = {word for code in re.findall("`([^`]+)`", table) for word in code.split()}
    bodies = (Options, OllamaChatBody, OllamaGenerateBody)
    assert {name for body in bodies for name in body.model_fields} - {"model", "options"} <= named


@BOTH
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"zz": 1}, "unknown field 'zz'"),
        ({"options": {"zz": 1}}, "unknown field 'options.zz'"),
        ({"options": {"temperature": "1"}}, "'options.temperature': must be a number from 0 to 2"),
        ({"options": {"mirostat": 1}}, "'options.mirostat': this server does not support it yet"),
        ({"options": {"num_predict": -3}}, "'options.num_predict': must be a whole number from -2"),
        ({"format": "xml"}, "'format': must be \"json\" or a JSON schema"),
        ({"format": {"type": 3}}, "'format': type must be a string"),
        ({"think": "deep"}, "'think': must be true, false, or one of"),
        ({"think": 1}, "'think': must be true, false, or one of"),
        ({"think": True}, "'think': this model does not think"),
        ({"top_logprobs": 2}, "'top_logprobs': needs logprobs: true"),
        ({"model": ""}, "'model'"),
        ({"stream": "yes"}, "'stream'"),
    ],
)
def test_a_wrong_field_is_refused_by_name(
    service: Service, route: str, fields: dict[str, Any], message: str
) -> None:
    """With Ollama's names, in its form."""
    assert refused(service, route, **fields).startswith(message)


@pytest.mark.parametrize(
    ("route", "fields", "message"),
    [
        ("generate", {"images": ["aGk="]}, "'images': this server does not support it yet"),
        ("generate", {"template": "{{ .Prompt }}"}, "'template': this server does not support it yet"),
        ("generate", {"context": [1, 2]}, "'context': this server does not support it yet"),
        ("generate", {"raw": True, "system": "x"}, "'raw' continues a plain text"),
        ("generate", {"raw": True, "think": True}, "'raw' continues a plain text"),
        ("generate", {"suffix": "x"}, "this model has no tokens for text between"),
        ("chat", {"messages": [{**USER, "images": ["aGk="]}]}, "'messages[0].images'"),
        ("chat", {"messages": [{"role": "judge", "content": "x"}]}, "'messages[0].role'"),
        ("chat", {"messages": [{**USER, "zz": 1}]}, "unknown field 'messages[0].zz'"),
        ("chat", {"tools": [{"type": "function"}]}, "'tools': [0] must be"),
        ("show", {"stream": None}, "unknown field 'stream'"),
    ],
)
def test_a_field_of_one_route_is_refused(
    service: Service, route: str, fields: dict[str, Any], message: str
) -> None:
    """What is not built, or goes with nothing else."""
    body = {"model": "tiny", **ASKED.get(route, {}), **fields}
    answer = service.http.post(f"/api/{route}", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(message)


@BOTH
def test_a_model_has_its_names_with_and_without_latest(service: Service, route: str) -> None:
    """Ollama means the same by both; another model is a 404 with what to do."""
    for name in ("tiny", "tiny:latest", "small:latest", "tagged", "tagged:latest"):
        assert post(service, route, model=name, options={"num_predict": 1})["model"] == name
    for name in ("llama3.2", "tiny:8b", "tiny:latest:latest"):
        assert "MODEL_ALIASES" in refused(service, route, 404, model=name)
    assert (
        service.http.post("/v1/completions", json={"model": "tiny:latest", "prompt": "x"}).status_code == 404
    )


def test_a_chat_is_rendered_as_it_is_sent(service: Service) -> None:
    """Roles in any case, turns without text, results of tools without ids."""
    call = {"function": {"name": "look", "arguments": {"at": "sea"}}}
    messages = [
        {"role": "System", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "wet", "tool_name": "look"},
        {"role": "user"},
    ]
    post(service, "chat", messages=messages, options={"num_predict": 1})
    text = service.engine.claimed[-1].text or ""
    assert text.startswith("<|start|>system:Be brief.<|end|><|start|>user:hi<|end|>")
    assert '{"name": "look", "arguments": {"at": "sea"}}' in text
    assert "<tool_response>\nwet\n</tool_response>" in text


def test_results_find_their_calls() -> None:
    """By id, by the tool's name, else by order; a client's own ids stay."""
    named = [{"function": {"name": name}} for name in ("a", "b", "a")]
    turns: list[dict[str, Any]] = [
        {"role": "assistant", "tool_calls": named},
        {"role": "tool", "name": "b"},
        {"role": "tool"},
        {"role": "tool", "name": "a"},
        {"role": "assistant", "tool_calls": [{"id": "own", "function": {"name": "a"}}]},
        {"role": "tool", "tool_call_id": "own"},
        {"role": "tool", "name": "a"},
    ]
    read = list(with_call_ids(turns))
    assert [call["id"] for call in read[0]["tool_calls"]] == ["call_1", "call_2", "call_3"]
    ids = [turn.get("tool_call_id") for turn in read if turn["role"] == "tool"]
    assert ids == ["call_2", "call_1", "call_3", "own", None]


def test_calls_come_whole_with_object_arguments(service: Service) -> None:
    """Each in one line, with an id; the reason is stop."""
    service.engine.texts["hi"] = CALLS
    whole = post(service, "chat", tools=TOOLS)
    calls = whole["message"]["tool_calls"]
    request_id = service.engine.claimed[-1].id
    assert calls == [
        {"id": f"call_{request_id}_0", "function": {"index": 0, "name": "look", "arguments": {"at": "sea"}}},
        {"id": f"call_{request_id}_1", "function": {"index": 1, "name": "wait", "arguments": {}}},
    ]
    assert (whole["message"]["content"], whole["done_reason"]) == ("I look.", "stop")
    lines = stream(service, "chat", tools=TOOLS)
    streamed = [line["message"].get("tool_calls", []) for line in lines]
    assert [[call["function"]["name"] for call in each] for each in streamed if each] == [["look"], ["wait"]]
    assert "".join(map(text_of, lines)) == "I look."


@pytest.mark.parametrize("length", [39, 42, 60])
def test_half_a_call_is_text(service: Service, length: int) -> None:
    """Arguments that break off are no object; the client gets what there is of them."""
    service.engine.texts["hi"] = CALLS
    options = {"num_predict": length // 3}
    whole = post(service, "chat", tools=TOOLS, options=options)
    assert whole["done_reason"] == "length"
    assert "tool_calls" not in whole["message"]
    assert '"look"' in text_of(whole)
    assert "".join(map(text_of, stream(service, "chat", tools=TOOLS, options=options))) == text_of(whole)


def test_a_turn_with_calls_is_kept_without_ids(service: Service) -> None:
    """The official client sends none: the answer is found by its prompt and its text."""
    for text in (CALLS, CALLS.removeprefix("I look.\n")):
        service.start_over().engine.texts["hi"] = text
        message = post(service, "chat", tools=TOOLS)["message"]
        calls = [{"function": call["function"]} for call in message["tool_calls"]]
        results = [
            {"role": "tool", "tool_name": call["function"]["name"], "content": "wet"} for call in calls
        ]
        post(service, "chat", tools=TOOLS, messages=[USER, {**message, "tool_calls": calls}, *results])
        assert begins_with(service, 0)


def test_what_open_webui_sends_is_answered(service: Service) -> None:
    """Its connection to Ollama (0.12.4): options, tools in OpenAI's form, calls and results with ids."""
    call = {"index": 0, "id": "call_1", "function": {"name": "look", "arguments": {"at": "sea"}}}
    body = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "tool_calls": [call], "content": ""},
            {"role": "tool", "content": "wet", "tool_call_id": "call_1"},
        ],
        "tools": TOOLS,
        "keep_alive": -1,
        "options": {"num_ctx": 8192, "num_gpu": 1, "use_mmap": True, "repeat_last_n": 64, "stop": ["zz"]},
    }
    assert stream(service, "chat", **body)[-1]["done"]
    assert "wet" in (service.engine.claimed[-1].text or "")
    assert post(service, "generate", prompt="", keep_alive=0)["done"]  # its button for unloading


@BOTH
def test_format_constrains_the_answer(service: Service, route: str) -> None:
    """To any object, or to a schema; the empty string is none."""
    for form, is_constrained in (("json", True), (SCHEMA, True), ("", False), (None, False)):
        post(service, route, format=form)
        assert (service.engine.claimed[-1].params.grammar is not None) == is_constrained


@BOTH
def test_logprobs_have_their_tokens(service: Service, route: str) -> None:
    """All of them, in the lines of a stream or in the answer."""
    fields = {"logprobs": True, "top_logprobs": 2, "options": {"num_predict": 4}}
    whole, lines = post(service, route, **fields), stream(service, route, **fields)
    assert whole["logprobs"] == [entry for line in lines for entry in line.get("logprobs", [])]
    assert len(whole["logprobs"]) == 4
    assert [len(entry["top_logprobs"]) for entry in whole["logprobs"]] == [2] * 4


def test_a_prompt_gets_the_template_unless_it_is_raw(service: Service) -> None:
    """With a system turn where the client sends one; a raw text is continued, and not read for tags."""
    texts = {}
    asked: dict[str, Any] = {"plain": {}, "system": {"system": "be"}, "raw": {"raw": True}}
    for name, fields in asked.items():
        post(service, "generate", options={"num_predict": 1}, **fields)
        texts[name] = service.engine.claimed[-1].text
    assert texts["plain"] == "<|start|>user:hi<|end|><|start|>assistant:"
    assert texts["system"] == f"<|start|>system:be<|end|>{texts['plain']}"
    assert texts["raw"] == "hi"


@pytest.mark.parametrize("template", ["switch", "always"])
def test_thinking_is_a_member_of_its_own(tmp_path: Path, template: str) -> None:
    """`think` sets the template's switch; a model without one always thinks, so only false is refused."""
    switch = "{% if enable_thinking is defined and not enable_thinking %}\n</think>\n\n{% endif %}"
    source = THINKING_TEMPLATE if template == "switch" else THINKING_TEMPLATE.replace(switch, "")
    folder = make_model_folder(tmp_path / "thinker", template=source)
    with running_service(tmp_path, {"MODEL_REPO": str(folder), "MAX_SEQUENCE_LENGTH": "8192"}) as service:
        service.engine.texts["hi"] = "hm\n</think>\n\nyes"
        for fields in ({}, {"think": True}, {"think": None}):
            message = post(service, "chat", model="thinker", **fields)["message"]
            assert (message["thinking"].strip(), message["content"].strip()) == ("hm", "yes")
            answer = post(service, "generate", model="thinker", **fields)
            assert (answer["thinking"].strip(), answer["response"].strip()) == ("hm", "yes")
            lines = stream(service, "generate", model="thinker", **fields)
            assert "".join(line.get("thinking", "") for line in lines).strip() == "hm"
        assert "thinking" in post(service, "show", model="thinker")["capabilities"]
        raw = post(service, "generate", model="thinker", raw=True)
        assert raw["response"] == "hm\n</think>\n\nyes"
        if template == "switch":
            service.engine.texts["hi"] = "yes"
            message = post(service, "chat", model="thinker", think=False)["message"]
            assert message == {"role": "assistant", "content": "yes"}
            assert (service.engine.claimed[-1].text or "").endswith("</think>\n\n")
        else:
            assert refused(service, "chat", model="thinker", think=False).startswith("'think': ")

"""What a client gets for a request that cannot be: the OpenAI error shape, and nothing in the spool."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prompts.tokenizer import PromptTokenizer
from tests.frontdoor.raw_http import post_bytes
from tests.services.frontdoor_service import Service, connect, make_model_folder, running_service

TOOL = {"type": "function", "function": {"name": "look"}}
USER = [{"role": "user", "content": "hi"}]
JSON = {"Content-Type": "application/json"}


def refused(service: Service, path: str, body: Any, *, status: int = 400) -> dict[str, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = service.http.post(path, content=content, headers=JSON)
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert_spool_is_empty(service)
    return error


def assert_spool_is_empty(service: Service) -> None:
    depth = service.spool.depth()
    assert (depth.num_waiting, depth.num_active) == (0, 0)
    # The front door has an empty file ready for the next request.
    left = [path for path in service.spool.folder.tmp.iterdir() if path.name != "ballast"]
    assert [path.name for path in left if path.stat().st_size] == []
    assert len(left) <= 1


# llguidance cuts a text for its message in the middle of a character, which ends in a panic (1.9.1).
PANIC = {"required": "😀" * 50}
WRONG_FIELDS: dict[str, list[Any]] = {
    "max_tokens": [-1, 0, 10**19, True, "5", 1.5],
    "temperature": [float("nan"), float("inf"), -0.1, 2.1],
    "top_p": [-0.01, 1.01],
    "top_k": [-2, 1.5],
    "min_p": [2],
    "seed": [-(2**63) - 1, 2**63, True],
    "stop": [[5], ["a"] * 17, ["a"] * 10**5, ["a" * 257], {"a": 1}],
    "frequency_penalty": [2.1],
    "presence_penalty": [-3],
    "repetition_penalty": [-0.1, 0],
    "logit_bias": [{"5": 101}, {"word": 1}, {"999999": 1}],
    "n": [0, 9],
    "response_format": [
        *[{"type": "wizard"}, {"type": "json_schema"}],
        {"type": "json_schema", "json_schema": {"schema": 5}},
        *[{"type": "json_object", "schema": schema} for schema in (5, False, {"$ref": "#"}, PANIC)],
        *[{"type": "json_schema", "json_schema": {"schema": schema}} for schema in (False, PANIC)],
    ],
    "structured_outputs": [
        {"regex": "(a"},
        {"regex": "a", "choice": ["b"]},
        {"choice": []},
        {"colour": "red"},
        *[{"regex": 1}, {"grammar": 'start: a\na: a "x"'}, {"json": {"allOf": [{"$ref": "#"}]}}],
        *[{"json": PANIC}, {"json": {"properties": {"a": PANIC}}}],
    ],
    "guided_grammar": ["start: nothing"],
    "guided_json": ["{"],
    "logprobs": [3],
    "top_logprobs": [5],
    "stream": ["yes"],
    "ignore_eos": [1],
    "repeat_penalty": [1.1],
    "skip_special_tokens": [False],
    "unheard_of": [None],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG_FIELDS.items() for value in values]
)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(
    service: Service, field: str, value: object
) -> None:
    """Values out of range or of the wrong type, and features that are not built: 400 naming the field."""
    for path, prompt in (("/generate", {"prompt": "hi"}), ("/v1/chat/completions", {"messages": USER})):
        error = refused(service, path, {**prompt, field: value})
        assert field in error["message"]
        assert error["param"] == field


WRONG_PROMPTS: list[Any] = [["a", 5], ["a"] * 129, [], [1, 10**6], [-1], [[1], [10**6]], [[]], 5]
NOT_BUILT: dict[str, list[tuple[str, Any]]] = {
    "/generate": [("conversation_id", "x"), ("priority", 10)],
    "/v1/chat/completions": [
        *[("tools", [{"type": "function"}]), ("tools", [TOOL, TOOL])],
        ("tools", [{**TOOL, "function": {"name": "a", "parameters": 5}}]),
        ("tools", [{"type": "custom", "custom": {"name": "a"}}]),
        *[("tool_choice", "required"), ("tool_choice", "perhaps"), ("tool_choice", TOOL)],
        ("chat_template_kwargs", {"unheard_of": 1}),
        ("modalities", ["audio"]),
        ("background", True),
    ],
    "/v1/completions": [
        *[("echo", 1), ("suffix", "x"), ("best_of", 2), ("max_tokens", 0), ("logprobs", 6)],
        *[("prompt", prompt) for prompt in WRONG_PROMPTS],
    ],
}


@pytest.mark.parametrize(
    ("path", "field", "value"), [(path, *wrong) for path in NOT_BUILT for wrong in NOT_BUILT[path]]
)
def test_a_route_refuses_what_it_does_not_build(
    service: Service, path: str, field: str, value: object
) -> None:
    """Each API's own fields are refused by name as well."""
    prompt = {"messages": USER} if "chat" in path else {"prompt": "hi"}
    error = refused(service, path, {**prompt, field: value})
    assert error["param"] == field


@pytest.mark.parametrize(
    "message",
    [
        {"role": "wizard", "content": "hi"},
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": "hi", "colour": "red"},
        {"role": "system", "content": None},
        {"role": "assistant", "content": 5},
        {"role": "assistant", "tool_calls": "look"},
        {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]},
        {"role": "assistant", "function_call": "look"},
    ],
)
def test_messages_of_another_shape_are_refused(service: Service, message: object) -> None:
    """The error's param leads to the message that is wrong."""
    for path in ("/v1/chat/completions", "/generate"):
        error = refused(service, path, {"messages": [*USER, message]})
        assert error["param"].startswith("messages[1].")


@pytest.mark.parametrize("messages", [[], "hi"])
def test_messages_that_are_none_are_refused(service: Service, messages: object) -> None:
    """There is no message to name."""
    for path in ("/v1/chat/completions", "/generate"):
        assert refused(service, path, {"messages": messages})["param"] == "messages"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"hi"',
        b"null",
        b'{"prompt": "hi"',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": ""}',
        b'{"prompt": null}',
        b"{}",
        b'{"prompt": "hi", "temperature": NaN}',
        b'{"prompt": "hi", "max_tokens": 1' + b"0" * 5000 + b"}",
        b"[" * 100_000,
        b'{"prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}',
        b'{"prompt": "hi", "stream": true, "background": true}',
        b'{"messages": [{"role": "user", "content": "hi"}], "raw": true}',
    ],
)
def test_a_body_that_is_no_request_is_a_400(service: Service, body: bytes) -> None:
    """Broken JSON, bad UTF-8, an empty prompt, too deep nesting and fields that exclude each other."""
    refused(service, "/generate", body)


def test_another_content_type_is_a_415(service: Service) -> None:
    """Only JSON is read, and a page of another site cannot send it without asking first."""
    for content_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        headers = {"Content-Type": content_type} if content_type else {}
        answer = service.http.post("/generate", content=b'{"prompt": "hi"}', headers=headers)
        assert answer.status_code == 415
        error = answer.json()["error"]
        assert error["code"] == "unsupported_media_type"
        assert content_type in error["message"]
        assert "curl: --json" in error["message"]  # its -d alone says that it sends a form
    for encoding in ("gzip", "br", "deflate, gzip"):
        answer = service.http.post(
            "/generate",
            content=b"x",
            headers={"Content-Type": "application/json", "Content-Encoding": encoding},
        )
        assert answer.status_code == 415
        assert f"Content-Encoding '{encoding}'" in answer.json()["error"]["message"]


def test_json_may_be_declared_in_any_usual_way(service: Service) -> None:
    """With a charset, in capitals, with line breaks of any kind, in chunks."""
    for content_type in (
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON;charset=UTF-8",
    ):
        for body in (b'{"prompt": "hi"}', b'\r\n{\r\n\t"prompt":\r\n"hi"}\r\n', b'{"prompt":"hi"}\n'):
            headers = {"Content-Type": content_type, "Content-Encoding": "identity"}
            assert service.http.post("/generate", content=body, headers=headers).status_code == 200
            assert service.http.post("/generate", content=iter([body]), headers=headers).status_code == 200


def test_a_body_that_says_it_is_too_large_is_refused_unread(service: Service) -> None:
    """413 comes before the body: not one byte of five megabytes has to be sent."""
    with connect(service.url) as connection:
        connection.sendall(post_bytes("/generate", b"x" * 5_000_000)[:-5_000_000])
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert_spool_is_empty(service)


def test_a_body_that_turns_out_too_large_is_refused(service: Service) -> None:
    """A chunked body without a length is cut off at the limit."""

    def endless() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(40):
            yield b"x" * 65536

    answer = service.http.post("/generate", content=endless(), headers=JSON)
    assert answer.status_code == 413
    assert "MAX_BODY_BYTES" in answer.json()["error"]["message"]


def test_text_longer_than_its_limit_is_refused_on_generate(service: Service) -> None:
    """MAX_PROMPT_LEN_BYTES counts bytes of text, over all messages, and its error names the key."""
    text = "ü" * 2049
    halves = [{"role": "system", "content": "x" * 2049}, {"role": "user", "content": "x" * 2048}]
    for path, body in (
        ("/generate", {"prompt": text}),
        ("/generate", {"messages": halves}),
    ):
        assert "MAX_PROMPT_LEN_BYTES=4096" in refused(service, path, body)["message"]


def test_a_prompt_that_fills_the_context_is_a_context_length_error(service: Service) -> None:
    """The prompt alone leaves no room for one token of answer."""
    for path, body in (
        ("/generate", {"prompt": "x" * 256, "raw": True}),
        ("/v1/completions", {"prompt": "x" * 256}),
        ("/v1/completions", {"prompt": [5] * 256}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 256}]}),
    ):
        error = refused(service, path, body)
        assert error["code"] == "context_length_exceeded"
        assert error["param"] in body
        assert re.match(
            r"This model's maximum context length is 256 tokens\. "
            r"However, your messages resulted in \d+ tokens",
            error["message"],
        )
        assert "MAX_SEQUENCE_LENGTH=auto" in error["message"]


def test_an_absurd_text_is_refused_before_it_is_tokenized(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text that no tokens could hold within the context costs no tokenizing, on any route."""

    def tokenize(*_: object) -> list[int]:
        raise AssertionError("it was tokenized")

    monkeypatch.setattr(PromptTokenizer, "encode_raw", tokenize)
    monkeypatch.setattr(PromptTokenizer, "encode_rendered", tokenize)
    text = "x" * 500_000
    for path, body in (
        ("/v1/completions", {"prompt": text}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
    ):
        error = refused(service, path, body)
        assert error["code"] == "context_length_exceeded"
        assert "resulted in at least" in error["message"]


def test_stream_options_without_stream_are_refused(service: Service) -> None:
    """They would have no effect."""
    for path, prompt in (("/v1/chat/completions", {"messages": USER}), ("/v1/completions", {"prompt": "hi"})):
        body = {**prompt, "stream_options": {"include_usage": True}}
        assert refused(service, path, body)["param"] == "stream_options"


def test_another_model_is_not_found(service: Service) -> None:
    """The name of a model that is not served is a 404 before anything is accepted."""
    for path, prompt in (
        ("/generate", {"prompt": "hi"}),
        ("/v1/chat/completions", {"messages": USER}),
        ("/v1/completions", {"prompt": "hi"}),
    ):
        error = refused(service, path, {**prompt, "model": "gpt-5"}, status=404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_unknown_paths_and_methods_have_the_same_shape(service: Service) -> None:
    """404 and 405 look like every other error."""
    assert service.http.get("/nothing/here").json()["error"]["code"] == "not_found"
    answer = service.http.get("/generate")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.json()["error"]["code"] == "method_not_allowed"


def test_messages_that_the_chat_template_refuses_are_a_400(tmp_path: Path) -> None:
    """What the model's own template objects to is the client's to change."""
    model = make_model_folder(tmp_path / "strict", template="{{ raise_exception('roles must alternate') }}")
    with running_service(tmp_path, {"MODEL_REPO": str(model)}) as strict:
        error = refused(strict, "/v1/chat/completions", {"messages": USER})
        assert error["param"] == "messages"
        assert "roles must alternate" in error["message"]

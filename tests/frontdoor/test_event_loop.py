"""Long bodies do not hold up other clients: threads read, encode and constrain them beside the event loop."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from frontdoor import accepting
from prompts.detokenizer import Detokenizer
from prompts.formats import Formats
from prompts.tokenizer import PromptTokenizer
from tests.services.frontdoor_service import Service, running_service

CHAT, USER = "/v1/chat/completions", {"role": "user", "content": "hi"}
LONG = {"role": "user", "content": "long " * 4000}
WORK = [
    (BaseModel, "model_validate_json"),
    (PromptTokenizer, "render"),
    (PromptTokenizer, "encode_raw"),
    (PromptTokenizer, "encode_rendered"),
    (Detokenizer, "text_of"),
    (Formats, "grammar"),
    (accepting, "content_grammar"),
    (Detokenizer, "bytes_alone"),
]


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def schema(num_properties: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {f"property_{i}": {"type": "string"} for i in range(num_properties)},
    }


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service whose context holds long chats."""
    folder: Path = tmp_path_factory.mktemp("long")
    with running_service(
        folder, {"MAX_SEQUENCE_LENGTH": "200000", "MAX_PROMPT_LEN_BYTES": "200000"}
    ) as service:
        yield service


@pytest.fixture
def on_loop(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the work that the event loop did itself."""
    found: list[str] = []

    def watched(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                asyncio.get_running_loop()
                found.append(name)
            except RuntimeError:  # a thread beside it
                pass
            return work(*arguments, **named)

        return call

    for owner, name in WORK:
        work = getattr(owner, name)
        if isinstance(owner, type) and hasattr(work, "__func__"):
            monkeypatch.setattr(owner, name, classmethod(watched(name, work.__func__)))
        else:
            monkeypatch.setattr(owner, name, watched(name, work))
    return found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [LONG]}),
        (CHAT, {"messages": [USER, {"role": "assistant", "content": "a"}] * 1000 + [USER]}),
        (CHAT, {"messages": [USER], "tools": [tool(f"t{number}") for number in range(512)]}),
        (CHAT, {"messages": [USER], "tools": [tool("t", description="long " * 4000)]}),
        (CHAT, {"messages": [USER], "tools": [tool("t", parameters=schema(500))], "tool_choice": "required"}),
        (CHAT, {"messages": [LONG], "structured_outputs": {"json": schema(500)}}),
        (CHAT, {"messages": [LONG], "extra_body": {"structured_outputs": {"json": schema(500)}}}),
        ("/v1/completions", {"prompt": "long " * 4000}),
        ("/generate", {"prompt": "long " * 4000}),
        ("/tokenize", {"prompt": "long " * 4000, "add_special_tokens": False}),
        ("/tokenize", {"prompt": "long " * 4000}),
        ("/tokenize", {"messages": [USER], "tools": [tool("t", description="long " * 4000)]}),
        ("/detokenize", {"tokens": [40] * 10_000}),
        (CHAT, {"messages": [LONG], "logprobs": True, "top_logprobs": 20, "n": 2}),
        ("/v1/completions", {"prompt": "long " * 4000, "logprobs": 5, "echo": True, "n": 2}),
        ("/generate", {"messages": [LONG], "logprobs": True, "n": 2}),
    ],
)
def test_the_event_loop_leaves_long_bodies_to_threads(
    shared: Service, on_loop: list[str], path: str, body: dict[str, Any]
) -> None:
    """Whatever makes the body long: its text, many messages, tools, or a schema."""
    limit = {} if path in ("/tokenize", "/detokenize") else {"max_tokens": 1}
    answer = shared.http.post(path, json=body | limit)
    assert answer.status_code == 200, answer.text
    assert on_loop == []


def test_a_long_body_is_refused_beside_it_as_well(shared: Service, on_loop: list[str]) -> None:
    """With thousands of problems, of which the message names three."""
    answer = shared.http.post(CHAT, json={"messages": [{"role": "x"}] * 5000})
    assert (answer.status_code, on_loop) == (400, [])
    assert len(answer.json()["error"]["message"]) < 1000

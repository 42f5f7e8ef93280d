"""Streams as benchmark programs read them, rebuilt here: each must get the whole answer, however it arrives.

What they have in common: they strip what they get, skip what is empty then, cut off "data: " and read JSON,
unless it says [DONE]. Some do so with each line, some with each piece that the network brings.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

import openai
import pytest

from frontdoor.http import events
from frontdoor.routes.openai_completions import CompletionWriter
from frontdoor.routes.openai_text import Asked, ChunkRenderer
from prompts.tokenizer import load_tokenizer
from spool import TokenRecord
from tests.services.frontdoor_service import Service

TEXT = "Grüße, wörld! 🎉 n0 n1 "
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "stream": True}
COMPLETION: dict[str, Any] = {"prompt": "hi", "max_tokens": 6, "stream": True}
ASKED = [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)]
Reader = Callable[[Iterable[bytes]], list[Any]]


def read_message(message: str) -> list[Any]:
    data = message.removeprefix("data: ")
    return [] if data == "[DONE]" else [json.loads(data)]


def read_lines(pieces: Iterable[bytes]) -> list[Any]:
    """aiohttp's stream, line by line: sglang's bench_serving, vllm's up to 0.10."""
    found = []
    for line in b"".join(pieces).splitlines(keepends=True):
        if stripped := line.strip():
            found += read_message(stripped.decode())
    return found


def read_text_lines(pieces: Iterable[bytes]) -> list[Any]:
    """httpx's iter_lines, for which more characters end a line; cut by length, as llmperf does."""
    found = []
    for line in b"".join(pieces).decode().splitlines():
        if line.strip():
            data = line.strip()[len("data: ") :]
            found += [] if data == "[DONE]" else [json.loads(data)]
    return found


def read_stripped_pieces(pieces: Iterable[bytes]) -> list[Any]:
    """vllm's bench serve: each piece is stripped and added to a buffer, which is cut at empty lines.

    What is left of it counts as soon as it is whole JSON. A message that begins with a colon is skipped.
    """
    found: list[Any] = []
    buffer = ""
    for piece in pieces:
        if not piece.strip():
            continue
        buffer += piece.strip().decode()
        *messages, buffer = buffer.split("\n\n")
        if buffer.startswith("data: ") and is_whole(buffer.removeprefix("data: ").strip()):
            messages, buffer = [*messages, buffer], ""
        for message in messages:
            if not message.strip().startswith(":"):
                found += read_message(message.strip())
    return found


def is_whole(data: str) -> bool:
    try:
        return data == "[DONE]" or bool(json.loads(data))
    except json.JSONDecodeError:
        return False


READERS: list[Reader] = [read_lines, read_text_lines, read_stripped_pieces]


def text_of(chunks: list[Any]) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(
        choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices
    )


def frames_of(service: Service, path: str, body: dict[str, Any]) -> list[bytes]:
    content = service.http.post(path, json=body).content
    return [frame + b"\n\n" for frame in content.split(b"\n\n")[:-1]]


@pytest.mark.parametrize(("path", "body"), ASKED)
@pytest.mark.parametrize("read", READERS)
def test_a_reader_gets_the_whole_answer_however_frames_are_grouped(
    service: Service, read: Reader, path: str, body: dict[str, Any]
) -> None:
    """One at a time, several in one read, all in one."""
    for options in ({}, {"stream_options": {"include_usage": True}}):
        frames = frames_of(service, path, {**body, **options})
        assert frames[0].startswith(b"data: ")
        for size in (1, 2, 3, len(frames)):
            pieces = [b"".join(frames[at : at + size]) for at in range(0, len(frames), size)]
            chunks = read(pieces)
            assert text_of(chunks) == TEXT
            assert len(chunks) == len(frames) - 1
        if options:
            assert chunks[-1]["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize(("path", "body"), ASKED)
@pytest.mark.parametrize("read", READERS)
def test_a_reader_gets_the_whole_answer_wherever_it_is_split(
    service: Service, read: Reader, path: str, body: dict[str, Any]
) -> None:
    """At any byte; for a reader that strips pieces, at any where it strips nothing and cuts no character."""
    content = b"".join(frames_of(service, path, body))
    for at in range(1, len(content)):
        pieces = [content[:at], content[at:]]
        is_cut = any(piece != piece.strip() for piece in (pieces[0][-1:], pieces[1][:1]))
        if read is read_stripped_pieces and (is_cut or content[at] & 0xC0 == 0x80):
            continue
        assert text_of(read(pieces)) == TEXT, at


def test_each_token_has_a_chunk_of_its_own(service: Service) -> None:
    """However many come from the log at once: readers count chunks, and look for code fences in each."""
    records = tuple(TokenRecord(index, index, text) for index, text in enumerate(("42", "\n", "```")))
    writer = CompletionWriter(0, load_tokenizer(service.settings).detokenizer, "", has_answer=True)
    asked = Asked((), 1, lambda *_: writer)
    frames = ChunkRenderer([writer], {}, None, 1, asked).tokens(0, records)
    assert [chunk["choices"][0]["text"] for chunk in read_lines([frames])] == ["42", "\n", "```"]


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_nothing_comes_before_the_first_data(service: Service, path: str, body: dict[str, Any]) -> None:
    """Not even while the request waits, until the silence is long; /generate has a comment at once."""
    assert events.COMMENT_SECONDS == 10
    service.start_over(max_open=0)
    with service.http.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200  # the head is here
        service.engine.open_up(8)
        text = answer.read().decode()
    assert all(not line.startswith(":") for line in text.splitlines())
    assert service.http.post("/generate", json=COMPLETION).text.startswith(": accepted")


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_comments_of_a_long_silence_lose_no_data(
    service: Service, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    """They come regularly, before and between data; readers that strip pieces lose no data."""
    monkeypatch.setattr("frontdoor.answering.COMMENT_SECONDS", 0.01)
    monkeypatch.setattr("frontdoor.answering.Renderer.patience_seconds", 0.01)
    monkeypatch.setattr("frontdoor.queue_estimate.MAX_LISTING_AGE_SECONDS", 0.0)
    held = {
        **body,
        **(
            {"prompt": "[hold]"}
            if "prompt" in body
            else {"messages": [{"role": "user", "content": "[hold]"}]}
        ),
    }
    service.start_over(max_open=0)
    with service.http.stream("POST", path, json=held) as answer:
        pieces = answer.iter_raw()
        seen = [next(pieces) for _ in range(3)]
        assert all(piece.startswith(b": waiting") for piece in seen)
        service.engine.open_up(8)
        while seen[-1].startswith(b": w"):
            seen.append(next(pieces))
        while not seen[-1].startswith(b": working"):
            seen.append(next(pieces))
        service.engine.release()
        seen += list(pieces)
    assert text_of(read_stripped_pieces(seen)) == TEXT
    lines = b"".join(seen).decode().split("\n")
    assert all(not line or line.startswith(("data: ", ":")) for line in lines)


def test_the_openai_client_reads_past_comments(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The empty comment that ends one is a comment to it."""
    monkeypatch.setattr("frontdoor.answering.COMMENT_SECONDS", 0.01)
    monkeypatch.setattr("frontdoor.answering.Renderer.patience_seconds", 0.01)
    service.start_over(max_open=0)
    with (
        openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client,
        client.completions.create(model="tiny", prompt="hi", max_tokens=6, stream=True) as stream,
    ):
        raw = service.http.post("/generate", json={"prompt": "hi", "background": True})
        assert raw.status_code == 202
        service.engine.open_up(8)
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\r\n", "\n"]
)
def test_no_character_of_an_answer_ends_a_line(odd: str) -> None:
    """Whatever a reader takes for a line's end, a frame has none in it, and the text comes as it was."""
    text = f"a{odd}b ü🎉"
    for choice in ({"text": text}, {"delta": {"content": text}}):
        frame = events.data_frame(events.to_json({"choices": [choice]}))
        for read in READERS:
            assert text_of(read([frame])) == text

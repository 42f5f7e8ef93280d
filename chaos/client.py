"""One client: asks as real ones do, tries again when it loses the connection, and journals all answers.

stream      follows the tokens; attaches again after its last one (Last-Event-ID)
leaving     the same, but hangs up every few tokens
wait        waits for the whole answer; posts again with the same Idempotency-Key
background  posts, and asks for the answer from time to time
twice       posts twice under one Idempotency-Key, then asks like background
gone        posts in the background, leaves before the reply, and never asks again

Several choices and chats are asked for by "stream" and "wait" alone, which post again after each loss.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

from chaos.journal import Entry, Question
from cluster.commands.requests.client import read_events

KINDS = ("stream", "leaving", "wait", "background", "twice", "gone")
STREAMS = ("stream", "leaving")
IN_BACKGROUND = ("background", "twice", "gone")
RETRY_S = 0.1
CONNECTION_LIMIT_S = 60.0
LOST = (OSError, http.client.HTTPException, ValueError)


class Client:
    """Asks one question after another at one front door."""

    def __init__(self, port: int, patience_s: float, on_token: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            on_token: called at each token of a stream.
        """
        self._port = port
        self._pause = threading.Event()
        self._patience_s = patience_s
        self._on_token = on_token

    def ask(self, question: Question, entry: Entry) -> None:
        """Ask until an answer comes."""
        deadline = time.monotonic() + self._patience_s
        entry.asked_unix = time.time()
        while not entry.is_over:
            if time.monotonic() > deadline:
                entry.trouble.append("no answer in time")
                return
            try:
                entry.num_connections += 1
                if entry.ids and question.is_simple:
                    self._fetch(entry)
                else:
                    self._post(question, entry)
            except LOST as error:
                entry.trouble.append(repr(error)[:120])
            if not entry.is_over:
                self._pause.wait(RETRY_S)
        entry.ended_unix = time.time()

    def _post(self, question: Question, entry: Entry) -> None:
        is_stream, is_background = entry.kind in STREAMS, entry.kind in IN_BACKGROUND
        form = {"stream": is_stream, **({"background": True} if is_background else {})}
        body = json.dumps({**question.body, **form})
        path = "/v1/chat/completions" if question.is_chat else "/generate"
        headers = {"content-type": "application/json", "idempotency-key": entry.key}
        with self._connected() as connection:
            connection.request("POST", path, body, headers)
            if entry.kind == "gone":
                entry.is_abandoned = True
                return
            response = connection.getresponse()
            if response.status == 200 and is_stream and question.is_simple:
                self._read_stream(response, entry)
            elif response.status == 200 and is_stream:
                self._read_choices(response, entry, question.num_choices)
            else:
                self._take_answer(response.status, json.loads(response.read()), entry)
        if entry.kind == "twice" and len(entry.ids) == 1:
            status, answer = self._request("POST", "/generate", body, headers)
            if status == 202:
                entry.take_id(str(answer["id"]))

    def _take_answer(self, status: int, answer: Mapping[str, Any], entry: Entry) -> None:
        """Take a 2xx, or the id of a 504 or failed answer; any other status was not accepted."""
        if status in (200, 202):
            choices = answer.get("choices", [])
            for part in (answer, *choices):
                entry.take_id(str(part.get("id", answer["id"])))
            entry.result = dict(answer) if status == 200 else None
            texts = [_text_of(part["message"]) if "message" in part else part["text"] for part in choices]
            entry.shown.append(dict(enumerate(texts)))
            return
        error = answer.get("error") or {}
        entry.trouble.append(f"{status} {error.get('code')}")
        if found := error.get("id") or answer.get("id"):
            entry.take_id(str(found))

    def _request(self, *words: Any) -> tuple[int, dict[str, Any]]:
        """Send a request; return the status and the whole answer."""
        with self._connected() as connection:
            connection.request(*words)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def _fetch(self, entry: Entry) -> None:
        """Fetch an accepted request: its stream, or its whole answer."""
        request_id = entry.ids[-1]
        if entry.kind in STREAMS and self._attach(request_id, entry):
            return
        status, answer = self._request("GET", f"/requests/{request_id}")
        if status == 200 and answer.get("state") == "done":
            entry.result = answer
        elif status == 404:
            entry.trouble.append("404 for an accepted id")

    def _attach(self, request_id: str, entry: Entry) -> bool:
        """Continue a stream after its last token; False if the front door refuses."""
        headers = {"last-event-id": str(entry.tokens[-1][0])} if entry.tokens else {}
        with self._connected() as connection:
            connection.request("GET", f"/requests/{request_id}/stream", headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                response.read()
                return False
            self._read_stream(response, entry)
            return True

    def _connected(self) -> closing[http.client.HTTPConnection]:
        return closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=CONNECTION_LIMIT_S))

    def _read_stream(self, response: http.client.HTTPResponse, entry: Entry) -> None:
        """Follow events to the last one; a stream without a last event is a lost connection."""
        num_tokens = 0
        for event, data in read_events(_note_id(response, entry)):
            if event == "token":
                entry.tokens.append((int(data["index"]), int(data["token_id"])))
                self._on_token()
                num_tokens += 1
                if num_tokens == entry.leave_after:
                    return
            elif event == "reset":
                entry.reset()
            elif event in ("done", "error"):
                _take_end(data, entry)
                return
        entry.trouble.append("the stream just ended")

    def _read_choices(self, response: http.client.HTTPResponse, entry: Entry, num_choices: int) -> None:
        """Follow the events of several choices, or of a chat, until each choice has ended."""
        shown: dict[int, str] = {}
        entry.shown.append(shown)
        num_ended = 0
        for event, data in read_events(_note_id(response, entry)):
            if "choice" not in data and "choices" not in data:
                _take_end(data, entry)
                return
            (part,) = data.get("choices", [data])
            text = _text_of(part["delta"]) if "delta" in part else data["text"] if event == "token" else ""
            number = int(part["index"] if "delta" in part else part["choice"])
            shown[number] = shown.get(number, "") + text
            self._on_token()
            if part.get("finish_reason"):
                entry.take_id(str(data["id"]))
                num_ended += 1
            if num_ended == num_choices:
                entry.result = {}
                return
        entry.trouble.append("the stream just ended")


def _text_of(part: Mapping[str, Any]) -> str:
    """The text and calls of a message or of a piece; those of all pieces together are the message's."""
    calls = [(call.get("id", ""), call["function"]) for call in part.get("tool_calls") or ()]
    return (part.get("content") or "") + "".join(
        f"{id}{called.get('name', '')}{called['arguments']}" for id, called in calls
    )


def _note_id(response: http.client.HTTPResponse, entry: Entry) -> Iterator[bytes]:
    """The lines of a stream; the id is in its first comment."""
    for line in iter(response.readline, b""):
        if line.startswith(b": accepted "):
            entry.take_id(line.decode().removeprefix(": accepted ").split()[0])
        yield line


def _take_end(data: Mapping[str, Any], entry: Entry) -> None:
    if "id" in data:
        entry.take_id(str(data["id"]))
        entry.result = dict(data)
    else:
        entry.trouble.append(f"error event {data.get('error', {}).get('code')}")

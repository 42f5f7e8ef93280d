"""One client: asks as real ones do, stays when the connection is lost, and writes down all that it was told.

Three kinds: a stream, a wait for the whole answer, and a request in the background that is fetched. After a
lost connection it looks for its request by id, or posts again with the same Idempotency-Key.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Mapping
from typing import Any

from chaos.journal import Entry, Question
from cluster.client import read_events

RETRY_S = 0.1
CONNECTION_LIMIT_S = 60.0
LOST = (OSError, http.client.HTTPException, ValueError)


class Client:
    """Asks one question after another at one front door."""

    def __init__(self, port: int, patience_s: float) -> None:
        self._port = port
        self._pause = threading.Event()
        self._patience_s = patience_s

    def ask(self, question: Question, entry: Entry) -> None:
        """Ask until there is an answer."""
        deadline = time.monotonic() + self._patience_s
        entry.asked_unix = time.time()
        while entry.result is None:
            if time.monotonic() > deadline:
                entry.trouble.append("no answer in time")
                return
            try:
                entry.num_connections += 1
                if entry.ids:
                    self._fetch(entry)
                else:
                    self._post(question, entry)
            except LOST as error:
                entry.trouble.append(repr(error)[:120])
            if entry.result is None:
                self._pause.wait(RETRY_S)
        entry.ended_unix = time.time()

    def _post(self, question: Question, entry: Entry) -> None:
        body = {**question.body, "stream": entry.kind == "stream", "background": entry.kind == "background"}
        headers = {"content-type": "application/json", "idempotency-key": entry.key}
        connection, response = self._send("POST", "/generate", json.dumps(body), headers)
        try:
            if response.status == 200 and entry.kind == "stream":
                self._read_stream(response, entry)
                return
            answer = json.loads(response.read())
            if response.status == 202:
                entry.take_id(str(answer["id"]))
            elif response.status == 200:
                entry.take_id(str(answer["id"]))
                entry.result = answer
            else:
                self._take_refusal(response.status, answer, entry)
        finally:
            connection.close()

    def _take_refusal(self, status: int, answer: Mapping[str, Any], entry: Entry) -> None:
        """A 504 and a failed answer carry the id; all else was not accepted."""
        error = answer.get("error") or {}
        entry.trouble.append(f"{status} {error.get('code')}")
        if found := error.get("request_id") or answer.get("id"):
            entry.take_id(str(found))

    def _fetch(self, entry: Entry) -> None:
        """Look for a request that was accepted: as a stream where it was one, else as a whole."""
        request_id = entry.ids[-1]
        if entry.kind == "stream" and self._attach(request_id, entry):
            return
        connection, response = self._send("GET", f"/requests/{request_id}", None, {})
        try:
            answer = json.loads(response.read())
            if response.status == 200 and answer.get("state") == "done":
                entry.result = answer
            elif response.status == 404:
                entry.trouble.append("404 for an accepted id")
        finally:
            connection.close()

    def _attach(self, request_id: str, entry: Entry) -> bool:
        """Go on with a stream after its last token; False where the front door cannot do that."""
        headers = {"last-event-id": str(entry.tokens[-1][0])} if entry.tokens else {}
        connection, response = self._send("GET", f"/requests/{request_id}/stream", None, headers)
        try:
            if response.status != 200:
                response.read()
                return False
            self._read_stream(response, entry)
            return True
        finally:
            connection.close()

    def _send(
        self, method: str, path: str, body: str | None, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=CONNECTION_LIMIT_S)
        connection.request(method, path, body, dict(headers))
        return connection, connection.getresponse()

    def _read_stream(self, response: http.client.HTTPResponse, entry: Entry) -> None:
        """Follow events to the last one; a stream that just ends is a lost connection."""
        last_at = time.monotonic()

        def lines() -> Any:
            for line in iter(response.readline, b""):
                if line.startswith(b": accepted "):
                    entry.take_id(line.decode().removeprefix(": accepted ").split()[0])
                yield line

        for event, data in read_events(lines()):
            if event == "token":
                now = time.monotonic()
                if entry.tokens:
                    entry.longest_pause_s = max(entry.longest_pause_s, now - last_at)
                last_at = now
                entry.tokens.append((int(data["index"]), int(data["token_id"])))
            elif event == "reset":
                entry.reset()
            elif event in ("done", "error"):
                if "id" in data:
                    entry.take_id(str(data["id"]))
                    entry.result = data
                else:
                    entry.trouble.append(f"error event {data.get('error', {}).get('code')}")
                return
        entry.trouble.append("the stream just ended")

"""Constrained answers, tool calls, several choices and logprobs under kill -9 of the ring and the front door.

Each round asks for one answer of each kind side by side, some as streams, kills one process in their middle,
and compares what clients received with the answers of a calm service. The script's answers break their
grammars, so every constrained text is the grammar's work.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import psutil
import pytest

from config import Settings, load_settings
from distributed.prepare import prepare
from spool import Spool
from spool.names import id_of
from tests.services.api_process import api_on
from tests.services.ring_service import RingService
from tests.services.waiting import until

pytestmark = pytest.mark.long

NUM_ROUNDS = 50
NUM_AT_WORK = 5  # requests in their middle at a kill
PATIENCE_S = 60.0
PAUSE_US = 20_000
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "kind": {"enum": ["sea", "river"]},
        "sizes": {"type": "array", "items": {"type": "integer", "maximum": 99}, "minItems": 2, "maxItems": 3},
    },
    "required": ["city", "kind", "sizes"],
    "additionalProperties": False,
}
REGEX = "[A-Z]{2}[0-9]{4}(-[a-z]{8}){3}"
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 30}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": True}}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city":"%s","unit":"C"}}\n</tool_call>'
SAYS = {
    "SAY-JSON": '{"city":"Zürich 🙂","kind":"sea","sizes":[1,22]} and more',
    "SAY-FREE": "The grammar forbids this text.",
    "SAY-CALLS": f"{CALL % 'Zürich'}\n{CALL % 'Oslo'}",
    "SAY-BOTH": f"I look. {CALL % 'Bergen, by the sea'}",
    "SAY-LITTLE": '{"p77":1}',
}
NUM_GRAMMARS = 2000
NUM_WARM = 400  # grammars before the first measurement
MAX_GROWTH_MIB = 24.0

Body = dict[str, Any]


def says(kind: str) -> Body:
    return {"messages": [{"role": "user", "content": kind}], "max_tokens": 120}


def formed(schema: Mapping[str, Any]) -> Body:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


QUESTIONS: dict[str, Body] = {
    "schema": says("SAY-JSON") | formed(SCHEMA),
    "schema against the script": says("SAY-FREE") | formed(SCHEMA),
    "regex": says("SAY-FREE") | {"structured_outputs": {"regex": REGEX}},
    "tools": says("SAY-CALLS") | {"tools": TOOLS, "tool_choice": "required"},
    "text and a tool": says("SAY-BOTH") | {"tools": TOOLS},
    "choices": says("SAY-JSON") | formed(SCHEMA) | {"n": 3, "temperature": 0.7, "seed": 7},
    "logprobs": says("SAY-JSON") | formed(SCHEMA) | {"n": 2, "logprobs": True, "top_logprobs": 2},
}


@dataclass
class Told:
    """What a client received of one connection, by choice; a stream's pieces joined."""

    choices: dict[int, dict[str, Any]] = field(default_factory=dict)
    is_whole: bool = False

    def take(self, choice: Mapping[str, Any], part: Mapping[str, Any]) -> None:
        mine = self.choices.setdefault(
            choice["index"], {"content": "", "calls": [], "logprobs": [], "finish_reason": None}
        )
        assert mine["finish_reason"] is None, "a choice went on after its end"
        mine["content"] += part.get("content") or ""
        for place, call in enumerate(part.get("tool_calls") or ()):
            if "id" in call:
                assert call.get("index", place) == len(mine["calls"]), "a call came twice"
                mine["calls"].append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
            mine["calls"][call.get("index", place)]["arguments"] += call["function"]["arguments"]
        mine["logprobs"] += (choice["logprobs"] or {"content": []})["content"]
        mine["finish_reason"] = choice["finish_reason"]


@dataclass
class Client:
    """Asks one question until it has the whole answer, always under the same key."""

    http: httpx2.Client
    body: Body
    key: str
    connections: list[Told] = field(default_factory=list)

    def ask(self) -> Told:
        deadline, pause = time.monotonic() + PATIENCE_S, threading.Event()
        while True:
            told = Told()
            self.connections.append(told)
            try:
                self._connect(told)
            except httpx2.TransportError:
                assert time.monotonic() < deadline, "no answer in time"
                pause.wait(0.1)
            if told.is_whole:
                return told

    def _connect(self, told: Told) -> None:
        path, headers = "/v1/chat/completions", {"Idempotency-Key": self.key}
        with self.http.stream("POST", path, json=self.body, headers=headers) as response:
            if not self.body.get("stream"):
                answer = json.loads(response.read())
                assert response.status_code == 200, answer
                for choice in answer["choices"]:
                    told.take(choice, choice["message"])
                told.is_whole = True
                return
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    told.is_whole = True
                elif line.startswith("data: "):
                    chunk = json.loads(line[6:])
                    assert "error" not in chunk, chunk
                    for choice in chunk["choices"]:
                        told.take(choice, choice["delta"])


@dataclass
class Place:
    """A ring and a front door, each of which a test may kill and start again."""

    settings: Settings
    ring: RingService
    listening: socket.socket
    spool: Spool
    http: httpx2.Client
    doors: ExitStack = field(default_factory=ExitStack)
    door: subprocess.Popen[bytes] | None = None

    def open_door(self) -> subprocess.Popen[bytes]:
        """Kill the front door, and start the next one."""
        if self.door is not None:
            self.door.kill()
        self.doors.close()
        self.door, _ = self.doors.enter_context(api_on(self.listening, self.settings))
        return self.door

    def kill_ring(self) -> None:
        """Kill rank 0, the whole ring with it, and start the next one."""
        self.ring.ranks[0].kill()
        self.ring.kill()
        self.ring.start()

    def num_logged(self) -> list[int]:
        """Tokens of each running request."""
        ids = map(id_of, self.spool.names(self.spool.folder.active))
        return [len(self.spool.open_log(id).read_new()) for id in ids]

    def is_at_work(self, num_requests: int, num_tokens: int) -> bool:
        """Whether so many requests have so many tokens."""
        return sum(logged >= num_tokens for logged in self.num_logged()) >= num_requests


@contextmanager
def running(folder: Path, model_repo: str, num_ranks: int, **overrides: str) -> Iterator[Place]:
    values = {
        "MODEL_REPO": model_repo,
        "STATE_DIR": str(folder / "state"),
        "SPOOL_DURABILITY": "process",
        "DISCONNECT_GRACE_SECONDS": "120",
        **overrides,
    }
    settings = load_settings(values, root=folder, environ={})
    model = prepare(settings)
    with (
        RingService(folder / "state", model, num_ranks, **values) as ring,
        socket.create_server(("127.0.0.1", 0), backlog=128) as listening,
        httpx2.Client(
            base_url=f"http://127.0.0.1:{listening.getsockname()[1]}",
            timeout=PATIENCE_S,
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # reading the machine's certificates takes long
            limits=httpx2.Limits(max_keepalive_connections=0),
        ) as http,
    ):
        place = Place(settings, ring, listening, ring.spool(), http)
        try:
            place.open_door()
            yield place
        finally:
            place.doors.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Two ranks that follow the script."""
    folder = tmp_path_factory.mktemp("killed")
    script = folder / "script.json"
    rules = [{"when": when, "say": say, "pause_us": PAUSE_US} for when, say in SAYS.items()]
    rules[-1] |= {"pause_us": 0}
    script.write_text(json.dumps(rules))
    with running(folder, f"scripted:{script}", 2) as made:
        yield made


def make_clients(place: Place, label: str, is_stream: bool) -> dict[str, Client]:
    """One client a kind; streams and whole answers alternate."""
    return {
        kind: Client(place.http, {**body, "stream": (number % 2 == 0) == is_stream}, f"{label}-{number}")
        for number, (kind, body) in enumerate(QUESTIONS.items())
    }


def without_ids(told: Told) -> dict[int, Any]:
    """The answer but for the ids of its calls, which name its request."""
    return {
        index: {**choice, "calls": [{**call, "id": ""} for call in choice["calls"]]}
        for index, choice in told.choices.items()
    }


def check_form(kind: str, told: Told) -> None:
    """Every choice is there, valid, and has its logprobs."""
    assert sorted(told.choices) == list(range(QUESTIONS[kind].get("n", 1)))
    for choice in told.choices.values():
        content, calls = choice["content"], choice["calls"]
        assert choice["finish_reason"] == ("tool_calls" if "tool" in kind else "stop"), (kind, choice)
        if kind == "regex":
            assert re.fullmatch(REGEX, content)
        elif "tool" in kind:
            assert {call["name"] for call in calls} == {"weather"}
            assert len({call["id"] for call in calls}) == len(calls)
            for call in calls:
                jsonschema.validate(json.loads(call["arguments"]), WEATHER)
        else:
            jsonschema.validate(json.loads(content), SCHEMA)
        if kind == "logprobs":
            assert b"".join(bytes(token["bytes"]) for token in choice["logprobs"]).decode() == content


def check_beginnings(connections: list[Told]) -> None:
    """What lost connections showed is the beginning of the answer: texts, calls and their ids."""
    whole = connections[-1].choices
    for told in connections[:-1]:
        for index, choice in told.choices.items():
            assert whole[index]["content"].startswith(choice["content"])
            for call, final in zip(choice["calls"], whole[index]["calls"], strict=False):
                assert (call["id"], call["name"]) == (final["id"], final["name"])
                assert final["arguments"].startswith(call["arguments"])
            shown = choice["logprobs"]
            assert whole[index]["logprobs"][: len(shown)] == shown


def test_answers_of_all_kinds_survive_kills(place: Place) -> None:
    """Rows 2 to 4: 50 kills, at each one an answer of each kind at work; every answer is as without it."""
    with ThreadPoolExecutor(len(QUESTIONS)) as threads:
        calm = {kind: client.ask() for kind, client in make_clients(place, "calm", False).items()}
        for kind, told in calm.items():
            check_form(kind, told)
        num_doors = 0
        for number in range(NUM_ROUNDS):
            clients = make_clients(place, str(number), number % 2 == 0)
            asking = {kind: threads.submit(client.ask) for kind, client in clients.items()}
            until(partial(place.is_at_work, NUM_AT_WORK, 1 + number % 8))
            if number % 4 // 2:
                place.open_door()
                num_doors += 1
            else:
                place.kill_ring()
            for kind, asked in asking.items():
                told = asked.result()
                check_form(kind, told)
                assert without_ids(told) == without_ids(calm[kind]), kind
                check_beginnings(clients[kind].connections)
                # A stream outlives the ring; only its front door's death costs the connection.
                assert len(clients[kind].connections) == 1 or number % 4 // 2
    assert 0 < num_doors < NUM_ROUNDS
    spool = place.spool
    num_requests = sum(body.get("n", 1) for body in QUESTIONS.values())
    assert len(spool.names(spool.folder.done)) == (NUM_ROUNDS + 1) * num_requests
    assert spool.depth().num_waiting + spool.depth().num_active == 0


def ask_slowly(place: Place, number: int) -> tuple[Client, Body]:
    """A client of a grammar whose compile takes long, and its schema."""
    names = [f"p{n}" for n in range(300)] + [f"own{number}"]
    properties: Body = {name: {"type": "integer", "maximum": 9} for name in names}
    properties["long"] = {"enum": [f"v{n}" for n in range(60_000)]}
    schema = {"type": "object", "properties": properties}
    body = says("SAY-LITTLE") | formed({**schema, "additionalProperties": False})
    return Client(place.http, {**body, "stream": number % 2 == 0}, f"slow-{number}"), schema


def test_a_compile_survives_kills(place: Place) -> None:
    """Rank 0 dies four times while it compiles, and the front door while it checks: one valid answer."""
    spool = place.spool
    num_before = len(spool.names(spool.folder.done))
    with ThreadPoolExecutor(1) as threads:
        for number in range(2):
            client, schema = ask_slowly(place, number)
            asked = threads.submit(client.ask)
            for _ in range(4):
                until(lambda: bool(place.num_logged()), 60.0)  # the supervisor pauses before a restart
                assert place.num_logged() == [0]
                place.kill_ring()
            jsonschema.validate(json.loads(asked.result().choices[0]["content"]), schema)
            assert len(client.connections) == 1
        for number in range(2, 6):
            client, schema = ask_slowly(place, number)
            asked = threads.submit(client.ask)
            threading.Event().wait(0.1 * number)  # the check of a grammar leaves no trace to wait for
            place.open_door()
            jsonschema.validate(json.loads(asked.result().choices[0]["content"]), schema)
    assert len(spool.names(spool.folder.done)) == num_before + 6
    assert spool.depth().num_waiting + spool.depth().num_active == 0


def measure(process: psutil.Process) -> tuple[float, int]:
    """Resident MiB and threads."""
    return process.memory_info().rss / 2**20, process.num_threads()


def ask_with_own_grammar(place: Place, number: int) -> None:
    """Ask for an answer by a grammar that no other request has."""
    own = f"p{number}"
    schema = {"type": "object", "properties": {own: {"enum": [number]}}, "required": [own]}
    tool = {"type": "function", "function": {"name": own, "parameters": schema, "strict": True}}
    forms: list[Body] = [
        formed({**schema, "additionalProperties": False}),
        {"structured_outputs": {"regex": f"{own}[a-c]{{2}}"}},
        {"tools": [tool], "tool_choice": "required"},
    ]
    body = {**says("SAY-LITTLE"), "max_tokens": 6, **forms[number % 3]}
    assert Client(place.http, body, f"own-{number}").ask().is_whole


def test_thousands_of_grammars_do_not_add_up(place: Place) -> None:
    """Memory and threads of the front door and of rank 0 stay, whatever number of grammars they have seen."""
    door = place.open_door()
    processes = [psutil.Process(process.pid) for process in (door, place.ring.ranks[0])]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: ask_with_own_grammar(place, number), range(NUM_WARM)))
        before = [measure(process) for process in processes]
        list(threads.map(lambda number: ask_with_own_grammar(place, number), range(NUM_WARM, NUM_GRAMMARS)))
    after = [measure(process) for process in processes]
    for (mib_before, threads_before), (mib, num_threads) in zip(before, after, strict=True):
        assert mib < mib_before + MAX_GROWTH_MIB
        assert num_threads <= threads_before + 1

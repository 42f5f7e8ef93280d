"""/v1/batches before the fake engine: answers as the routes give them, states, counts, errors, and what a
second front door finds.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from frontdoor.batches import runner, running
from spool import FileSystem, Spool
from spool.batches import Batch, BatchStore, line_request_id
from spool.names import id_of
from tests.fakes.fake_engine import FakeEngine
from tests.services.frontdoor_service import Service, make_client, make_settings, running_service, serving

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
LIMIT_S = 20.0
KEYS = "mine\ntheirs\n"
SETTINGS = {"MAX_SEQUENCE_LENGTH": "2048"}
MINE, THEIRS = {"Authorization": "Bearer mine"}, {"Authorization": "Bearer theirs"}


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often: a test has no time."""
    for module, name in ((runner, "IDLE_SECONDS"), (runner, "SOON_SECONDS"), (running, "SAVE_SECONDS")):
        monkeypatch.setattr(module, name, 0.02)


def until(condition: Callable[[], Any]) -> Any:
    deadline, pause = time.monotonic() + LIMIT_S, threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came to be"
        pause.wait(0.01)
    return found


def line(custom_id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    asked = {"messages": MESSAGES} if url == CHAT else {"prompt": "hi"}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {**asked, "max_tokens": 4, **body}}


def upload(service: Service, lines: list[Any], headers: dict[str, str] = MINE) -> str:
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    answer = service.http.post(
        "/v1/files", files={"file": ("in.jsonl", text.encode())}, data={"purpose": "batch"}, headers=headers
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def begin(service: Service, lines: list[Any], url: str = CHAT, **more: Any) -> str:
    body = {"input_file_id": upload(service, lines), "endpoint": url, "completion_window": "24h", **more}
    answer = service.http.post("/v1/batches", json=body, headers=MINE)
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "validating"
    return str(answer.json()["id"])


def get(service: Service, batch_id: str) -> dict[str, Any]:
    found: dict[str, Any] = service.http.get(f"/v1/batches/{batch_id}", headers=MINE).json()
    return found


def ended(service: Service, batch_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        batch = get(service, batch_id)
        return batch if batch["status"] in ("failed", "completed", "expired", "cancelled") else None

    found: dict[str, Any] = until(look)
    return found


def outputs(service: Service, batch: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All lines of both files, by custom_id; none is twice."""
    lines = []
    for id in (batch["output_file_id"], batch["error_file_id"]):
        if id is not None:
            text = service.http.get(f"/v1/files/{id}/content", headers=MINE).text
            lines += [json.loads(each) for each in text.splitlines()]
    found = {each["custom_id"]: each for each in lines}
    assert len(found) == len(lines)
    return found


@pytest.fixture
def service(shared_service: Service) -> Service:
    store = BatchStore(shared_service.spool)
    shared_service.engine.open_up(64)
    shared_service.engine.release()
    until(lambda: all(view.state.has_ended for view in store.list_all()))
    return shared_service.start_over()


def test_the_openai_client_runs_a_batch(service: Service) -> None:
    """Every field is there, and the output has the answer of the route."""
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="mine", max_retries=0) as client:
        text = "\n".join(json.dumps(line(f"r{number}")) for number in range(3)) + "\n\n"
        file = client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
        made = client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"for": "a test"},
        )
        assert (made.object, made.status, made.endpoint, made.input_file_id) == (
            "batch",
            "validating",
            CHAT,
            file.id,
        )
        assert made.metadata == {"for": "a test"}
        assert made.expires_at == made.created_at + 86_400
        assert made.request_counts is not None
        assert made.request_counts.to_dict() == {"total": 0, "completed": 0, "failed": 0}
        batch = until(lambda: (now := client.batches.retrieve(made.id)).status == "completed" and now)
        assert batch.request_counts.to_dict() == {"total": 3, "completed": 3, "failed": 0}
        assert batch.error_file_id is None
        assert made.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
        assert client.batches.list(limit=1).data[0].id == batch.id
        lines = [json.loads(each) for each in client.files.content(batch.output_file_id).text.splitlines()]
        assert [each["custom_id"] for each in lines] == ["r0", "r1", "r2"]
        (first, _, _) = lines
        assert first["error"] is None
        assert first["id"] == f"batch_req_{first['response']['request_id']}"
        assert first["response"]["status_code"] == 200
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=4)  # type: ignore[arg-type]
        told, asked = first["response"]["body"], answer.to_dict()
        assert told["id"] == f"chatcmpl-{first['response']['request_id']}"
        assert {**told, "id": "", "created": 0} == {**asked, "id": "", "created": 0}
        assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"


def test_answers_are_those_of_the_routes(service: Service) -> None:
    """With several choices, logprobs, tools and schemas; and the requests have the lowest priority."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    service.engine.texts["[call]"] = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    service.engine.texts["[json]"] = '{"a": 1}'
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    lines = [
        line("choices", n=3),
        line("logprobs", logprobs=True, top_logprobs=2),
        line("tool", messages=[{"role": "user", "content": "[call]"}], tools=[tool], max_tokens=60),
        line(
            "schema", messages=[{"role": "user", "content": "[json]"}], response_format=schema, max_tokens=60
        ),
    ]
    found = outputs(service, ended(service, begin(service, lines)))
    assert {request.priority for request in service.engine.claimed} == {9}
    bodies = {name: each["response"]["body"]["choices"] for name, each in found.items()}
    assert [choice["index"] for choice in bodies["choices"]] == [0, 1, 2]
    assert len(bodies["logprobs"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2
    assert bodies["tool"][0]["finish_reason"] == "tool_calls"
    assert bodies["tool"][0]["message"]["tool_calls"][0]["function"]["name"] == "f"
    assert bodies["schema"][0]["message"]["content"] == '{"a": 1}'


def test_completions_and_generate_are_endpoints_too(service: Service) -> None:
    batch = ended(
        service, begin(service, [line("a", COMPLETIONS, prompt=["x", "y"], echo=True)], COMPLETIONS)
    )
    body = outputs(service, batch)["a"]["response"]["body"]
    assert body["object"] == "text_completion"
    assert [choice["text"][0] for choice in body["choices"]] == ["x", "y"]
    lines = [
        line("a", "/generate", raw=True),
        line("b", "/generate", priority=0, n=2),
        line("c", "/generate", background=True),
    ]
    found = outputs(service, ended(service, begin(service, lines, "/generate")))
    assert found["a"]["response"]["body"]["text"] == "Grüße, wörld! 🎉 "
    assert len(found["b"]["response"]["body"]["choices"]) == 2
    assert found["c"]["response"]["body"]["error"]["param"] == "background"


def test_responses_and_messages_are_endpoints_too(service: Service) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    lines = [
        json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": {"model": "tiny", **body}})
        for url, body in (("/v1/responses", {"input": "hi"}), ("/v1/messages", {"max_tokens": 99, **chat}))
    ]
    answers = [
        outputs(service, ended(service, begin(service, [text], url)))["a"]["response"]["body"]
        for text, url in zip(lines, ("/v1/responses", "/v1/messages"), strict=True)
    ]
    assert [answer["status"] if "status" in answer else answer["stop_reason"] for answer in answers] == [
        "completed", "end_turn",
    ]  # fmt: skip
    texts = answers[0]["output"][0]["content"][0]["text"], answers[1]["content"][0]["text"]
    assert all(text.startswith("Grüße, wörld! 🎉 ") for text in texts)


def test_a_line_that_fails_is_in_the_error_file_and_the_others_go_on(service: Service) -> None:
    """With the status and the error that its route would answer."""
    lines = [
        line("good"),
        line("field", temperature=99),
        line("unknown", unheard_of=1),
        line("long", messages=[{"role": "user", "content": "x" * 3000}]),
        line("options", stream_options={"include_usage": True}),
        line("poison", messages=[{"role": "user", "content": "[fail]"}], n=2),
    ]
    batch = ended(service, begin(service, lines))
    assert batch["request_counts"] == {"total": 6, "completed": 1, "failed": 5}
    found = outputs(service, batch)
    failed = {name: each["response"] for name, each in found.items() if name != "good"}
    assert {name: each["status_code"] for name, each in failed.items()} == {
        "field": 400, "unknown": 400, "long": 400, "options": 400, "poison": 500,
    }  # fmt: skip
    errors = {name: each["body"]["error"] for name, each in failed.items()}
    assert errors["field"]["param"] == "temperature"
    assert errors["long"]["code"] == "context_length_exceeded"
    assert errors["poison"]["code"] == "poison"
    text = service.http.get(f"/v1/files/{batch['error_file_id']}/content", headers=MINE).text
    assert [json.loads(each)["custom_id"] for each in text.splitlines()] == list(failed)


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [
        ([], "empty_file", None),
        ([line("a"), "no json"], "invalid_json_line", 2),
        ([line("a"), "", line("a")], "duplicate_custom_id", 3),
        ([line("a", COMPLETIONS)], "invalid_url", 1),
        ([line("a", stream=True)], "invalid_stream", 1),
        ([line("a", model="gpt-5")], "model_not_found", 1),
        ([{**line("a"), "method": "GET"}], "invalid_method", 1),
        ([{"custom_id": "a"}], "missing_required_parameter", 1),
    ],
)
def test_a_wrong_line_fails_the_batch_and_nothing_runs(
    service: Service, lines: list[Any], code: str, number: int | None
) -> None:
    """The errors name the line, the member and the reason."""
    batch = ended(service, begin(service, lines))
    assert batch["status"] == "failed"
    assert batch["failed_at"] is not None
    (error,) = batch["errors"]["data"]
    assert batch["errors"]["object"] == "list"
    assert error.keys() == {"code", "line", "message", "param"}
    assert (error["code"], error["line"]) == (code, number)
    assert service.engine.claimed == []


def test_the_errors_of_a_batch_are_limited(service: Service) -> None:
    batch = ended(service, begin(service, ["no json"] * 500))
    assert [error["line"] for error in batch["errors"]["data"]] == list(range(1, 101))


@pytest.mark.parametrize(
    ("fields", "param", "status"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint", 400),
        ({"completion_window": "1 day"}, "completion_window", 400),
        ({"completion_window": "9000h"}, "completion_window", 400),
        ({"input_file_id": f"file-{'0' * 32}"}, "input_file_id", 404),
        ({"input_file_id": "../lock"}, "input_file_id", 404),
        ({"unheard_of": 1}, "unheard_of", 400),
        ({"metadata": {"a": 1}}, "metadata.a", 400),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata", 400),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
            "output_expires_after.seconds",
            400,
        ),
    ],
)
def test_a_wrong_field_is_named(service: Service, fields: dict[str, Any], param: str, status: int) -> None:
    body = {"input_file_id": upload(service, [line("a")]), "endpoint": CHAT, "completion_window": "24h"}
    answer = service.http.post("/v1/batches", json={**body, **fields}, headers=MINE)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


def test_another_key_finds_nothing(service: Service) -> None:
    """Neither the batch nor its input, outputs and requests."""
    batch = ended(service, begin(service, [line("a")]))
    path = f"/v1/batches/{batch['id']}"
    for method, where in (
        ("GET", path),
        ("POST", f"{path}/cancel"),
        ("GET", f"/v1/files/{batch['output_file_id']}"),
    ):
        assert service.http.request(method, where, headers=THEIRS).status_code == 404
    assert service.http.get("/v1/batches", headers=THEIRS).json()["data"] == []
    body = {"input_file_id": batch["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
    assert service.http.post("/v1/batches", json=body, headers=THEIRS).status_code == 404
    request_id = outputs(service, batch)["a"]["response"]["request_id"]
    assert service.http.get(f"/requests/{request_id}", headers=THEIRS).status_code == 404
    assert service.http.get(f"/requests/{request_id}", headers=MINE).status_code == 200
    for odd in ("..%2flock", "lock", "batch_", f"batch_{'0' * 32}"):
        assert service.http.get(f"/v1/batches/{odd}", headers=MINE).status_code == 404


def test_a_retry_under_its_key_finds_the_first_batch(service: Service) -> None:
    body = {"input_file_id": upload(service, [line("a")]), "endpoint": CHAT, "completion_window": "24h"}
    headers = {**MINE, "Idempotency-Key": "once"}
    first = service.http.post("/v1/batches", json=body, headers=headers).json()
    assert service.http.post("/v1/batches", json=body, headers=headers).json()["id"] == first["id"]
    other = service.http.post("/v1/batches", json={**body, "completion_window": "1h"}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    ended(service, first["id"])


def test_a_batch_goes_on_without_its_file(service: Service) -> None:
    service.engine.open_up(0)
    batch_id = begin(service, [line("a")])
    file_id = get(service, batch_id)["input_file_id"]
    assert service.http.delete(f"/v1/files/{file_id}", headers=MINE).json()["deleted"]
    service.engine.open_up(64)
    assert ended(service, batch_id)["request_counts"]["completed"] == 1


def test_a_cancel_keeps_what_is_answered_and_runs_nothing_more(service: Service) -> None:
    """Lines that run are cancelled; those that were not submitted never run."""
    hold = [{"role": "user", "content": "[hold]"}]
    service.engine.open_up(2)
    lines = [line("done"), *(line(f"held{number}", messages=hold) for number in range(2))]
    lines += [line(f"later{number}") for number in range(300)]
    batch_id = begin(service, lines)
    until(
        lambda: (
            get(service, batch_id)["request_counts"]["completed"] == 1 and len(service.engine.claimed) == 3
        )
    )
    answer = service.http.post(f"/v1/batches/{batch_id}/cancel", headers=MINE).json()
    assert answer["status"] == "cancelling"
    assert answer["cancelling_at"] is not None
    batch = ended(service, batch_id)
    assert batch["status"] == "cancelled"
    assert batch["cancelled_at"] is not None
    assert batch["request_counts"] == {"total": 303, "completed": 1, "failed": 302}
    found = outputs(service, batch)
    assert found["done"]["response"]["status_code"] == 200
    assert found["held0"]["response"] is None
    assert found["held0"]["error"]["code"] == found["later299"]["error"]["code"] == "batch_cancelled"
    assert len(service.engine.claimed) < 303
    again = service.http.post(f"/v1/batches/{batch_id}/cancel", headers=MINE)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "batch_ended")


def test_what_has_no_answer_when_the_window_ends_expires(service: Service) -> None:
    """A line that waits in the queue is cancelled; one that is answered stays answered."""
    service.engine.open_up(1)
    store, now = BatchStore(service.spool), time.time()
    hold = [{"role": "user", "content": "[hold]"}]
    file = store.files.find(upload(service, [line("a"), line("b", messages=hold), line("c")]))
    assert file is not None
    store.create(Batch(f"batch_{'e' * 32}", CHAT, file.id, "1h", now - 3599.5, now + 0.5, file.owner))
    batch = ended(service, f"batch_{'e' * 32}")
    assert batch["status"] == "expired"
    assert batch["expired_at"] is not None
    assert batch["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
    found = outputs(service, batch)
    assert found["a"]["error"] is None
    assert [found[name]["error"]["code"] for name in "bc"] == ["batch_expired"] * 2


def test_interactive_requests_pass_a_batch(service: Service) -> None:
    """Only a window of lines waits, and each behind every other request."""
    service.engine.open_up(0)
    batch_id = begin(service, [line(f"r{number}") for number in range(300)])
    until(lambda: service.spool.depth().num_waiting == 64)  # twice the rows of one microbatch
    posted = service.http.post("/generate", json={"prompt": "hi", "background": True}, headers=MINE)
    assert posted.json()["position"] == 0
    service.engine.open_up(1)
    batch = ended(service, batch_id)
    assert batch["request_counts"]["completed"] == 300
    assert service.engine.claimed[0].id == posted.json()["id"]
    assert len(service.engine.claimed) == 301


def test_several_batches_share_the_window(service: Service) -> None:
    service.engine.open_up(0)
    first = begin(service, [line(f"r{number}") for number in range(300)])
    until(lambda: service.spool.depth().num_waiting == 64)
    second = begin(service, [line("only")])
    until(lambda: get(service, second)["status"] == "in_progress")
    service.engine.open_up(4)
    ended(service, second)
    assert get(service, first)["request_counts"]["completed"] < 300
    ended(service, first)


def test_metrics_count_batches_and_lines(service: Service) -> None:
    service.engine.open_up(0)
    batch_id = begin(service, [line("a"), line("b")])
    until(lambda: get(service, batch_id)["status"] == "in_progress")
    text = service.http.get("/metrics", headers=MINE).text
    assert 'ring_batches{status="in_progress"} 1.0' in text
    assert 'ring_batch_lines{state="open"} 2.0' in text
    service.engine.open_up(64)
    ended(service, batch_id)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Service]:
    """A service of the test's own, with a short queue."""
    with running_service(tmp_path, {"MAX_QUEUE_DEPTH": "6"}) as made:
        yield made


def test_a_full_queue_pauses_a_batch(alone: Service) -> None:
    """No line fails; half of the queue stays for other clients."""
    alone.engine.open_up(0)
    batch_id = begin(alone, [line(f"r{number}") for number in range(20)])
    until(lambda: alone.spool.depth().num_waiting == 3)
    for _ in range(3):
        assert alone.http.post("/generate", json={"prompt": "hi", "background": True}).status_code == 202
    assert alone.http.post("/generate", json={"prompt": "hi", "background": True}).status_code == 429
    alone.engine.open_up(1)
    assert ended(alone, batch_id)["request_counts"] == {"total": 20, "completed": 20, "failed": 0}


def test_too_many_lines_fail_the_batch(tmp_path: Path) -> None:
    with running_service(tmp_path, {"MAX_BATCH_LINES": "3"}) as service:
        batch = ended(service, begin(service, [line(str(number)) for number in range(4)]))
        (error,) = batch["errors"]["data"]
        assert (error["code"], error["line"]) == ("too_many_lines", None)


def test_a_ring_that_was_given_up_pauses_a_batch(alone: Service) -> None:
    status = alone.settings.run_dir / "supervisor.json"
    status.write_text(json.dumps({"state": "failed", "reason": "broken"}))
    batch_id = begin(alone, [line("a")])
    until(lambda: get(alone, batch_id)["status"] == "in_progress")
    assert alone.spool.depth().num_waiting == 0
    status.unlink()
    assert ended(alone, batch_id)["request_counts"]["completed"] == 1


def test_a_full_disk_pauses_a_batch(alone: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a submit, and when what has ended cannot be journaled: no line fails, and none is there twice."""
    real_append, real_statvfs = FileSystem.append, os.statvfs
    is_full = threading.Event()

    def append(fs: FileSystem, fd: int, data: bytes) -> int:
        if is_full.is_set() and b'"batch_req_' in data:
            real_append(fs, fd, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "full")
        return real_append(fs, fd, data)

    def statvfs(path: Any) -> os.statvfs_result:
        values = list(real_statvfs(path))
        values[4] = 0 if is_full.is_set() else values[4]
        return os.statvfs_result(values)

    monkeypatch.setattr(FileSystem, "append", append)
    monkeypatch.setattr("spool.fsio.os.statvfs", statvfs)
    alone.engine.open_up(0)
    batch_id = begin(alone, [line(f"r{number}") for number in range(30)])
    until(lambda: alone.spool.depth().num_waiting == 3)
    is_full.set()
    alone.engine.open_up(8)
    until(lambda: len(alone.spool.names(alone.spool.folder.done)) == 3)
    assert get(alone, batch_id)["request_counts"]["completed"] == 0
    is_full.clear()
    batch = ended(alone, batch_id)
    assert batch["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
    assert len(outputs(alone, batch)) == len(alone.engine.claimed) == 30


def test_a_result_that_is_gone_is_computed_again(alone: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody deleted the waiting request: it is submitted again, and there is one line of output."""
    monkeypatch.setattr(running, "LOST_SECONDS", 0.05)
    alone.engine.open_up(0)
    batch_id = begin(alone, [line("a")])
    until(lambda: alone.spool.depth().num_waiting == 1)
    (name,) = alone.spool.names(alone.spool.folder.incoming)
    (alone.spool.folder.incoming / name).unlink()
    until(lambda: alone.spool.depth().num_waiting == 1)
    (again,) = alone.spool.names(alone.spool.folder.incoming)
    assert id_of(again) == id_of(name) == line_request_id(batch_id, 1)
    alone.engine.open_up(64)
    assert len(outputs(alone, ended(alone, batch_id))) == 1


def test_another_front_door_goes_on(tmp_path: Path) -> None:
    """With what is in the folders and the spool alone; no line runs twice."""
    settings = make_settings(tmp_path)
    spool = Spool.open(settings.spool_dir, durability="process")
    with FakeEngine(spool, settings.run_dir, max_open=1) as engine:
        with serving(settings) as url, make_client(url) as http:
            service = Service(url, settings, spool, engine, http)
            lines = [line(f"r{number}", n=1 + number % 3) for number in range(40)]
            lines[5]["body"]["messages"] = [{"role": "user", "content": "[hold]"}]
            batch_id = begin(service, lines)
            until(lambda: get(service, batch_id)["request_counts"]["completed"] >= 3)
        engine.release()
        until(lambda: spool.depth().num_waiting + spool.depth().num_active == 0)
        engine.open_up(64)
        with serving(settings) as url, serving(settings) as second, make_client(url) as http:
            service = Service(second, settings, spool, engine, http)
            batch = ended(service, batch_id)
            assert batch["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
            found = outputs(service, batch)
        assert {name: len(each["response"]["body"]["choices"]) for name, each in found.items()} == {
            f"r{number}": 1 + number % 3 for number in range(40)
        }
        ids = [request.id for request in engine.claimed]
        assert len(ids) == len(set(ids)) == sum(1 + number % 3 for number in range(40))


def test_batches_that_have_not_ended_are_limited(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a 429, for each key."""
    monkeypatch.setattr("frontdoor.routes.batches.MAX_UNFINISHED", 1)
    service.engine.open_up(0)
    first = begin(service, [line("a")])
    body = {"endpoint": CHAT, "completion_window": "24h"}
    for headers, status in ((MINE, 429), (THEIRS, 200)):
        file_id = upload(service, [line("a")], headers)
        answer = service.http.post("/v1/batches", json={**body, "input_file_id": file_id}, headers=headers)
        assert answer.status_code == status
    service.engine.open_up(64)
    ended(service, first)


def test_another_front_door_ends_a_cancelled_batch(tmp_path: Path) -> None:
    """What had an answer by then keeps it, also one that the first front door never saw."""
    settings = make_settings(tmp_path)
    spool = Spool.open(settings.spool_dir, durability="process")
    lines = [line("a"), line("b", messages=[{"role": "user", "content": "[hold]"}]), line("c")]
    lines += [line(f"r{number}") for number in range(200)]
    with FakeEngine(spool, settings.run_dir, max_open=0) as engine:
        with serving(settings) as url, make_client(url) as http:
            batch_id = begin(Service(url, settings, spool, engine, http), lines)
            until(lambda: spool.depth().num_waiting == 64)
        engine.open_up(1)
        until(lambda: len(engine.claimed) == 2)
        assert spool.state(line_request_id(batch_id, 1)) == "done"
        BatchStore(spool).cancel(batch_id)
        with serving(settings) as url, make_client(url) as http:
            service = Service(url, settings, spool, engine, http)
            batch = ended(service, batch_id)
            found = outputs(service, batch)
        assert batch["status"] == "cancelled"
        assert found["a"]["response"]["status_code"] == 200
        assert {found[name]["error"]["code"] for name in ("b", "c", "r199")} == {"batch_cancelled"}
        assert batch["request_counts"] == {"total": 203, "completed": 1, "failed": 202}
        assert len(engine.claimed) == 2
        assert spool.depth().num_waiting + spool.depth().num_active == 0


def test_a_cancel_does_not_wait_for_a_ring_that_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requests that wait keep their markers, so that they never run."""
    monkeypatch.setattr(running, "CLOSING_SECONDS", 0.2)
    settings = make_settings(tmp_path)
    spool = Spool.open(settings.spool_dir, durability="process")
    nothing: Any = None
    with serving(settings) as url, make_client(url) as http:
        service = Service(url, settings, spool, nothing, http)
        batch_id = begin(service, [line("a"), line("b", n=2)])
        until(lambda: spool.depth().num_waiting == 3)
        service.http.post(f"/v1/batches/{batch_id}/cancel", headers=MINE)
        assert ended(service, batch_id)["request_counts"] == {"total": 2, "completed": 0, "failed": 2}
    with FakeEngine(spool, settings.run_dir):
        until(lambda: spool.depth().num_waiting + spool.depth().num_active == 0)
    results = [spool.read_result(line_request_id(batch_id, number)) for number in (1, 2)]
    assert [result and result.finish_reason for result in results] == ["cancelled"] * 2

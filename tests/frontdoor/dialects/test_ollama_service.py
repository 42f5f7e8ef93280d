"""Ollama's API beside chats and prompts: the model, refusals, errors, silence, clients that leave."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from frontdoor.dialects import ollama_models
from frontdoor.routes.ollama import REFUSED
from tests.frontdoor.dialects.test_ollama import ASKED, BOTH, post, refused, stream, text_of
from tests.frontdoor.raw_http import read_to_end
from tests.services.frontdoor_service import (
    Service,
    make_model_folder,
    post_by_hand,
    running_service,
    until,
)


def test_the_model_is_listed_and_described(tmp_path: Path) -> None:
    """From its files; under each of its names; with the served context and what a chat may ask for."""
    folder = make_model_folder(tmp_path / "packed")
    config = {"model_type": "qwen3", "hidden_size": 64, "quantization": {"bits": 4, "group_size": 64}}
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    (folder / "model.safetensors").write_bytes(b"x" * 4500)
    ours = {"MODEL_REPO": str(folder), "MODEL_ALIASES": "other", "MAX_SEQUENCE_LENGTH": "512"}
    with running_service(tmp_path, ours) as service:
        listed = service.http.get("/api/tags").json()["models"]
        assert [model["name"] for model in listed] == ["packed", "other"]
        details = {"family": "qwen3", "families": ["qwen3"], "quantization_level": "int4"}
        details |= {"parent_model": "", "format": "safetensors", "parameter_size": "8.0K"}
        for model in listed:
            assert (model["model"], model["size"], model["details"]) == (model["name"], 4500, details)
            assert len(model["digest"]) == 64
        (running,) = service.http.get("/api/ps").json()["models"]
        assert (running["name"], running["context_length"], running["size_vram"]) == ("packed", 512, 4500)
        shown = post(service, "show", model="packed:latest")
        assert shown == post(service, "show", name="other", verbose=True) | {
            "modified_at": shown["modified_at"]
        }
        assert shown["capabilities"] == ["completion", "tools"]
        assert shown["model_info"]["qwen3.context_length"] == 512
        assert (shown["details"], shown["model_info"]["qwen3.embedding_length"]) == (details, 64)
        assert "<|start|>" in shown["template"]
        assert str(tmp_path) not in json.dumps(shown)
        service.engine.say("loading")
        assert service.http.get("/api/ps").json() == {"models": []}


@pytest.mark.parametrize(
    ("config", "level", "bits"),
    [
        ({"torch_dtype": "bfloat16"}, "BF16", 16),
        ({"dtype": "float32"}, "F32", 32),
        ({"quantization_config": {"bits": 8, "group_size": 32}}, "int8", 9),
        ({"quantization": {"bits": "x"}}, "unknown", 16),
        ({"text_config": {"torch_dtype": "float16"}}, "F16", 16),
    ],
)
def test_parameters_follow_from_the_size(tmp_path: Path, config: Any, level: str, bits: int) -> None:
    """Where no index counts them."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"x" * 18000)
    files = ollama_models.ModelFiles.read(tmp_path, "salt")
    assert files.details()["quantization_level"] == level
    assert files.num_parameters == 18000 * 8 // bits
    index = {"metadata": {"total_parameters": 7_241_732_096}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    again = ollama_models.ModelFiles.read(tmp_path, "salt")
    assert again.details()["parameter_size"] == "7.2B"
    assert again.digest != files.digest


def test_what_would_change_the_model_is_refused_in_words(service: Service) -> None:
    """With what to do instead."""
    for path in REFUSED:
        method = "DELETE" if path == "/api/delete" else "POST"
        answer = service.http.request(method, path.replace("{digest}", "sha256:ab"), json={"model": "x"})
        assert answer.status_code == 501
        assert "this server" in answer.json()["error"]
    assert "MODEL_REPO" in service.http.post("/api/pull", json={"model": "x"}).json()["error"]


def test_clients_find_the_service(service: Service) -> None:
    """The command line asks for HEAD / and shows the model first, others compare the version."""
    assert service.http.head("/").status_code == 200
    assert post(service, "show", model="tiny", name="", system="", template="", verbose=False, options=None)
    for path in ("/api/version", "/api/tags", "/api/ps"):
        assert service.http.head(path).status_code == 200
    major, minor, _ = service.http.get("/api/version").json()["version"].split(".")
    assert (int(major), int(minor)) >= (0, 6)
    paths = service.http.get("/openapi.json").json()["paths"]
    assert {"/api/chat", "/api/generate", "/api/show", "/api/tags", "/api/ps", "/api/version"} <= paths.keys()


@BOTH
def test_a_body_may_be_declared_as_curl_does_it(service: Service, route: str) -> None:
    """As in Ollama's own examples, or not at all; what an HTML form can send as JSON is refused."""
    body = json.dumps({"model": "tiny", **ASKED[route]})
    for headers, status in (
        ({}, 200),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded", "Origin": "https://evil.com"}, 403),
    ):
        answer = service.http.post(f"/api/{route}", content=body, headers=headers)
        assert answer.status_code == status


@BOTH
def test_an_error_in_a_stream_is_its_last_line(service: Service, route: str) -> None:
    """After the text so far; without a stream it has its status."""
    failing = {"messages": [{"role": "user", "content": "[fail]"}], "prompt": "[fail]"}
    fields = {name: failing[name] for name in ASKED[route]}
    lines = stream(service, route, **fields)
    assert text_of(lines[0]) == "Grüße"
    assert lines[-1] == {"error": "it went wrong"}
    assert refused(service, route, 500, **fields) == "it went wrong"


def test_silence_sends_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers take each line for JSON, so there are no comments.

    A client that has shut its write side is probed by zeros that belong to the length of the next chunk.
    """
    monkeypatch.setattr("frontdoor.answering.COMMENT_SECONDS", 0.02)
    monkeypatch.setattr("frontdoor.dialects.ollama_answers.OllamaRenderer.patience_seconds", 0.02)
    monkeypatch.setattr("frontdoor.http.connections.FIRST_PROBE_SECONDS", 0.02)
    monkeypatch.setattr("frontdoor.http.connections.PROBE_SECONDS", 0.02)
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "[hold]"}]})
    with post_by_hand(service, body, path="/api/chat") as connection:
        connection.shutdown(socket.SHUT_WR)
        data = b""
        while not data.endswith(b"\r\n0000"):
            data += connection.recv(65536)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(65536)
        service.engine.release()
        connection.settimeout(10)
        data += read_to_end(connection)
    rest, lines = data.partition(b"200 OK")[2].partition(b"\r\n\r\n")[2], b""
    while length := re.match(rb"(0{0,4}[0-9a-f]+)\r\n", rest):
        chunk = rest[length.end() :][: int(length[1], 16)]
        lines, rest = lines + chunk, rest[length.end() + len(chunk) + 2 :]
    assert rest == b""
    assert [json.loads(line)["done"] for line in lines.splitlines()][-2:] == [False, True]
    assert lines.count(b"\n") == len(lines.splitlines())


@BOTH
def test_a_client_that_leaves_cancels(tmp_path: Path, route: str) -> None:
    """It does not know the id, so there is no grace time."""
    with running_service(tmp_path, {"DISCONNECT_GRACE_SECONDS": "60"}) as service:
        asked = {"messages": [{"role": "user", "content": "[hold]"}], "prompt": "[hold]"}
        body = {"model": "tiny", **{name: asked[name] for name in ASKED[route]}}
        with post_by_hand(service, json.dumps(body), path=f"/api/{route}"):
            until(lambda: bool(service.engine.claimed))
        request_id = service.engine.claimed[0].id

        def is_cancelled() -> bool:
            result = service.spool.read_result(request_id)
            return result is not None and result.finish_reason == "cancelled"

        until(is_cancelled)

"""The OpenAPI description holds: schemathesis asks every route by it and compares the answers."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from frontdoor.routes.ollama import REFUSED
from frontdoor.routes.openapi_answers import ANSWERS
from tests.services.frontdoor_service import Service

KEYS = "mine\n"
KEY = {"Authorization": "Bearer mine"}
SETTINGS = {"REQUEST_TIMEOUT": "5", "MODEL_ALIASES": "*"}
# Ollama's routes that this server refuses are a 501.
CONFIG = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "4xx", 501]
[parameters]
"path.request_id" = "{id}"
"path.name" = "page.css"
"path.file_id" = "{file}"
"path.batch_id" = "{batch}"
"""
# A valid body by its schema may still be too long, or have fields that exclude each other.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method,allow_header_conformance,ignored_auth"
)


def described(service: Service) -> dict[str, Any]:
    found = service.http.get("/openapi.json", headers=KEY)
    assert found.status_code == 200
    paths: dict[str, Any] = found.json()["paths"]
    return paths


def test_every_route_is_described_with_its_answers(service: Service) -> None:
    """A new route needs a line in ANSWERS; a removed one leaves none."""
    found = {
        f"{method.upper()} {path}"
        for path, operations in described(service).items()
        for method in operations
        if method != "head" and path not in {*REFUSED, "/v1/responses/{rest}"}
    }
    assert found == ANSWERS.keys()


def test_get_lists_what_the_server_does(service: Service) -> None:
    """Each route once; none that only refuses, and no HEAD beside its GET."""
    listed = service.http.get("/").json()["endpoints"]
    assert sorted(listed) == sorted(ANSWERS)


def make_ids(service: Service) -> dict[str, str]:
    """Make one of each: a finished request, a file, a batch."""
    http, upload = service.http, {"file": ("lines.jsonl", b"{}\n")}
    request = http.post("/generate", json={"prompt": "hi"}, headers=KEY)
    file = http.post("/v1/files", files=upload, data={"purpose": "batch"}, headers=KEY)
    asked = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = http.post("/v1/batches", json={**asked, "input_file_id": file.json()["id"]}, headers=KEY)
    return {"id": request.json()["id"], "file": file.json()["id"], "batch": batch.json()["id"]}


def ask_all(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """Run schemathesis in a folder of its own, where it may leave files."""
    monkeypatch.setattr("frontdoor.ring_status.MAX_SILENCE_SECONDS", 3600)  # the fake engine says it once
    (tmp_path / "schemathesis.toml").write_text(CONFIG.format(**make_ids(service)))
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{service.url}/openapi.json"]
    command += ["--header", "Authorization: Bearer mine", "--checks", CHECKS, "--no-shrink", "--no-color"]
    command += ["--phases", "coverage,fuzzing", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr


@pytest.mark.slow
def test_no_answer_differs_from_its_description(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No 500, no other status, media type, header or member."""
    ask_all(service, tmp_path, monkeypatch, "--max-examples", "5", "--generation-deterministic")


@pytest.mark.long
def test_no_answer_differs_from_its_description_in_many_tries(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, with other values in each run."""
    ask_all(service, tmp_path, monkeypatch, "--max-examples", "100", "--generation-database", "none")

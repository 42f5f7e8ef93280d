"""/v1/files: uploads, pages, owners, limits; an upload is never whole in memory."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from spool.batches import FileStore
from tests.services.frontdoor_service import Service, running_service, until

KEYS = "mine\ntheirs\n"
MINE, THEIRS = {"Authorization": "Bearer mine"}, {"Authorization": "Bearer theirs"}
SETTINGS = {"MAX_FILE_MB": "2", "MAX_FILES_MB": "5"}
PURPOSE = {"purpose": "batch"}
FORM = "multipart/form-data; boundary=b"


@pytest.fixture(autouse=True)
def without_files(service: Service) -> None:
    store = FileStore(service.spool)
    for file in store.list_all():
        store.delete(file.id)


def upload(
    service: Service, text: bytes = b"{}\n", headers: dict[str, str] = MINE, **fields: Any
) -> httpx2.Response:
    name = fields.pop("name", "in.jsonl")
    return service.http.post(
        "/v1/files", files={"file": (name, text)}, data={**PURPOSE, **fields}, headers=headers
    )


def stored(service: Service) -> set[str]:
    """What lies on the disk of any upload."""
    names = set(service.spool.names(service.spool.folder.files))
    return names | {name for name in service.spool.names(service.spool.folder.tmp) if name != "ballast"}


def test_the_openai_client_uploads_lists_reads_and_deletes(service: Service) -> None:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="mine", max_retries=0) as client:
        made = client.files.create(
            file=("in.jsonl", b"one\ntwo\n"),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        assert (made.object, made.bytes, made.filename, made.purpose) == ("file", 8, "in.jsonl", "batch")
        assert made.status == "processed"
        assert made.expires_at == made.created_at + 3600
        assert client.files.retrieve(made.id) == made
        assert client.files.content(made.id).text == "one\ntwo\n"
        other = client.files.create(file=("more.jsonl", b"three"), purpose="batch")
        assert [file.id for file in client.files.list()] == [other.id, made.id]
        assert [file.id for file in client.files.list(limit=1)] == [other.id, made.id]
        assert [file.id for file in client.files.list(order="asc")] == [made.id, other.id]
        assert list(client.files.list(purpose="batch_output")) == []
        deleted = client.files.delete(made.id)
        assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "file")
        with pytest.raises(openai.NotFoundError):
            client.files.content(made.id)


def test_pages_say_where_they_are(service: Service) -> None:
    ids = [upload(service).json()["id"] for _ in range(3)][::-1]
    page = service.http.get("/v1/files?limit=2", headers=MINE).json()
    assert [file["id"] for file in page["data"]] == ids[:2]
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == (
        "list",
        ids[0],
        ids[1],
        True,
    )
    page = service.http.get(f"/v1/files?limit=2&after={ids[1]}", headers=MINE).json()
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (ids[2:], False)


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=10001", "order=up", "after=file-1"])
def test_a_wrong_query_is_named(service: Service, query: str) -> None:
    answer = service.http.get(f"/v1/files?{query}", headers=MINE)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == query.partition("=")[0]


def test_another_key_finds_nothing(service: Service) -> None:
    """Neither in the list nor by id."""
    path = f"/v1/files/{upload(service).json()['id']}"
    assert service.http.get("/v1/files", headers=THEIRS).json()["data"] == []
    for method, where in (("GET", path), ("GET", f"{path}/content"), ("DELETE", path)):
        answer = service.http.request(method, where, headers=THEIRS)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert service.http.get(path, headers=MINE).status_code == 200


@pytest.mark.parametrize("id", ["..%2f..%2fVERSION", "lock", "file-", f"file-{'0' * 32}", "%00", "a" * 5000])
def test_an_odd_id_is_not_found(service: Service, id: str) -> None:
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert service.http.request(method, f"/v1/files/{id}{path}", headers=MINE).status_code == 404


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "assistants"}, "purpose"),
        ({"purpose": ""}, "purpose"),
        ({"unheard_of": "x"}, "unheard_of"),
        ({"expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}, "expires_after[seconds]"),
        ({"purpose": "x" * 5000}, "purpose"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_kept(
    service: Service, fields: dict[str, Any], param: str
) -> None:
    answer = upload(service, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert stored(service) == set()


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"x", "multipart/form-data", 415),
        (b"x", FORM, 400),
        (b"--b\r\nContent-Disposition: form-data; name=file; filename=f\r\n\r\nhalf", FORM, 400),
        (b"--b\r\nContent-Disposition: form-data; name=purpose\r\n\r\nbatch\r\n--b--\r\n", FORM, 400),
        (b"--b\r\nX: " + b"y" * 10_000, FORM, 400),
    ],
)
def test_a_broken_form_is_refused_and_nothing_is_kept(
    service: Service, body: bytes, kind: str, status: int
) -> None:
    answer = service.http.post("/v1/files", content=body, headers={**MINE, "Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert stored(service) == set()


def test_a_file_over_the_limit_is_refused(service: Service) -> None:
    """Whether it says its length or not; MAX_BODY_BYTES does not count here."""
    whole = b"x" * (2 << 20)
    assert upload(service, whole).json()["bytes"] == 2 << 20
    refused = upload(service, whole + b"y" * (1 << 20))
    assert refused.status_code == 413
    assert "MAX_FILE_MB=2" in refused.json()["error"]["message"]
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    pieces = iter([head, *[b"x" * (1 << 20)] * 3, b"\r\n--b--\r\n"])
    kind = {"Content-Type": FORM}
    refused = service.http.post("/v1/files", content=pieces, headers={**MINE, **kind})
    assert refused.status_code == 413
    assert len(stored(service)) == 2


def test_all_files_together_have_a_limit(service: Service) -> None:
    for _ in range(2):
        assert upload(service, b"x" * (2 << 20)).status_code == 200
    refused = upload(service, b"x" * (2 << 20))
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "storage_limit_exceeded")
    assert "MAX_FILES_MB=5" in refused.json()["error"]["message"]
    assert upload(service, b"x").status_code == 200


def test_the_name_of_a_file_has_no_folder(service: Service) -> None:
    """Of no system."""
    for name in ("../../b.jsonl", "C:\\a\\b.jsonl"):
        assert upload(service, name=name).json()["filename"] == "b.jsonl"


def test_the_purpose_may_come_after_the_file(service: Service) -> None:
    """As curl sends it where -F file stands first."""
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n{}\n\r\n'
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'
    )
    kind = {"Content-Type": FORM}
    assert service.http.post("/v1/files", content=body, headers={**MINE, **kind}).json()["bytes"] == 3


def test_a_client_that_leaves_in_the_middle_leaves_nothing(service: Service) -> None:
    """What had arrived goes with it."""
    started = threading.Event()

    def pieces() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        yield b"x" * (1 << 20)
        until(lambda: bool(stored(service)))
        started.set()
        raise RuntimeError("the client leaves")

    kind = {"Content-Type": FORM}
    with pytest.raises(RuntimeError):
        service.http.post("/v1/files", content=pieces(), headers={**MINE, **kind})
    assert started.is_set()
    until(lambda: stored(service) == set())


def test_a_disk_that_is_nearly_full_refuses_uploads(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a 507, as it does requests."""
    real = os.statvfs

    def full(path: Any) -> os.statvfs_result:
        values = list(real(path))
        values[4] = 0
        return os.statvfs_result(values)

    monkeypatch.setattr("spool.fsio.os.statvfs", full)
    refused = upload(service)
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "disk_full")
    monkeypatch.undo()
    assert stored(service) == set()


def test_a_long_upload_is_never_whole_in_memory(tmp_path: Path) -> None:
    """The front door's memory does not grow by the file."""
    import psutil

    megabyte = b"x" * (1 << 20)
    with running_service(tmp_path, {"MAX_FILE_MB": "200"}) as service:
        app_memory = psutil.Process()
        upload(service, b"{}", {})
        before = app_memory.memory_info().rss
        most = 0

        def pieces() -> Any:
            nonlocal most
            yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
            yield b'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
            for _ in range(100):
                most = max(most, app_memory.memory_info().rss)
                yield megabyte
            yield b"\r\n--b--\r\n"

        kind = {"Content-Type": FORM}
        made = service.http.post("/v1/files", content=pieces(), headers=kind).json()
        assert made["bytes"] == 100 << 20
        assert most - before < 48 << 20


def test_a_retention_of_zero_names_no_expiry(tmp_path: Path) -> None:
    with running_service(tmp_path, {"FILE_RETENTION_DAYS": "0"}) as service:
        assert upload(service, headers={}).json()["expires_at"] is None

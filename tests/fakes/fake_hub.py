"""A Hugging Face Hub of one model, as far as huggingface_hub asks for it: an HTTP server on this machine.

Point HF_ENDPOINT at `url`. What was asked for is kept; a download can be made to break off, the model to be
gated. As a program, `python -m tests.fakes.fake_hub FOLDER ADDRESS`: prints its address, serves until the end
of standard input, and prints the bytes it has sent of each file.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:  # it runs as a program too
    import pytest

REVISION = "0123456789abcdef0123456789abcdef01234567"
LARGE_SUFFIX = ".safetensors"  # large files have their sha256 as etag, others a git hash


class FakeHub:
    """Serves a folder as REPO."""

    def __init__(self, folder: Path, repo: str = "someone/some-model", address: str = "127.0.0.1") -> None:
        self.folder, self.repo = folder, repo
        self.is_gated = False
        self.file_status: int | None = None  # what every file is answered with, and no reason
        self.break_after_bytes: int | None = None  # of the next large file; once
        self.sent_bytes: Counter[str] = Counter()
        hub = self

        class Handler(_Handler):
            """Knows the hub."""

            served = hub

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        address, port = self._server.server_address[:2]
        return f"http://{address!s}:{port}"

    def environment(self, cache: Path) -> dict[str, str]:
        """What a program needs to ask this Hub, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "MODEL_REPO": self.repo,
        }

    def take_over(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Let huggingface_hub in this process ask this Hub, as a program with `environment` does."""
        from huggingface_hub import constants

        monkeypatch.setenv("MODEL_REPO", self.repo)
        monkeypatch.setenv("MODEL_CACHE_DIR", str(cache / "hub"))
        template = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        without_pauses = SimpleNamespace(**vars(time) | {"sleep": lambda _: None})  # between two tries
        monkeypatch.setattr("huggingface_hub.file_download.time", without_pauses)
        monkeypatch.setattr("huggingface_hub.utils._http.time", without_pauses)

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path, hub = urlsplit(self.path).path, self.served
        if f"/{hub.repo}" not in path:
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith(f"/api/models/{hub.repo}/tree/"):
            self._send_json([_tree_entry(file) for file in self._files()])
        elif path.startswith(f"/api/models/{hub.repo}"):
            siblings = [{"rfilename": file.name} for file in self._files()]
            body = {"id": hub.repo, "sha": REVISION, "siblings": siblings, "tags": []}
            self._send_json(body)
        elif hub.is_gated:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif hub.file_status is not None:
            self._send(hub.file_status, b"{}", {})
        else:
            self._send_file(hub.folder / path.rpartition("/")[2])

    def do_HEAD(self) -> None:
        self.do_GET()

    def _files(self) -> list[Path]:
        return sorted(path for path in self.served.folder.iterdir() if path.is_file())

    def _send_json(self, body: Any) -> None:
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _send_file(self, path: Path) -> None:
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = path.read_bytes()
        headers = {
            "ETag": f'"{_etag(path)}"',
            "X-Repo-Commit": REVISION,
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{_etag(path)}"',
            "Accept-Ranges": "bytes",
        }
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send(200, content, headers, name=path.name)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        stop = min(int(last) + 1, len(content)) if last else len(content)
        part = content[int(first) : stop]
        headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(content)}"
        self._send(206, part, headers, name=path.name)

    def _send(self, status: int, content: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        hub = self.served
        if hub.break_after_bytes is not None and name.endswith(LARGE_SUFFIX):
            content, hub.break_after_bytes = content[: hub.break_after_bytes], None
            self.close_connection = True
        hub.sent_bytes[name] += len(content)
        self.wfile.write(content)


def _etag(path: Path) -> str:
    content = path.read_bytes()
    if path.name.endswith(LARGE_SUFFIX):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _tree_entry(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": path.name,
        "size": path.stat().st_size,
        "oid": _etag(path)[:40],
    }
    if path.name.endswith(LARGE_SUFFIX):
        entry["lfs"] = {"oid": _etag(path), "size": entry["size"], "pointerSize": 134}
    return entry


def main() -> None:
    """Serve a folder on an address."""
    with FakeHub(Path(sys.argv[1]), address=sys.argv[2]) as hub:
        print(hub.url, flush=True)
        sys.stdin.read()
        print(json.dumps(hub.sent_bytes), flush=True)


if __name__ == "__main__":
    main()

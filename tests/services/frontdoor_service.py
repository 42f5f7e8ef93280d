"""A whole front door for tests: the real app under uvicorn on a real port, a real spool, and the fake
engine.

The model is a folder with a tokenizer of one token a byte, so that a test can count tokens by hand.
"""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import uvicorn
from fastapi import FastAPI
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from api import server_config
from config import Settings, load_settings
from frontdoor.app import make_app
from spool import Spool
from tests.fakes.fake_engine import FakeEngine

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}:{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant:{% endif %}"
)
NUM_TEMPLATE_TOKENS = len(":") + 2 + 1 + len("assistant:")  # around one message, without its role and content


@dataclass(frozen=True)
class Service:
    """What a test talks to."""

    url: str
    settings: Settings
    spool: Spool
    engine: FakeEngine
    http: httpx2.Client

    def start_over(self, *, max_open: int = 64) -> "Service":
        """Leave nothing of an earlier test: no open request, no claim, no word of a ring in trouble."""
        self.engine.open_up(max_open or 64)
        self.engine.release()
        until(lambda: self.spool.depth().num_waiting + self.spool.depth().num_active == 0)
        self.engine.start_over(max_open)
        (self.settings.run_dir / "supervisor.json").unlink(missing_ok=True)
        return self


def make_model_folder(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """Write a tokenizer of one token a byte, and nothing else of a model."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in ("<|start|>", "<|end|>")]
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|start|>", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def make_settings(folder: Path, overrides: Mapping[str, str] | None = None) -> Settings:
    """Load settings for a service that lives in `folder`."""
    ours = {
        "MODEL_REPO": str(make_model_folder(folder / "tiny")),
        "STATE_DIR": str(folder / "var"),
        "SPOOL_DURABILITY": "process",
        "MAX_SEQUENCE_LENGTH": "256",
        "DEFAULT_MAX_TOKENS": "6",
        "DISCONNECT_GRACE_SECONDS": "0",
        **(overrides or {}),
    }
    return load_settings(ours, root=folder, environ={})


def routes(service: Service, request_id: str = "0" * 32) -> list[tuple[str, str]]:
    """List every described route as (method, path), with something in the place of parameters; HEAD apart."""
    described = make_app(service.settings).openapi()["paths"]
    return [
        (method.upper(), path.replace("{request_id}", request_id).replace("{name}", "page.css"))
        for path, methods in described.items()
        for method in methods
        if method != "head"
    ]


def events(text: str) -> list[tuple[str, str | None, Any]]:
    """Split a stream of /generate into (event, id, data); comments are left out."""
    found = []
    for frame in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in frame.split("\n") if line and not line.startswith(":"))
        if fields:
            found.append((fields["event"], fields.get("id"), json.loads(fields["data"])))
    return found


def connect(url: str, timeout: float = 10) -> socket.socket:
    """Open a connection by hand, for what no HTTP client would send."""
    address = urlsplit(url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=timeout)


def until(condition: Callable[[], bool]) -> None:
    """Look until it is so; the engine and the front door need no more than milliseconds."""
    deadline, pause = time.monotonic() + 10, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        pause.wait(0.002)  # for the threads that make it so


@contextmanager
def running_service(
    folder: Path, overrides: Mapping[str, str] | None = None, *, max_open: int = 64
) -> Iterator[Service]:
    """Run engine and front door until the block ends."""
    settings = make_settings(folder, overrides)
    spool = Spool.open(settings.spool_dir, durability="process")
    with (
        FakeEngine(spool, settings.run_dir, max_open=max_open) as engine,
        serving(settings) as url,
        make_client(url) as http,
    ):
        yield Service(url, settings, spool, engine, http)


def make_client(url: str) -> httpx2.Client:
    """A client without TLS: reading the machine's certificates takes longer than an answer."""
    return httpx2.Client(base_url=url, timeout=30, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


def post_by_hand(service: Service, body: str, headers: str = "", *, path: str = "/generate") -> socket.socket:
    """Send a POST and do not wait for its answer."""
    connection = connect(service.url)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + headers
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """Run the front door alone; yields its address."""
    with serving_app(make_app(settings), settings) as url:
        yield url


@contextmanager
def serving_app(app: FastAPI, settings: Settings) -> Iterator[str]:
    """Run an app on a free port of this machine."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(server_config(app, settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listening.close()

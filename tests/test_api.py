"""api.py as a process: sockets, signals, start-up errors, and how fast it is."""

import json
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

import api
from spool import Spool
from tests.api_process import API, api_on, api_process, environment
from tests.fake_engine import FakeEngine
from tests.frontdoor_service import connect, make_settings, running_service

MAX_MEDIAN_MS = 10  # 2 on an idle machine; a doorbell that does not work would cost 50


def test_an_inherited_socket_keeps_clients_waiting_and_sigterm_lets_answers_finish(tmp_path: Path) -> None:
    """A client that connects before the process serves is answered, and its stream ends as it should."""
    settings = make_settings(tmp_path)
    spool = Spool.open(settings.spool_dir, durability="process")
    with FakeEngine(spool, settings.run_dir) as engine, api_process(settings) as (process, url):
        body = {"prompt": "[hold]", "stream": True}
        with httpx2.stream("POST", f"{url}/generate", json=body, timeout=30) as answer:  # connects at once
            chunks = answer.iter_text()
            assert next(chunks).startswith(": accepted")
            process.send_signal(signal.SIGTERM)
            engine.release()
            assert "event: done" in "".join(chunks)
        assert process.wait(10) == 0


def test_the_end_of_standard_input_ends_it(tmp_path: Path) -> None:
    """When the supervisor is gone, an inherited socket keeps nobody alive, not even an open stream."""
    settings = make_settings(tmp_path)
    spool = Spool.open(settings.spool_dir, durability="process")
    with FakeEngine(spool, settings.run_dir), api_process(settings) as (process, url):
        body = {"prompt": "[hold]", "stream": True}
        with httpx2.stream("POST", f"{url}/generate", json=body, timeout=30) as answer:
            assert next(answer.iter_text()).startswith(": accepted")
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(10) == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"MAX_BODY_BYTES": "many"}, "MAX_BODY_BYTES"),
        ({"API_KEYS_FILE": "/nowhere/keys"}, "API_KEYS_FILE"),
        ({"MODEL_REPO": "/nowhere/model"}, "tokenizer"),
        ({"API_HOST": "0.0.0.0"}, "API_KEYS_FILE"),
        ({"API_HOST": "::"}, "API_KEYS_FILE"),
    ],
)
def test_a_start_that_cannot_be_is_one_sentence_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: dict[str, str],
    message: str,
) -> None:
    """What is wrong stands on standard error."""
    for key, value in environment(make_settings(tmp_path), **overrides).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("sys.argv", ["api.py"])
    monkeypatch.setattr(api, "configure_logging", lambda *_, **__: None)
    monkeypatch.setattr(api, "raise_descriptor_limits", lambda _: None)
    assert api.main() == 2
    assert message in capsys.readouterr().err


def test_a_socket_that_listens_to_the_world_needs_keys(tmp_path: Path) -> None:
    """What the supervisor bound counts, whatever API_HOST says here; with keys it is served."""
    settings = make_settings(tmp_path)
    (tmp_path / "keys").write_text("a-key\n")
    with socket.create_server(("0.0.0.0", 0)) as listening:
        command = [sys.executable, str(API), "--fd", str(listening.fileno())]
        done = subprocess.run(
            command,
            env=environment(settings),
            pass_fds=[listening.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 2
        assert "API_KEYS_FILE" in done.stderr.decode()
        assert "Traceback" not in done.stderr.decode()
        with api_on(listening, settings, API_KEYS_FILE=str(tmp_path / "keys")) as (_, url):
            assert httpx2.get(f"{url}/livez", timeout=30).status_code == 200
            assert httpx2.get(f"{url}/v1/models").status_code == 401


@pytest.mark.slow
def test_a_disk_that_syncs_slowly_holds_up_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SPOOL_DURABILITY=power submits wait for the disk in threads of their own, side by side."""
    is_syncing, may_go_on = threading.Event(), threading.Event()

    def slow_sync(_: int) -> None:
        if threading.current_thread().name.startswith("front-door"):
            is_syncing.set()
            assert may_go_on.wait(10)

    monkeypatch.setattr("spool.fsio._sync", slow_sync)
    with running_service(tmp_path, {"SPOOL_DURABILITY": "power"}) as service:
        answers: list[int] = []

        def ask() -> None:
            answers.append(httpx2.post(f"{service.url}/generate", json={"prompt": "hi"}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert is_syncing.wait(10)
        assert service.http.get("/livez").status_code == 200
        assert service.engine.claimed == []
        may_go_on.set()
        for thread in threads:
            thread.join(10)
        assert answers == [200] * 4


@pytest.mark.slow
def test_the_queue_costs_far_less_than_the_poll_interval(tmp_path: Path) -> None:
    """Idle service: POST sent → claimed, and token logged → bytes at the client, over real sockets."""
    settings = make_settings(tmp_path)
    spool = Spool.open(settings.spool_dir, durability="process")
    with (
        FakeEngine(spool, settings.run_dir) as engine,
        api_process(settings, SPOOL_DURABILITY="power") as (_, url),
    ):
        http = RawClient(url)
        num_answers = 6
        latencies = [measure(http, engine, is_stream=number % 2 == 0) for number in range(2 * num_answers)]
        http.close()
    to_accept = [latency.to_accept_ms for latency in latencies]
    to_claim = [latency.to_claim_ms for latency in latencies]
    tokens = [ms for latency in latencies[::2] for ms in latency.to_client_ms]
    whole = [ms for latency in latencies[1::2] for ms in latency.to_client_ms]
    print(f"POST sent → being published {summary(to_accept)}, → claimed {summary(to_claim)}")
    print(f"token logged → bytes at the client {summary(tokens)}")
    print(f"last token logged → answer at the client, no stream {summary(whole)}")
    for milliseconds in (to_claim, tokens, whole):
        assert statistics.median(milliseconds) < MAX_MEDIAN_MS


class RawClient:
    """HTTP by hand: a client library's own time is not the front door's."""

    def __init__(self, url: str) -> None:
        self._socket = connect(url, timeout=30)

    def post(self, body: dict[str, object]) -> float:
        """Send a request; returns when it was sent."""
        content = json.dumps(body).encode()
        head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sent = time.time()
        self._socket.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        return sent

    def read_until(self, mark: bytes) -> list[tuple[float, bytes]]:
        """Read pieces, each with its time of arrival, until the mark has come."""
        pieces: list[tuple[float, bytes]] = []
        while not pieces or mark not in pieces[-1][1]:
            data = self._socket.recv(65536)
            pieces.append((time.time(), data))
        return pieces

    def close(self) -> None:
        self._socket.close()


@dataclass
class Latency:
    """One answer's times; of a stream one for each token, else one for the whole answer."""

    to_accept_ms: float
    to_claim_ms: float
    to_client_ms: list[float]


def measure(http: RawClient, engine: FakeEngine, *, is_stream: bool) -> Latency:
    """Ask for twenty tokens, five milliseconds apart."""
    sent = http.post({"prompt": "[paced]", "max_tokens": 20, "stream": is_stream})
    pieces = http.read_until(b"0\r\n\r\n" if is_stream else b'"seed"')
    request_id = engine.claimed[-1].id
    logged = engine.token_unix[request_id]
    arrived = [at for at, data in pieces for _ in range(data.count(b"event: token"))]
    if not is_stream:
        logged, arrived = logged[-1:], [pieces[-1][0]]
    late = [(then - at) * 1000 for at, then in zip(logged, arrived, strict=True)]
    accepted, claimed = engine.accepted_unix[request_id], engine.claimed_unix[request_id]
    return Latency((accepted - sent) * 1000, (claimed - sent) * 1000, late)


def summary(milliseconds: list[float]) -> str:
    """Write median and 95th percentile."""
    ordered = sorted(milliseconds)
    return f"p50 {statistics.median(ordered):.2f} ms, p95 {ordered[int(len(ordered) * 0.95)]:.2f} ms"

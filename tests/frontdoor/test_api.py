"""api.py as a process: sockets, signals, start-up errors, doorbells."""

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import pytest

from api import main
from spool import Spool
from tests.fakes.fake_engine import FakeEngine
from tests.services.api_process import API, api_on, api_process, environment
from tests.services.frontdoor_service import make_settings, running_service

pytestmark = pytest.mark.slow


def test_the_end_of_standard_input_ends_it(tmp_path: Path) -> None:
    """When the supervisor is gone, the front door ends, even with an inherited socket and an open stream."""
    settings = make_settings(tmp_path)
    spool = Spool.open(settings.spool_dir, durability="process")
    with FakeEngine(spool, settings.run_dir), api_process(settings) as (process, url):
        body = {"prompt": "[hold]", "stream": True}
        with httpx2.stream("POST", f"{url}/generate", json=body, timeout=30) as answer:
            assert next(answer.iter_text()).startswith(": accepted")
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(10) == 5


def test_sigterm_lets_running_answers_finish(tmp_path: Path) -> None:
    """A client that connects before the process serves is not refused. The stream that was open when the
    signal came ends as it should.
    """
    settings = make_settings(tmp_path)
    spool = Spool.open(settings.spool_dir, durability="process")
    with FakeEngine(spool, settings.run_dir) as engine, api_process(settings) as (process, url):
        assert httpx2.get(f"{url}/livez", timeout=30).json()["status"] == "alive"  # connects at once
        body = {"prompt": "[hold]", "stream": True}
        with httpx2.stream("POST", f"{url}/generate", json=body, timeout=30) as answer:
            chunks = answer.iter_text()
            assert next(chunks).startswith(": accepted")
            process.send_signal(signal.SIGTERM)
            engine.release()
            assert "event: done" in "".join(chunks)
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
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
    for name, value in environment(make_settings(tmp_path), **overrides).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["api.py"])
    for changes_this_process in ("configure_logging", "raise_descriptor_limits"):
        monkeypatch.setattr(f"api.{changes_this_process}", lambda *_, **__: None)
    assert main() == 2
    assert message in capsys.readouterr().err


def test_settings_that_are_not_allowed_end_the_process_without_a_traceback(tmp_path: Path) -> None:
    """The same as a process."""
    env = environment(make_settings(tmp_path), MAX_BODY_BYTES="many")
    done = subprocess.run([sys.executable, str(API)], env=env, capture_output=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "MAX_BODY_BYTES" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


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
        with api_on(listening, settings, API_KEYS_FILE=str(tmp_path / "keys")) as (_, url):
            assert httpx2.get(f"{url}/livez", timeout=30).status_code == 200
            assert httpx2.get(f"{url}/v1/models").status_code == 401


def test_a_disk_that_syncs_slowly_does_not_delay_other_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SPOOL_DURABILITY=power submits wait for the disk in threads of their own, side by side."""
    is_syncing, may_go_on = threading.Event(), threading.Event()

    def slow_sync(_: int) -> None:
        if threading.current_thread().name.startswith("front-door"):
            is_syncing.set()
            assert may_go_on.wait(10)

    monkeypatch.setattr("spool.fsio.os.fsync", slow_sync)
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


@pytest.mark.parametrize("durability", ["process", "power"])
def test_no_answer_waits_for_the_poll_interval(tmp_path: Path, durability: str) -> None:
    """Doorbells alone bring requests to the ring, and tokens and answers to clients."""
    settings = make_settings(tmp_path)
    spool = Spool.open(settings.spool_dir, durability="process")
    with (
        FakeEngine(spool, settings.run_dir),
        api_process(settings, SPOOL_DURABILITY=durability, POLL_INTERVAL="60") as (_, url),
        httpx2.Client(base_url=url, timeout=20) as http,
    ):
        body = {"prompt": "[paced]", "max_tokens": 20}
        assert http.post("/generate", json=body).json()["usage"]["completion_tokens"] == 20
        with http.stream("POST", "/generate", json=body | {"stream": True}) as answer:
            chunks = list(answer.iter_text())
    assert sum(chunk.count("event: token") for chunk in chunks) == 20
    assert len(chunks) > 10, "as they come, not all at once"

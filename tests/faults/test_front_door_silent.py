"""A front door that is stopped or hangs is replaced on the same socket; one that is busy is left alone."""

import asyncio
import os
import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cluster.processes import identify
from cluster.supervisor.front_door_watch import answers, wait_for_silence
from tests.services.api_process import api_process
from tests.services.cluster_service import Bench
from tests.services.frontdoor_service import make_settings

pytestmark = pytest.mark.slow


def test_a_busy_front_door_is_left_alone_and_a_stopped_one_replaced(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 8: load is no reason to cut streams. Who connects to a stopped one is answered by the next."""
    monkeypatch.setenv("FAKE_API_LIMIT_S", "1")
    monkeypatch.setenv("FAKE_BUSY_S", "2.5")
    bench.start()
    before = bench.read()
    api = before.processes["api"]
    began_at = time.monotonic()
    os.kill(api.pid, signal.SIGUSR1)
    assert bench.get_health() == api.pid
    assert time.monotonic() - began_at > 2
    assert bench.read().supervisor["restarts"] == 0

    api.send(signal.SIGSTOP)
    answering = bench.get_health()
    after = bench.wait_until(lambda service: service.state == "ready" and service.supervisor["restarts"] == 1)
    assert answering == after.processes["api"].pid != api.pid
    assert not api.is_alive()
    assert {name: pid for name, pid in after.processes.items() if name != "api"} == {
        name: pid for name, pid in before.processes.items() if name != "api"
    }
    assert "the front door gave no answer for " in (bench.settings.log_dir / "supervisor.log").read_text()


def test_the_real_front_door_answers_the_watch_until_it_is_stopped(tmp_path: Path) -> None:
    """No key is needed for it, and nothing else is asked of it."""
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    settings = make_settings(tmp_path, {"API_KEYS_FILE": str(keys)})
    with api_process(settings, API_KEYS_FILE=str(keys)) as (process, url):
        address = ("127.0.0.1", int(urlsplit(url).port or 0))
        identity = identify(process.pid)
        assert identity is not None
        assert asyncio.run(answers(address, 60.0))
        process.send_signal(signal.SIGSTOP)
        reason = asyncio.run(asyncio.wait_for(wait_for_silence(identity, address, 0.3), 30.0))
        assert "gave no answer" in reason
        process.send_signal(signal.SIGCONT)
        assert asyncio.run(answers(address, 60.0))


def test_an_error_is_an_answer() -> None:
    """Only silence counts: a port without a listener fails at once."""
    assert asyncio.run(answers(("127.0.0.1", 1), 30.0))

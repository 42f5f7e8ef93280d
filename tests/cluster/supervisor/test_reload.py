"""New settings for a running service: restart without a refused request, live edits, and wrong ones."""

import asyncio
import json
import signal
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.supervisor import ring_epoch
from cluster.supervisor.epoch_plan import EpochPlan
from cluster.supervisor.reload import SettingsWatch, Sources
from config import Settings, load_settings
from config.checks import RELATIONS
from config.live import (
    SettingsLines,
    apply_live,
    find_changes,
    load_inherited_settings,
    to_environment,
    with_values,
)
from tests.services.cluster_service import Bench


class Visitors:
    """Clients that ask for /health again and again, each time on a new connection."""

    def __init__(self, url: str, num_visitors: int = 4) -> None:
        self._url = url
        self._stopping = threading.Event()
        self.num_answers = 0
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(num_visitors)]

    def __enter__(self) -> "Visitors":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with urllib.request.urlopen(f"{self._url}/health", timeout=15) as response:
                    response.read()
                self.num_answers += 1
                self._stopping.wait(0.01)
            except OSError as error:
                self.failures.append(repr(error))


def test_edits_reach_every_process_and_bad_ones_keep_the_settings(running: Bench) -> None:
    """Ranks and front door are told, and status names what must wait for a restart. The error of a bad edit
    stands in status until the file is right again; a dead rank comes back without reading it.
    """
    before = running.read()
    (running.root / ".env").write_text("MAX_QUEUE_DEPTH=7\nSTEP_TIMEOUT=30\n")
    after = running.wait_until(lambda service: service.supervisor["settings"]["MAX_QUEUE_DEPTH"] == 7)
    line = '{"event": "settings", "values": {"MAX_QUEUE_DEPTH": 7}}'
    for name in ("rank-0", "rank-1", "api"):
        path = running.settings.log_dir / f"{name}.log"
        running.wait_until(lambda _, path=path: path.exists() and line in path.read_text())  # type: ignore[misc]
    assert after.supervisor["needs_restart"] == ["STEP_TIMEOUT 60 -> 30"]
    assert after.supervisor["settings"]["STEP_TIMEOUT"] == 60
    assert after.processes == before.processes
    log = (running.settings.log_dir / "supervisor.log").read_text()
    assert "settings: MAX_QUEUE_DEPTH 1000 -> 7" in log

    (running.root / ".env").write_text("MAX_QUEUE_DEPTH=many\n")
    bad = running.wait_until(lambda service: bool(service.supervisor["settings_error"]))
    assert "MAX_QUEUE_DEPTH = 'many' is not allowed" in bad.supervisor["settings_error"]
    assert bad.supervisor["settings"]["MAX_QUEUE_DEPTH"] == 7
    before.processes["rank 1"].send(signal.SIGKILL)
    running.wait_until(lambda service: service.state == "ready" and service.ring["epoch"] == 2)
    (running.root / ".env").write_text("MAX_QUEUE_DEPTH=8\n")
    good = running.wait_until(lambda service: service.supervisor["settings"]["MAX_QUEUE_DEPTH"] == 8)
    assert good.supervisor["settings_error"] is None


def test_an_edit_before_the_start_line_arrives_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last rank starts late; it reads its start line first, and then every value edited until then."""
    plan = EpochPlan(1, ("127.0.0.1:1", "127.0.0.1:2"), "", (), Path("/"), {}, 1.0, 1.0)
    epoch = ring_epoch.RingEpoch(plan, lambda name: None, lambda: None)  # type: ignore[arg-type, return-value]
    is_listening, lines = asyncio.Event(), {"rank 0": [], "rank 1": []}  # type: ignore[var-annotated]
    monkeypatch.setattr(ring_epoch, "is_listening", lambda pid, port: is_listening.is_set())

    async def start_child(plan: SimpleNamespace, *_: object) -> SimpleNamespace:
        async def write_line(line: str) -> None:
            lines[plan.name].append(json.loads(line))

        return SimpleNamespace(
            plan=plan, exit_code=None, identity=SimpleNamespace(pid=1), write_line=write_line
        )

    monkeypatch.setattr(ring_epoch, "start_child", start_child)

    async def edit_while_starting() -> None:
        await epoch.start()
        await epoch.send_settings({"LOG_LEVEL": "DEBUG", "MAX_QUEUE_DEPTH": 7})
        await epoch.send_settings({"MAX_QUEUE_DEPTH": 8})
        assert lines["rank 1"] == []
        is_listening.set()
        assert epoch._starting is not None
        await epoch._starting
        await epoch.send_settings({"MAX_QUEUE_DEPTH": 9})

    asyncio.run(edit_while_starting())
    start, *edits = lines["rank 1"]
    assert start["rank"] == 1
    values = [{"LOG_LEVEL": "DEBUG", "MAX_QUEUE_DEPTH": 8}, {"MAX_QUEUE_DEPTH": 9}]
    assert edits == [{"event": "settings", "values": one} for one in values]
    assert [line.get("event") for line in lines["rank 0"]] == [None, "settings", "settings", "settings"]


def test_a_restart_with_wrong_settings_changes_nothing(running: Bench) -> None:
    """What the running supervisor refuses is told to who asked, and the service goes on as it was."""
    before = running.read()
    order = {"id": "a" * 32, "overrides": {**running.overrides, "API_PORT": "1"}, "environment": {}}
    (running.settings.run_dir / "restart.json").write_text(json.dumps(order))
    assert before.holder
    before.holder.send(signal.SIGHUP)
    after = running.wait_until(lambda service: service.supervisor.get("restart") is not None)
    assert after.supervisor["restart"]["state"] == "failed"
    assert "API_PORT can only be changed by stop and start" in after.supervisor["restart"]["error"]
    assert after.processes == before.processes


def test_a_restart_refuses_and_fails_no_request(running: Bench) -> None:
    """The supervisor and its socket stay, ring and front door are new, and every client got an answer."""
    before = running.read()
    with Visitors(before.url) as visitors:
        running.overrides["STEP_TIMEOUT"] = "30"
        assert running.restart() == 0
        after = running.read()
        num_then = visitors.num_answers
        deadline = time.monotonic() + 10
        while visitors.num_answers < num_then + 20 and time.monotonic() < deadline:
            threading.Event().wait(0.02)
    assert visitors.failures == []
    assert visitors.num_answers > num_then > 0
    assert after.holder == before.holder
    assert after.supervisor["epoch"] == before.supervisor["epoch"] + 1
    assert after.supervisor["settings"]["STEP_TIMEOUT"] == 30
    assert all(after.processes[name] != before.processes[name] for name in ("rank 0", "rank 1", "api"))
    assert running.get_health() == after.processes["api"].pid


def make_settings(tmp_path: Path, **values: str) -> Settings:
    return load_settings(values, root=tmp_path, environ={})


def test_settings_survive_the_way_through_an_environment(tmp_path: Path) -> None:
    """A child that inherits its settings has exactly those of its supervisor, whatever the files say."""
    settings = make_settings(tmp_path, MAX_QUEUE_DEPTH="9", LOG_FILE="some.log", POLL_INTERVAL="0.25")
    inherited = load_inherited_settings(to_environment(settings))
    assert {key: inherited.value(key) for key in Settings.all_keys()} == {
        key: settings.value(key) for key in Settings.all_keys()
    }


def test_only_live_settings_are_applied(tmp_path: Path) -> None:
    """The others keep the value they run with."""
    running = make_settings(tmp_path)
    edited = make_settings(tmp_path, LOG_LEVEL="DEBUG", LOCAL_RANKS="3", DEFAULT_MAX_TOKENS="5000")
    now, values = apply_live(running, edited)
    assert values == {"LOG_LEVEL": "DEBUG", "DEFAULT_MAX_TOKENS": 5000}
    assert (now.log_level, now.default_max_tokens, now.local_ranks) == ("DEBUG", 5000, 1)
    assert [str(change) for change in find_changes(now, edited)] == ["LOCAL_RANKS 1 -> 3"]


def test_live_settings_are_compared_with_live_ones_only(tmp_path: Path) -> None:
    """So what is applied at once goes together with what waits for a restart."""
    settings = make_settings(tmp_path)
    for relation in RELATIONS:
        assert settings.about(relation.first).is_live == settings.about(relation.second).is_live


def test_an_edit_is_seen_once(tmp_path: Path) -> None:
    """Looking again without an edit says nothing; a second edit is compared with what runs."""
    watch = SettingsWatch(Sources(tmp_path, {}, {}))
    running = make_settings(tmp_path)
    assert watch.look(running) is None
    (tmp_path / "config.json").write_text('{"MAX_QUEUE_MB": 300}')
    edit = watch.look(running)
    assert edit is not None
    assert edit.values == {"MAX_QUEUE_MB": 300}
    assert watch.look(edit.settings) is None


def test_settings_lines_are_read_however_they_arrive() -> None:
    """Half lines wait for their end, and anything else is skipped."""
    seen: list[dict[str, object]] = []
    lines = SettingsLines(seen.append)
    text = b'hello\n{"event": "other", "values": {"A": 1}}\n{"event": "settings", "values": {"B": 2}}\n[]\n'
    for at in range(0, len(text), 7):
        lines.feed(text[at : at + 7])
    assert seen == [{"B": 2}]


def test_a_value_that_is_not_allowed_is_refused(tmp_path: Path) -> None:
    """A line from another release does not get past the checks."""
    with pytest.raises(ValueError, match="max_queue_depth"):
        with_values(make_settings(tmp_path), {"MAX_QUEUE_DEPTH": 0})

"""Every live setting is followed by every process that uses it: by each part that was made with its value."""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from config import REPOSITORY_ROOT, Settings
from distributed.engine.engine import Engine, EngineParts
from distributed.engine.engine_config import make_engine_limits
from distributed.engine.live_settings import LiveSettings as RankSettings
from distributed.rank import open_spool
from distributed.ring.watchdog import Watchdog
from frontdoor.app import make_app
from frontdoor.state import FrontDoor
from frontdoor.supervised import LiveSettings as DoorSettings
from frontdoor.supervised import SupervisedServer
from spool import SpoolOwner
from tests.services.frontdoor_service import make_settings

LIVE_KEYS = {key for key in Settings.all_keys() if Settings.about(key).is_live}

# A value unlike the default, and what the part holds then. Where `front.settings` is read when it is needed,
# the settings are the part.
DOOR: dict[str, tuple[Any, Callable[[FrontDoor], Any], Any]] = {
    "MODEL_ALIASES": ("gpt-5", lambda front: front.settings.model_alias_list, ("gpt-5",)),
    "DEFAULT_MAX_TOKENS": (77, lambda front: front.settings.default_max_tokens, 77),
    "MAX_PROMPT_LEN_BYTES": (77, lambda front: front.settings.max_prompt_len_bytes, 77),
    "MAX_BODY_BYTES": (7777, lambda front: front.settings.max_body_bytes, 7777),
    "MAX_FILE_MB": (77, lambda front: front.settings.max_file_mb, 77),
    "MAX_FILES_MB": (77, lambda front: front.settings.max_files_mb, 77),
    "MAX_BATCH_LINES": (77, lambda front: front.settings.max_batch_lines, 77),
    "FILE_RETENTION_DAYS": (7, lambda front: front.settings.file_retention_days, 7.0),
    "REQUEST_TIMEOUT": (77, lambda front: front.settings.request_timeout, 77.0),
    "DISCONNECT_GRACE_SECONDS": (7, lambda front: front.disconnects.grace_seconds, 7.0),
    "KEY_MAX_IN_FLIGHT": (7, lambda front: front.settings.key_max_in_flight, 7),
    "KEY_REQUESTS_PER_MINUTE": (7, lambda front: front.settings.key_requests_per_minute, 7),
    "MAX_QUEUE_DEPTH": (7, lambda front: front.spool.admission.max_depth, 7),
    "MAX_QUEUE_MB": (7, lambda front: front.spool.admission.max_bytes, 7 * 2**20),
    "POLL_INTERVAL": (7, lambda front: front.subscriptions.poll_interval_seconds, 7.0),
    "LOG_LEVEL": ("ERROR", lambda front: logging.getLogger().level, logging.ERROR),
}
RANK_0: dict[str, tuple[Any, Callable[[SpoolOwner, Engine], Any], Any]] = {
    "DEFAULT_MAX_TOKENS": (
        77,
        lambda owner, _: owner.file_defaults and owner.file_defaults.max_tokens,
        77,
    ),
    "MAX_QUEUE_DEPTH": (7, lambda owner, _: owner.spool.admission.max_depth, 7),
    "MAX_QUEUE_MB": (7, lambda owner, _: owner.spool.admission.max_bytes, 7 * 2**20),
    "POLL_INTERVAL": (7, lambda _, engine: engine.limits.poll_interval_seconds, 7.0),
    "KEEP_WARM_MINUTES": (0, lambda owner, engine: engine.limits.keep_warm_seconds, 0),
    "RESULT_RETENTION_HOURS": (7, lambda _, engine: engine.limits.retention_seconds, 7 * 3600.0),
    "RESULT_RETENTION_MB": (7, lambda _, engine: engine.limits.retention_bytes, 7 * 2**20),
}
# Where a live setting may be read: what is read there is followed, or read anew each time it is needed.
FOLLOWED = {
    "config/checks.py": "pure comparisons",
    "config/logs.py": "at the start; set_level follows in every process",
    "api.py": "asked for at the shutdown",
    "frontdoor/served_model.py": "front.settings",
    "frontdoor/answering.py": "front.settings",
    "frontdoor/key_limits.py": "front.settings",
    "frontdoor/app.py": "at the start; apply_to_parts follows",
    "frontdoor/batches/runner.py": "front.settings",
    "frontdoor/batches/validation.py": "front.settings",
    "frontdoor/routes/batches.py": "front.settings",
    "frontdoor/routes/files.py": "front.settings",
    "frontdoor/dialects/ollama_models.py": "front.settings",
    "frontdoor/routes/dialect.py": "front.settings",
    "frontdoor/routes/generate.py": "front.settings",
    "frontdoor/routes/messages.py": "front.settings",
    "frontdoor/routes/ollama.py": "front.settings",
    "frontdoor/routes/openai_text.py": "front.settings",
    "frontdoor/routes/tokenize.py": "front.settings",
    "frontdoor/routes/models.py": "front.settings",
    "frontdoor/supervised.py": "apply_to_parts, the front door's followers",
    "distributed/engine/engine_config.py": "at the start and by LiveSettings",
    "distributed/engine/live_settings.py": "rank 0's followers",
    "cluster/supervisor/front_door.py": "running.settings",
    "cluster/supervisor/supervisor.py": "the supervisor's own log level",
    "cluster/commands/requests/client.py": "a command's own settings",
    "cluster/commands/requests/replay.py": "a command's own settings",
    "cluster/commands/requests/submit.py": "a command's own settings",
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = make_settings(tmp_path)
    (settings.model_dir / "config.json").write_text(
        '{"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 1, "vocab_size": 1}'
    )
    return settings


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.mark.parametrize("key", sorted(DOOR))
def test_the_front_door_follows(settings: Settings, key: str) -> None:
    """The part that uses the value has the new one as soon as it comes."""
    value, look, wanted = DOOR[key]
    app = make_app(settings)
    assert look(app.state.front_door) != wanted
    DoorSettings(app).on_settings({key: value})
    assert look(app.state.front_door) == wanted


def make_engine(settings: Settings) -> Engine:
    nothing: Any = None
    parts = EngineParts(nothing, nothing, nothing, nothing, nothing, nothing, nothing)
    return Engine(parts, make_engine_limits(settings))


@pytest.mark.parametrize("key", sorted(RANK_0))
def test_rank_0_follows(settings: Settings, key: str) -> None:
    """For dropped prompt files, too; values that came while it loaded reach it when it listens."""
    value, look, wanted = RANK_0[key]
    with open_spool(settings) as owner:
        engine = make_engine(settings)
        assert look(owner, engine) != wanted
        watchdog = Watchdog(0, has_supervisor=False)
        watchdog._tell_listeners({key: value})
        watchdog.on_settings(RankSettings(settings, owner, engine).on_settings)
        assert look(owner, engine) == wanted
        watchdog._tell_listeners({key: value, "NO_SUCH_KEY": 1})
        assert look(owner, engine) == wanted


def test_every_live_key_has_a_follower() -> None:
    """A new live key needs a line above, or is none."""
    assert DOOR.keys() | RANK_0.keys() == LIVE_KEYS


def test_the_front_door_waits_at_its_end_as_long_as_is_set_then(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUEST_TIMEOUT of the shutdown, not of the start."""
    waits: list[float | None] = []

    async def shutdown(server: uvicorn.Server, sockets: Any = None) -> None:
        waits.append(server.config.timeout_graceful_shutdown)

    monkeypatch.setattr(uvicorn.Server, "shutdown", shutdown)
    patience_s = [5.0]
    server = SupervisedServer(uvicorn.Config(lambda: None), lambda: patience_s[0])
    patience_s[0] = 9.0
    coroutine = server.shutdown()
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert waits == [10]


def test_live_settings_are_read_only_where_they_are_followed() -> None:
    """A part that keeps a live value of its own is named here, with the part that updates it."""
    names = {key.lower() for key in LIVE_KEYS} | {"model_alias_list"}
    found = set()
    for name in ("api.py", "server.py", "spool", "prompts", "frontdoor", "distributed", "cluster", "config"):
        place = REPOSITORY_ROOT / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            tree = ast.parse(path.read_text("utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and node.attr in names:
                    owner = ast.unparse(node.value).split(".")[-1]
                    if owner in ("settings", "changed", "_settings"):
                        found.add(path.relative_to(REPOSITORY_ROOT).as_posix())
    assert found == FOLLOWED.keys()

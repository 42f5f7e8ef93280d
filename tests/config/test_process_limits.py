"""What each process makes of its settings: logs, limits, status files, the ring's secret, the model."""

from __future__ import annotations

import json
import logging
import re
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from config import REPOSITORY_ROOT, ModelNotReady, Settings, SettingsError, load_settings
from config.limits import raise_descriptor_limits
from config.logs import configure_logging
from config.model_path import is_complete, missing_files
from config.ring_secret import load_ring_secret
from config.rotating_file import RotatingFile
from config.run_files import read_json, write_json


def load(root: Path, **overrides: str) -> Settings:
    return load_settings(overrides, root=root, environ={})


@pytest.mark.usefixtures("root_logger")
def test_text_lines_carry_time_level_and_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line break in a message cannot forge a second line."""
    configure_logging(load(tmp_path), process="rank 0")
    logging.getLogger("any").info("ready\n2026 ERROR forged")
    logging.getLogger("any").debug("not shown")
    line = capsys.readouterr().err
    pattern = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO rank 0: ready\\n2026 ERROR forged\n"
    assert re.fullmatch(pattern, line)


@pytest.mark.usefixtures("root_logger")
def test_json_lines_carry_extra_fields_and_tracebacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fields of the record stand beside time, level, process and message, and cannot replace them."""
    configure_logging(load(tmp_path, LOG_FORMAT="json", LOG_LEVEL="debug"), process="api")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("any").exception("failed", extra={"fields": {"id": "a1", "level": "forged"}})
    data = json.loads(capsys.readouterr().err)
    assert (data["level"], data["process"], data["message"], data["id"]) == ("ERROR", "api", "failed", "a1")
    assert data["exception"].endswith("ValueError: broken")
    assert data["time"].endswith("+00:00")


def test_a_second_configuration_replaces_the_first(
    tmp_path: Path, root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line is written once, also into the log file."""
    settings = load(tmp_path, LOG_FILE="logs/all.log")
    configure_logging(settings, process="api")
    configure_logging(settings, process="api")
    root_logger.warning("once")
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert settings.log_file is not None
    assert settings.log_file.read_text(encoding="utf-8").count("once") == 1
    assert settings.log_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("root_logger")
def test_a_log_file_that_cannot_be_written_is_a_settings_error(tmp_path: Path) -> None:
    """The error names the key and its place."""
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"^command line: LOG_FILE = .* cannot be written"):
        configure_logging(load(tmp_path, LOG_FILE="taken/all.log"), process="api")


def test_a_log_file_is_rotated_and_the_oldest_dropped(tmp_path: Path) -> None:
    """No file grows beyond its limit, and only so many are kept."""
    file = RotatingFile(tmp_path / "a.log", max_bytes=20, num_kept=2)
    for number in range(8):
        file.write_line(f"line {number:04d}")
    file.close()
    assert (tmp_path / "a.log").read_text(encoding="utf-8") == "line 0006\nline 0007\n"
    assert (tmp_path / "a.log.1").read_text(encoding="utf-8") == "line 0004\nline 0005\n"
    assert (tmp_path / "a.log.2").read_text(encoding="utf-8") == "line 0002\nline 0003\n"
    assert not (tmp_path / "a.log.3").exists()


def test_two_writers_share_a_rotating_file(tmp_path: Path) -> None:
    """A writer follows when another one has rotated or removed the file."""
    one = RotatingFile(tmp_path / "a.log", max_bytes=20)
    two = RotatingFile(tmp_path / "a.log", max_bytes=20)
    for writer in (one, two, one, two, two):
        writer.write_line("line 0000")
    assert (tmp_path / "a.log").read_text(encoding="utf-8").count("\n") == 1
    assert (tmp_path / "a.log.2").read_text(encoding="utf-8").count("\n") == 2
    (tmp_path / "a.log").unlink()
    one.write_line("again")
    assert (tmp_path / "a.log").read_text(encoding="utf-8") == "again\n"
    one.close()
    two.close()


LIMITS_PROGRAM = """
import resource, sys
from pathlib import Path
from config import load_settings
from config.limits import raise_descriptor_limits
overrides = {"FILE_DESCRIPTOR_SOFT_LIMIT": "256", "FILE_DESCRIPTOR_HARD_LIMIT": "300"}
settings = load_settings(overrides, root=Path("/nonexistent"), environ={})
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
import os
if os.geteuid() == 0:
    os.setuid(65534)
message = raise_descriptor_limits(settings)
print(*resource.getrlimit(resource.RLIMIT_NOFILE), message or "fine", sep="|")
"""


def limits_after(soft: int, hard: int) -> list[str]:
    command = [sys.executable, "-c", LIMITS_PROGRAM, str(soft), str(hard)]
    done = subprocess.run(
        command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.strip().split("|")


def test_limits_are_raised_and_never_lowered() -> None:
    """The soft limit is raised to the setting; a higher one stays."""
    assert limits_after(100, 300) == ["256", "300", "fine"]
    assert limits_after(280, 400) == ["280", "400", "fine"]


def test_a_system_limit_below_the_setting_is_told_and_used_up() -> None:
    """The message names the system's limit, the key and what the key asks for."""
    soft, hard, message = limits_after(100, 200)
    assert (soft, hard) == ("200", "200")
    assert "200 open files where FILE_DESCRIPTOR_SOFT_LIMIT asks for 256" in message
    assert "a hard limit of 200 where FILE_DESCRIPTOR_HARD_LIMIT asks for 300" in message


def test_limits_that_suffice_are_left_alone(tmp_path: Path) -> None:
    """A process with enough of both is not touched."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert (
        raise_descriptor_limits(
            load(tmp_path, FILE_DESCRIPTOR_SOFT_LIMIT="64", FILE_DESCRIPTOR_HARD_LIMIT="64")
        )
        is None
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_a_status_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """What was written is read back, for the owner only, and nothing else stays behind."""
    path = tmp_path / "run" / "ring.json"
    write_json(path, {"phase": "loading"})
    write_json(path, {"phase": "ready", "reason": None})
    assert read_json(path) == {"phase": "ready", "reason": None}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [item.name for item in path.parent.iterdir()] == ["ring.json"]


def test_data_that_is_no_json_leaves_the_status_file_alone(tmp_path: Path) -> None:
    """NaN is not JSON; the old file stays and no temporary one."""
    path = tmp_path / "ring.json"
    write_json(path, {"step": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"step": float("nan")})
    assert read_json(path) == {"step": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["ring.json"]


def test_a_missing_or_foreign_status_file_is_none(tmp_path: Path) -> None:
    """Readers treat missing and damaged files alike."""
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    assert read_json(tmp_path / "missing.json") is None
    assert read_json(tmp_path / "list.json") is None
    assert read_json(tmp_path / "broken.json") is None


def test_the_default_ring_secret_is_made_once_and_private(tmp_path: Path) -> None:
    """All ranks that start at once read the same secret."""
    settings = load(tmp_path)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(load_ring_secret(settings))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert re.fullmatch("[0-9a-f]{64}", found[0])
    assert settings.ring_secret_path.stat().st_mode & 0o777 == 0o600
    assert [item.name for item in tmp_path.joinpath("var").iterdir()] == ["ring.secret"]


def test_a_chosen_ring_secret_must_be_there_private_and_long(tmp_path: Path) -> None:
    """A chosen file is never made, and never used while others could read it."""
    settings = load(tmp_path, RING_SECRET_FILE="mine")
    with pytest.raises(SettingsError, match="cannot be read"):
        load_ring_secret(settings)
    path = tmp_path / "mine"
    path.write_text("a" * 40, encoding="utf-8")
    path.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        load_ring_secret(settings)
    path.chmod(0o600)
    assert load_ring_secret(settings) == "a" * 40
    path.write_text("short", encoding="utf-8")
    with pytest.raises(SettingsError, match="shorter than 32"):
        load_ring_secret(settings)


def test_builtin_models_and_folders_are_found_without_being_there(tmp_path: Path) -> None:
    """They are made or checked later, at the place that is named here."""
    builtin = load(tmp_path, MODEL_REPO="builtin:smollm2-135m")
    assert builtin.model_dir == tmp_path / "var" / "models" / "smollm2-135m"
    assert builtin.model_name == "smollm2-135m"
    folder = load(tmp_path, MODEL_REPO="./models/tiny")
    assert (folder.model_dir, folder.model_name) == (tmp_path / "models" / "tiny", "tiny")
    (tmp_path / "mine" / "tiny").mkdir(parents=True)
    assert load(tmp_path, MODEL_REPO="mine/tiny").model_dir == tmp_path / "mine" / "tiny"


def make_snapshot(cache: Path, *names: str) -> Path:
    repository = cache / "models--team--tiny"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True, exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text("0123abcd", encoding="utf-8")
    for name in names:
        (snapshot / name).write_text("{}", encoding="utf-8")
    return snapshot


def test_a_hub_model_is_found_in_the_cache_once_it_is_complete(tmp_path: Path) -> None:
    """Nothing is fetched: a missing or half model says what makes it ready."""
    settings = load(tmp_path, MODEL_REPO="team/tiny", MODEL_CACHE_DIR="cache")
    assert settings.model_name == "tiny"
    with pytest.raises(ModelNotReady, match=r"team/tiny is not on this machine yet; .*prepare"):
        _ = settings.model_dir
    snapshot = make_snapshot(tmp_path / "cache", "config.json")
    with pytest.raises(ModelNotReady, match=r"not completely downloaded: model\.safetensors is missing"):
        _ = settings.model_dir
    make_snapshot(tmp_path / "cache", "model.safetensors")
    assert settings.model_dir == snapshot


def test_a_model_folder_lacks_what_its_index_lists(tmp_path: Path) -> None:
    """Every file that holds a tensor is needed."""
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (tmp_path / "model-1.safetensors").write_bytes(b"")
    assert missing_files(tmp_path) == ("config.json", "model-2.safetensors")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model-2.safetensors").write_bytes(b"")
    assert is_complete(tmp_path)

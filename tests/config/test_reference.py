"""What is made from the Settings class, and the command that shows the effective settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from dotenv import dotenv_values

from config import Settings, load_settings
from config.fields import allowed_values
from config.reference import files, make_dotenv_example, make_json_example
from config.show import main

KEYS = Settings.all_keys()


def read_object(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(path.read_text("utf-8"))
    return found


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.name))
def test_made_files_equal_what_the_class_says(path: Path) -> None:
    """README and examples are made by `python -m config.reference --write`, and by nothing else."""
    assert path.read_text(encoding="utf-8") == files()[path]


def test_every_setting_has_a_description() -> None:
    """Each key has a group, a sentence and words for what is allowed."""
    for key in KEYS:
        about = Settings.about(key)
        assert about.group
        assert about.description.endswith((".", "…"))
        assert allowed_values(Settings.model_fields[key.lower()])


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [(".env", make_dotenv_example(), dotenv_values), ("config.json", make_json_example(), read_object)],
)
def test_an_example_holds_every_key_with_its_default(
    tmp_path: Path, name: str, text: str, read: Callable[[Path], Mapping[str, object]]
) -> None:
    """Copied unchanged, it changes nothing. `.env.example` names the address of the first release."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert tuple(read(tmp_path / name)) == KEYS
    settings, defaults = load_settings(root=tmp_path, environ={}), Settings(root=tmp_path)
    for key in KEYS:
        assert settings.value(key) == defaults.value(key)
        assert str(settings.origin(key)).startswith(f"{name}:")
    assert name != ".env" or "192.168.5.1" in text


def test_show_prints_every_value_with_its_place_and_masks_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line a key: name, effective value, where it was written."""
    (tmp_path / ".env").write_text("\nAPI_KEYS_FILE=private.keys\nWORKER_HOSTS=mac2\n", encoding="utf-8")
    assert main(["show", "--set", "API_PORT=9000"], root=tmp_path, environ={"LOCAL_RANKS": "2"}) == 0
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["API_PORT"] == ["9000", "command line"]
    assert rows["LOCAL_RANKS"] == ["2", "environment"]
    assert rows["WORKER_HOSTS"] == ["mac2", ".env:3"]
    assert rows["API_KEYS_FILE"] == ["********", ".env:2"]
    assert set(rows) == {"KEY", *KEYS}


def test_show_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Programs get values with their own type, place and metadata."""
    assert main(["show", "--json"], root=tmp_path, environ={"API_KEYS_FILE": "private.keys"}) == 0
    shown = json.loads(capsys.readouterr().out)
    assert tuple(shown) == KEYS
    assert shown["API_PORT"]["value"] == 8100
    assert shown["API_PORT"]["from"] == "default"
    assert shown["API_PORT"]["change"] == "restart"
    assert shown["API_KEYS_FILE"]["value"] == "********"


def test_check_names_every_problem_and_exits_with_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Good settings exit with 0, wrong ones with 2 and one line each."""
    assert main(["check"], root=tmp_path, environ={}) == 0
    (tmp_path / ".env").write_text("API_PORT=x\nAPI_PROT=1\n", encoding="utf-8")
    assert main(["check"], root=tmp_path, environ={}) == 2
    errors = capsys.readouterr().err
    assert ".env:1: API_PORT = 'x'" in errors
    assert ".env:2: API_PROT is not a setting" in errors
    assert main(["check", "--json"], root=tmp_path, environ={}) == 2
    report = json.loads(capsys.readouterr().out)
    assert [problem["key"] for problem in report["problems"]] == ["API_PROT", "API_PORT"]
    assert main(["show"], root=tmp_path, environ={}) == 2


def test_check_also_names_what_only_a_start_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hosts named twice and missing key files are well formed, and still nothing could start."""
    environ = {"WORKER_HOSTS": "mac2", "RING_HOSTFILE": "missing", "API_KEYS_FILE": "missing"}
    assert main(["check"], root=tmp_path, environ=environ) == 2
    errors = capsys.readouterr().err
    assert "RING_HOSTFILE and WORKER_HOSTS both name the hosts" in errors
    assert "API_KEYS_FILE names a file that cannot be read" in errors


def test_a_word_that_is_no_override_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--set` takes KEY=VALUE and says so."""
    assert main(["show", "--set", "API_PORT"], root=tmp_path, environ={}) == 2
    assert "'API_PORT' is not KEY=VALUE" in capsys.readouterr().err

"""The key that commands send, and the command that makes one."""

from pathlib import Path

import pytest

from cluster.commands.command_line import main
from cluster.commands.requests.client import _make_authorization
from cluster.errors import ClusterError
from config import Settings, load_settings
from config.api_keys import hash_key, read_api_keys


@pytest.fixture
def keyed(settings: Settings, tmp_path: Path) -> Settings:
    values = {"MODEL_REPO": settings.model_repo, "API_KEYS_FILE": "keys"}
    return load_settings(values, root=tmp_path, environ={})


def test_commands_send_the_first_key_of_the_file(
    settings: Settings, keyed: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of hashes has none: then OPENAI_API_KEY counts."""
    keys = tmp_path / "keys"
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert _make_authorization(settings) == {}
    keys.write_text(f"sha256:{hash_key('other')} name=bob\nmine name=me max_in_flight=2\n")
    assert _make_authorization(keyed) == {"authorization": "Bearer mine"}
    keys.write_text(f"sha256:{hash_key('other')} name=bob\n")
    with pytest.raises(ClusterError, match="OPENAI_API_KEY"):
        _make_authorization(keyed)
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    assert _make_authorization(keyed) == {"authorization": "Bearer other"}
    keys.write_text("two keys\n")
    with pytest.raises(ClusterError, match="keys:1: word 2"):
        _make_authorization(keyed)


def test_key_prints_a_key_and_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two lines; the one for the file does not contain the key."""
    assert main(["key", "alice"]) == 0
    shown, added = (line.split(":  ")[1] for line in capsys.readouterr().out.splitlines())
    (tmp_path / "keys").write_text(added)
    (key,) = read_api_keys(tmp_path / "keys")
    assert (key.name, key.digest) == ("alice", hash_key(shown))
    assert main(["key", "al ice"]) == 1
    assert "letters, digits" in capsys.readouterr().err

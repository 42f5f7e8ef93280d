"""Which addresses need keys, and that a start says so before anything runs."""

import io
from pathlib import Path

import pytest

from cluster.commands.start import show_warnings, start
from cluster.terminal import Terminal
from config import Settings, SettingsError, load_settings
from config.binding import BindingRefused, check_binding, resolve
from config.checks import start_warnings


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"])
def test_loopback_needs_no_key(address: str) -> None:
    """Nobody but this machine's users gets there."""
    assert check_binding([address], has_keys=False) is None


@pytest.mark.parametrize(
    "address",
    ["192.168.5.1", "10.1.2.3", "172.16.0.1", "172.31.255.254", "169.254.7.7", "fd00::1", "fe80::1%eth0"],
)
def test_a_private_address_without_keys_starts_with_a_warning(address: str) -> None:
    """Two Macs on a cable work out of the box, with a warning."""
    warning = check_binding(["127.0.0.1", address], has_keys=False)
    assert warning is not None
    assert address in warning
    assert "API_KEYS_FILE" in warning


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "::", "8.8.8.8", "172.32.0.1", "192.169.0.1", "100.64.0.1", "2001:db8::1", "::ffff:8.8.8.8"],
)
def test_an_address_for_the_world_without_keys_is_refused(address: str) -> None:
    """The sentence names the setting and both ways out; with keys the same address is served."""
    with pytest.raises(BindingRefused, match=r"API_HOST.*API_KEYS_FILE.*127\.0\.0\.1"):
        check_binding(["127.0.0.1", address], has_keys=False)
    assert check_binding([address], has_keys=True) is None


def test_a_host_name_is_judged_by_its_addresses() -> None:
    """A name that means nothing is refused with its name."""
    assert check_binding(resolve("localhost"), has_keys=False) is None
    assert resolve("0.0.0.0") == ["0.0.0.0"]
    with pytest.raises(BindingRefused, match="no-such-host"):
        resolve("no-such-host.invalid")


def make_settings(folder: Path, **values: str) -> Settings:
    ours = {"MODEL_REPO": str(folder), "STATE_DIR": str(folder / "state"), **values}
    return load_settings(ours, root=folder, environ={})


def test_a_start_for_the_world_without_keys_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """The command itself says so, naming both settings; no process, no folder."""
    with pytest.raises(SettingsError, match=r"API_HOST.*API_KEYS_FILE"):
        start(make_settings(tmp_path, API_HOST="0.0.0.0"), {}, Terminal(io.StringIO()))
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", " holds no key"),
        ("# only a comment\n", " holds no key"),
        ("\n \n", " holds no key"),
        ("good\nbad limit=1\n", ":2: word 2 is not allowed"),
    ],
)
def test_a_start_with_a_wrong_file_of_keys_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    """Nobody could ask anything, or somebody without the limit that was meant."""
    keys = tmp_path / "keys"
    keys.write_text(content)
    with pytest.raises(SettingsError, match=f"API_KEYS_FILE: .*keys{reason}"):
        start(make_settings(tmp_path, API_KEYS_FILE=str(keys)), {}, Terminal(io.StringIO()))


def test_a_private_address_without_keys_is_told_at_the_start(tmp_path: Path) -> None:
    """The warning names the setting, the address and the cure; with keys, or on loopback, there is none."""
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    shown = []
    for values in (
        {"API_HOST": "192.168.5.1"},
        {"API_HOST": "192.168.5.1", "API_KEYS_FILE": str(keys)},
        {"API_HOST": "127.0.0.1"},
    ):
        output = io.StringIO()
        show_warnings(make_settings(tmp_path, **values), Terminal(output))
        shown.append(output.getvalue())
    assert shown[1:] == ["", ""]
    for part in ("API_HOST = 192.168.5.1", "NO API KEY IS REQUIRED", "API_KEYS_FILE"):
        assert part in shown[0]


def test_limits_of_keys_without_a_file_of_keys_are_named_at_the_start(tmp_path: Path) -> None:
    """They limit nothing then."""
    (tmp_path / "keys").write_text("secret\n")
    limits = {"KEY_MAX_IN_FLIGHT": "3"}
    (warning,) = start_warnings(make_settings(tmp_path, **limits))
    assert warning == "KEY_MAX_IN_FLIGHT = 3 limits nothing without API_KEYS_FILE"
    assert start_warnings(make_settings(tmp_path, **limits, API_KEYS_FILE="keys")) == []

"""The units for systemd and launchd: what is in them, and that install and remove are exact."""

from __future__ import annotations

import plistlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from cluster.commands.service_unit import ROOT, Keeper, make_keeper, run_service_command
from cluster.commands.unit_files import (
    LABEL,
    UnitPlan,
    make_launchd_plist,
    make_systemd_unit,
    quote_for_systemd,
)
from cluster.errors import ClusterError
from cluster.terminal import Terminal
from config import Settings
from config.live import load_for_looking

PLAN = UnitPlan(
    root=Path("/opt/anna/ring 100%"),
    flags=("--set", 'MODEL_REPO=/models/$HOME "x"'),
    log=Path("/opt/anna/ring 100%/var/logs/supervisor.log"),
    shutdown_timeout_s=30.0,
    num_files=(2048, 4096),
)
# Notes its arguments; the probe fails where the file `down` is there, enabling where `broken` is.
FAKE_KEEPER = """#!/bin/sh
here=$(dirname "$0")
echo "$(basename "$0") $*" >>"$here/calls"
case "$*" in
*show-environment*|*print*) [ ! -e "$here/down" ] ;;
*enable\\ --now*|*bootstrap*) [ ! -e "$here/broken" ] || { echo "no space" >&2; exit 1; } ;;
esac
"""


def test_a_systemd_unit_restarts_after_failures_only() -> None:
    """Not after `stop` (exit code 0) nor with wrong settings (2), and not for ever."""
    unit = make_systemd_unit(PLAN)
    for line in ("Restart=on-failure", "RestartPreventExitStatus=2", "StartLimitIntervalSec=0", "UMask=0077"):
        assert line in unit.splitlines()
    assert "TimeoutStopSec=60" in unit.splitlines()
    assert "User=" not in unit and "WantedBy=default.target" in unit


def test_paths_and_flags_reach_systemd_as_they_are() -> None:
    """Its % and $ are escaped, words with blanks are quoted."""
    assert quote_for_systemd('a b%c$d"e\\f') == '"a b%%c$$d\\"e\\\\f"'
    assert "WorkingDirectory=/opt/anna/ring 100%%" in make_systemd_unit(PLAN).splitlines()


@pytest.mark.parametrize("user", [None, "root"])
def test_systemd_accepts_the_unit(tmp_path: Path, user: str | None) -> None:
    """As systemd-analyze sees it, with paths that are there."""
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        pytest.skip("systemd-analyze is not installed")
    plan = UnitPlan(ROOT, PLAN.flags, tmp_path / "log 100%", 30.0, (2048, 4096), user)
    unit = tmp_path / "mlx-ring-trial.service"
    unit.write_text(make_systemd_unit(plan), encoding="utf-8")
    verified = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert verified.returncode == 0 and not verified.stderr, verified.stderr


def test_a_launchd_plist_holds_the_command_and_survives_a_round_trip() -> None:
    """plistlib reads what was meant; only a failure starts it again."""
    entries = plistlib.loads(make_launchd_plist(PLAN))
    assert entries["Label"] == LABEL
    assert entries["ProgramArguments"] == [f"{PLAN.root}/launch.sh", "start", "--foreground", *PLAN.flags]
    assert entries["KeepAlive"] == {"SuccessfulExit": False} and entries["RunAtLoad"] is True
    assert entries["Umask"] == 0o077 and entries["ExitTimeOut"] == 60
    assert "UserName" not in entries
    daemon = UnitPlan(PLAN.root, (), PLAN.log, 30.0, (2048, 4096), user="anna")
    assert plistlib.loads(make_launchd_plist(daemon))["UserName"] == "anna"


@dataclass
class Desk:
    """A home folder with fake systemctl, loginctl and launchctl."""

    home: Path
    tools: Path
    settings: Settings
    output: StringIO
    platform: str

    def run(self, action: str, **overrides: str) -> int:
        terminal = Terminal(self.output)
        return run_service_command(
            self.settings, overrides, terminal, action, is_system=False, platform=self.platform
        )

    @property
    def keeper(self) -> Keeper:
        return make_keeper(self.settings, {}, is_system=False, platform=self.platform)

    @property
    def unit(self) -> Path:
        return self.keeper.path

    @property
    def calls(self) -> list[str]:
        calls = self.tools / "calls"
        return calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []


@pytest.fixture(params=["linux", "darwin"])
def desk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    home, tools = tmp_path / "home", tmp_path / "tools"
    home.mkdir()
    tools.mkdir()
    for name in ("systemctl", "loginctl", "launchctl"):
        (tools / name).write_text(FAKE_KEEPER, encoding="utf-8")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    settings = load_for_looking({"STATE_DIR": str(tmp_path / "state")}, tmp_path)
    return Desk(home, tools, settings, StringIO(), str(request.param))


def files_of(home: Path) -> list[Path]:
    return sorted(path for path in home.rglob("*") if path.is_file() or path.is_symlink())


def test_install_writes_one_file_and_loads_it(desk: Desk) -> None:
    """Absolute paths, the flags of the command, a private log; then it is enabled. New flags replace it."""
    assert desk.run("install", API_PORT="8111") == 0
    assert files_of(desk.home) == [desk.unit]
    text = desk.unit.read_text(encoding="utf-8")
    assert f"{ROOT}/launch.sh" in text and "API_PORT=8111" in text
    assert any("enable --now" in call or "bootstrap" in call for call in desk.calls)
    assert desk.settings.log_dir.stat().st_mode & 0o077 == 0
    assert desk.run("install", API_PORT="8222") == 0
    assert files_of(desk.home) == [desk.unit]
    assert "8222" in desk.unit.read_text(encoding="utf-8")


def test_remove_takes_exactly_the_unit_away(desk: Desk) -> None:
    """The file and the link that enabling made; neighbours stay; a second time says so."""
    desk.run("install")
    stranger = desk.unit.with_name("other.service")
    stranger.write_text("[Unit]\n", encoding="utf-8")
    for link in desk.keeper.links:
        link.parent.mkdir()
        link.symlink_to(desk.unit)
    assert desk.run("remove") == 0
    assert files_of(desk.home) == [stranger]
    assert any("disable --now" in call or "bootout" in call for call in desk.calls)
    assert desk.run("remove") == 0
    assert "nothing to remove" in desk.output.getvalue()


def test_install_writes_nothing_where_nobody_would_start_it(desk: Desk) -> None:
    """No systemd or launchd for this user, as in a container."""
    (desk.tools / "down").touch()
    with pytest.raises(ClusterError, match="nothing was written"):
        desk.run("install")
    assert not files_of(desk.home)


def test_a_unit_that_cannot_be_loaded_is_taken_away_again(desk: Desk) -> None:
    """The keeper's own words are the reason."""
    (desk.tools / "broken").touch()
    with pytest.raises(ClusterError, match="no space"):
        desk.run("install")
    assert not files_of(desk.home)


def test_a_file_of_somebody_else_is_left_alone(desk: Desk) -> None:
    """Neither overwritten nor removed."""
    desk.unit.parent.mkdir(parents=True)
    desk.unit.write_text("[Service]\nExecStart=/bin/true\n", encoding="utf-8")
    for action in ("install", "remove"):
        with pytest.raises(ClusterError, match="was not written by this program"):
            desk.run(action)
    assert "ExecStart=/bin/true" in desk.unit.read_text(encoding="utf-8")


def test_the_unit_of_another_copy_is_left_alone(desk: Desk) -> None:
    """Two checkouts have one unit name: the second install says so."""
    desk.run("install")
    text = desk.unit.read_text(encoding="utf-8")
    desk.unit.write_text(text.replace(f"{ROOT}/launch.sh", "/elsewhere/launch.sh"), encoding="utf-8")
    with pytest.raises(ClusterError, match="another copy"):
        desk.run("remove")


def test_an_agent_that_could_not_reach_the_other_hosts_is_refused(desk: Desk, tmp_path: Path) -> None:
    """macOS lets daemons into the local network and no agents; systemd makes no such difference."""
    desk.settings = load_for_looking({"STATE_DIR": str(tmp_path / "s"), "WORKER_HOSTS": "mac2"}, tmp_path)
    if desk.platform == "linux":
        assert desk.run("install") == 0
        return
    with pytest.raises(ClusterError, match="--system"):
        desk.run("install")
    assert not files_of(desk.home)


def test_show_prints_and_changes_nothing(desk: Desk) -> None:
    """Also where neither systemd nor launchd runs."""
    (desk.tools / "down").touch()
    assert desk.run("show") == 0
    assert f"{ROOT}/launch.sh" in desk.output.getvalue()
    assert not desk.calls and not files_of(desk.home)


@pytest.mark.slow
def test_the_command_line_shows_a_unit(tmp_path: Path) -> None:
    """`service show` is a command with help."""
    words = [sys.executable, "-m", "cluster", "service", "show", "--state-dir", str(tmp_path)]
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"STATE_DIR={tmp_path}" in shown.stdout and "--foreground" in shown.stdout

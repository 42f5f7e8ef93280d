"""What the commands say of Macs that launchd, sleep or an unknown chip would trip: on a pretended one."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.commands import service_unit as unit_install
from cluster.commands.doctor import this_machine
from cluster.errors import ClusterError
from cluster.hosts.host_checks import check_sleep
from cluster.hosts.host_rooms import find_bandwidth
from cluster.hosts.remote_scripts import facts
from cluster.terminal import Terminal
from config import Settings, load_settings
from tests.cluster.hosts.pretended_hosts import FACTS

PRIVATE = ["Documents", "Desktop", "Downloads", "Library/Mobile Documents/com~apple~CloudDocs"]


@pytest.fixture
def anna(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make a home folder."""
    home = tmp_path / "anna"
    monkeypatch.setattr(unit_install, "owner", lambda: SimpleNamespace(pw_name="anna", pw_dir=str(home)))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in (*PRIVATE, "ring"):
        (home / name).mkdir(parents=True)
    return home


def in_folder(folder: Path) -> Settings:
    return load_settings({"STATE_DIR": str(folder)}, root=folder, environ={})


@pytest.mark.parametrize("name", PRIVATE)
@pytest.mark.parametrize("is_system", [False, True])
def test_nothing_is_installed_in_a_folder_that_macos_keeps_from_launchd(
    monkeypatch: pytest.MonkeyPatch, anna: Path, name: str, is_system: bool
) -> None:
    """An agent reads no more of it than a daemon, behind a link either; elsewhere at home both do."""
    installed: list[str] = []
    monkeypatch.setattr(unit_install, "install", lambda keeper, *_: installed.append(keeper.name))

    def run(folder: Path, platform: str = "darwin") -> int:
        return unit_install.run_service_command(
            in_folder(folder), {}, Terminal(StringIO()), "install", is_system=is_system, platform=platform
        )

    (anna / "link").symlink_to(anna / name)
    for folder in (anna / name / "ring", anna / "link"):
        with pytest.raises(
            ClusterError, match=f"lies in .*{name.partition('/com')[0]}, which macOS keeps from"
        ):
            run(folder)
    assert run(anna / "ring") == 0
    assert run(anna / name, platform="linux") == 0
    assert installed == ["launchd", "systemd"]


def test_doctor_says_where_launchd_cannot_read(monkeypatch: pytest.MonkeyPatch, anna: Path) -> None:
    """A note as long as nothing is installed, and nothing on Linux."""
    settings = in_folder(anna / "Documents")
    assert this_machine.check_private_folder(settings) == []
    monkeypatch.setattr(sys, "platform", "darwin")
    (note,) = this_machine.check_private_folder(settings)
    assert note.level == "note" and "a start from Terminal works" in note.text
    plist = unit_install.launchd_path(is_system=False)
    plist.parent.mkdir(parents=True)
    plist.touch()
    (failed,) = this_machine.check_private_folder(settings)
    assert failed.level == "failed" and "move it to another folder" in failed.fix
    assert this_machine.check_private_folder(in_folder(anna / "ring")) == []
    model = {"STATE_DIR": str(anna / "ring"), "MODEL_REPO": str(anna / "Desktop" / "model")}
    (failed,) = this_machine.check_private_folder(load_settings(model, root=anna, environ={}))
    assert "model lies in" in failed.text


PMSET = """System-wide power settings:
 SleepDisabled\t\t{disabled}
Currently in use:
 standby              1
 Sleep On Power Button 1
 hibernatemode        3
 networkoversleep     0
 disksleep            10
 sleep                {minutes} (sleep prevented by powerd)
 displaysleep         10
"""
BATTERY = """Now drawing from '{source} Power'
 -InternalBattery-0 (id=4653155)\t87%; discharging; 5:12 remaining present: true
"""


@pytest.mark.parametrize(
    ("power", "text", "fix"),
    [
        (
            {"sleep": 1},
            "sleeps after 1 min without use; a running rank prevents that",
            "pmset -a sleep 0",
        ),
        ({"sleep": 1, "source": "AC"}, "prevents that, but not with a closed lid", "pmset -a sleep 0"),
        ({"sleep": 0, "source": "Battery"}, "on battery: a rank keeps it awake while that lasts", "to power"),
        ({"sleep": 0, "source": "AC"}, "", ""),
        ({"sleep": 9, "disabled": 1}, "", ""),
    ],
)
def test_doctor_says_when_a_mac_will_sleep(
    monkeypatch: pytest.MonkeyPatch, power: dict[str, Any], text: str, fix: str
) -> None:
    """From what pmset prints of a desktop, a laptop on power and one on battery."""
    said = {
        "pmset -g": PMSET.format(minutes=power["sleep"], disabled=power.get("disabled", 0)),
        "pmset -g batt": BATTERY.format(source=power["source"]) if "source" in power else "",
    }
    monkeypatch.setattr(facts, "run", lambda command: said[" ".join(command)])
    found = check_sleep(replace(FACTS, **facts.read_mac_power()))
    assert len(found) == bool(text)
    for finding in found:
        assert finding.level == "note" and text in finding.text and fix in finding.fix


def test_variants_of_a_chip_are_told_apart_by_their_gpu() -> None:
    """By ioreg; without it the larger one counts."""
    said = '    | | "gpu-core-count" = 32\n    | | "model" = "Apple M5 Max"\n'
    assert facts.parse_gpu_cores(said) == 32
    assert facts.parse_gpu_cores("") is None
    m5_max = replace(FACTS, chip="Apple M5 Max")
    assert [find_bandwidth(replace(m5_max, num_gpu_cores=num)) for num in (32, 40, None)] == [460, 614, 614]
    assert find_bandwidth(replace(FACTS, chip="Apple M5 Pro", num_gpu_cores=20)) == 307
    assert find_bandwidth(replace(FACTS, chip="Intel(R) Core(TM) i7")) is None

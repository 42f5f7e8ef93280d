"""launch.sh on a pretended Mac: a PATH with uname, sw_vers, sysctl, xcode-select and Pythons of our own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from config import REPOSITORY_ROOT as ROOT

TOOLS = ("bash", "sh", "dirname", "cat", "cksum", "awk", "rm", "readlink", "mkdir", "sleep")
# A Python without packages that says that it is for another processor, and makes no environment.
PYTHON = """#!/bin/sh
case "$2" in
*platform.machine*) echo {machine}; exit ;;
esac
if [ "$1 $2" = "-m venv" ]; then echo "venv by $0"; exit 1; fi
exec {python} -S "$@"
"""


class Mac:
    """A folder with launch.sh, and the commands of a Mac."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        shutil.copy(ROOT / "launch.sh", folder)
        (folder / "requirements.txt").write_text("")
        for name in TOOLS:
            found = shutil.which(name)
            assert found
            (self.bin / name).symlink_to(found)
        self.say(machine="arm64", version="15.1", translated="0")

    def say(self, *, machine: str, version: str, translated: str | None) -> None:
        """Let uname, sw_vers and sysctl answer so."""
        self.add("uname", f'[ "$1" = -m ] && echo {machine} || echo Darwin')
        self.add("sw_vers", f"echo {version}")
        self.add("sysctl", "exit 1" if translated is None else f"echo {translated}")

    def add(self, name: str, script: str) -> None:
        """Make a command."""
        self.write(self.bin / name, f"#!/bin/sh\n{script}\n")

    def add_python(self, name: str, machine: str) -> Path:
        """Make a Python for a processor."""
        path = self.bin / name
        self.write(path, PYTHON.format(machine=machine, python=sys.executable))
        return path

    def write(self, path: Path, text: str) -> None:
        """Make a program."""
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def launch(self, *words: str, path: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run launch.sh."""
        return subprocess.run(
            ["bash", str(self.folder / "launch.sh"), *words],
            env={"PATH": f"{self.bin}{path}", **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


@pytest.fixture
def mac(tmp_path: Path) -> Mac:
    return Mac(tmp_path)


def test_an_intel_mac_is_refused_in_a_sentence(mac: Mac) -> None:
    """Before anything is made; `sysctl.proc_translated` is not there."""
    mac.say(machine="x86_64", version="14.7", translated=None)
    mac.add_python("python3", "x86_64")
    ended = mac.launch("start")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "launch.sh: this Mac has an Intel processor; MLX needs a Mac with Apple silicon (M1 or newer)\n"
    )


@pytest.mark.parametrize(
    ("version", "is_old"),
    [("13.6.9", True), ("11.7", True), ("10.16", True), ("14.0", False), ("26.1", False)],
)
def test_macos_before_14_is_refused_with_its_version(mac: Mac, version: str, is_old: bool) -> None:
    """MLX has no packages for it; a newer one goes on to make the environment."""
    mac.say(machine="arm64", version=version, translated="0")
    mac.add_python("python3", "arm64")
    ended = mac.launch("start")
    assert (f"macOS {version} is too old, MLX needs 14 or newer" in ended.stderr) == is_old
    assert ("venv by" in ended.stderr) != is_old


@pytest.mark.parametrize("shell_machine", ["arm64", "x86_64"])
def test_a_python_under_rosetta_is_passed_over_for_one_of_arm64(mac: Mac, shell_machine: str) -> None:
    """Also in a terminal that runs under Rosetta itself."""
    mac.say(machine=shell_machine, version="14.7", translated="1" if shell_machine == "x86_64" else "0")
    intel, native = mac.add_python("python3", "x86_64"), mac.add_python("python3.12", "arm64")
    ended = mac.launch("start")
    assert f"{intel} is left alone: it is a Python for Intel Macs" in ended.stderr
    assert f"venv by {native}" in ended.stderr


def test_no_python_but_under_rosetta_is_told_with_the_command_that_mends_it(mac: Mac) -> None:
    """One sentence a Python, then what to install."""
    mac.add_python("python3", "x86_64")
    ended = mac.launch("start")
    assert ended.returncode == 2
    assert "runs under Rosetta; MLX needs one for arm64" in ended.stderr
    assert ended.stderr.endswith("Install it with: brew install python\n")


def test_an_environment_of_a_python_under_rosetta_is_named(mac: Mac) -> None:
    """One that an earlier try left behind, in which MLX cannot be installed."""
    mac.add_python("python3", "arm64")
    (mac.folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(mac.add_python("python3.11", "x86_64"), mac.folder / ".venv" / "bin" / "python")
    ended = mac.launch("start")
    assert ended.returncode == 2
    assert ".venv cannot be used: rm -r .venv, then run this again" in ended.stderr


@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="this system has no /usr/bin/python3")
@pytest.mark.parametrize("has_tools", [False, True])
def test_the_stub_that_opens_a_dialog_is_never_run(mac: Mac, has_tools: bool) -> None:
    """/usr/bin/python3 counts only where Apple's developer tools are installed."""
    mac.add("xcode-select", 'echo "$*" >>"$0.asked"; ' + ("echo /Library" if has_tools else "exit 2"))
    native = mac.add_python("python3.12", "arm64")
    ended = mac.launch("start", path=":/usr/bin", PYTHON="/usr/bin/python3")
    assert ("/usr/bin/python3 is left alone: it would only ask on the screen" in ended.stderr) != has_tools
    assert (mac.bin / "xcode-select.asked").read_text().splitlines()[0] == "-p"
    if not has_tools:
        assert f"venv by {native}" in ended.stderr


@pytest.mark.parametrize("words", [["--help"], [], ["help"], ["help", "start"], ["logs", "-h"]])
def test_help_needs_no_packages_and_works_on_any_mac(mac: Mac, words: list[str]) -> None:
    """In a fresh clone it works at once and makes no environment; an Intel Mac's user may at least read."""
    mac.say(machine="x86_64", version="12.1", translated=None)
    mac.add_python("python3", "x86_64")
    shutil.copytree(ROOT / "cluster", mac.folder / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
    ended = mac.launch(*words)
    assert ended.returncode == 0, ended.stderr
    assert "usage: ./launch.sh" in ended.stdout
    assert not (mac.folder / ".venv").exists()

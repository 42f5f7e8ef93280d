"""launch.sh in a folder of its own: the environment it makes and repairs, and the ways in which it is called.

Python is real; its venv has a pip that installs one package without a network and writes down what it was
asked for.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from config import REPOSITORY_ROOT as ROOT
from tests.services.waiting import until

TOOLS = ("bash", "sh", "dirname", "readlink", "cat", "cksum", "uname", "awk", "mkdir", "rm", "sleep")
LIMIT_S = 60.0

# `python3 -m venv --clear FOLDER` without the real pip; all else is Python's.
PYTHON = """#!/bin/sh
if [ "$1 $2" != "-m venv" ]; then exec {python} "$@"; fi
echo venv >>"$FAKE_CALLS"
{python} -m venv --clear --without-pip "$4" && {python} "$FAKE_PIP/plant.py" "$4"
"""
# Plants the pip that is no pip into an environment.
PLANT = """
import pathlib, shutil, sys
site = next(pathlib.Path(sys.argv[1]).glob("lib/python*/site-packages"))
shutil.copytree(pathlib.Path(__file__).parent / "pip", site / "pip", dirs_exist_ok=True)
"""
PIP = """
import os, pathlib, site, sys, time
if sys.argv[1] == "--version":
    sys.exit(0)
with open(os.environ["FAKE_CALLS"], "a") as calls:
    calls.write(" ".join(["pip", *(word for word in sys.argv[1:] if word == "--force-reinstall")]) + "\\n")
folder = pathlib.Path(site.getsitepackages()[0])
if os.environ.get("FAKE_PIP_HANGS"):
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit("ERROR: Operation cancelled by user")  # as pip does
for place in (folder / "thing", folder / "thing-1.0.dist-info"):
    place.mkdir(exist_ok=True)
for name in ("METADATA", "RECORD"):
    (folder / "thing-1.0.dist-info" / name).write_text("")
"""
CLUSTER = """
import sys
print("cluster:", *sys.argv[1:])
"""


pytestmark = pytest.mark.slow


@dataclass
class Checkout:
    """A folder with launch.sh, and what was called in it."""

    folder: Path
    path: str

    @property
    def site(self) -> Path:
        return self.folder / ".venv" / os.path.relpath(sysconfig.get_path("purelib"), sys.prefix)

    def environment(self, **more: str) -> dict[str, str]:
        names = {
            "PATH": self.path,
            "FAKE_CALLS": str(self.folder / "calls"),
            "FAKE_PIP": str(self.folder / "fakes"),
        }
        return names | more

    def run(
        self, *words: str, program: str = "./launch.sh", **options: str
    ) -> subprocess.CompletedProcess[str]:
        """One command to its end."""
        cwd = options.pop("cwd", str(self.folder))
        return subprocess.run(
            ["bash", program, *words] if "/" in program else [program, *words],
            cwd=cwd,
            env=self.environment(**options),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def take_calls(self) -> list[str]:
        """What was made and installed since the last look."""
        calls = self.folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return lines


def make_checkout(base: Path) -> Checkout:
    """One whose environment is still to be made."""
    folder, tools = base / "checkout", base / "tools"
    (folder / "cluster").mkdir(parents=True)
    (folder / "fakes" / "pip").mkdir(parents=True)
    tools.mkdir()
    shutil.copy(ROOT / "launch.sh", folder)
    (folder / "cluster" / "hosts").mkdir()
    shutil.copy(ROOT / "cluster" / "hosts" / "own_environment.py", folder / "cluster" / "hosts")
    (folder / "cluster" / "__main__.py").write_text(CLUSTER)
    (folder / "requirements.txt").write_text("thing\n")
    (folder / "fakes" / "plant.py").write_text(PLANT)
    (folder / "fakes" / "pip" / "__main__.py").write_text(PIP)
    for name in TOOLS:
        (tools / name).symlink_to(shutil.which(name) or name)
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    (tools / "python3").write_text(PYTHON.format(python=python))
    (tools / "python3").chmod(0o755)
    return Checkout(folder, str(tools))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """One whose first command has made its environment once and asks nobody any more."""
    checkout = make_checkout(tmp_path_factory.mktemp("made"))
    for calls in (["venv", "pip"], []):
        ended = checkout.run("status", "--json")
        last_line = ended.stdout.splitlines()[-1]
        assert (ended.returncode, last_line) == (0, "cluster: status --json"), ended.stderr
        assert checkout.take_calls() == calls
    assert not (checkout.folder / ".venv.lock").exists()
    return checkout


@pytest.fixture
def used(made: Checkout, tmp_path: Path) -> Checkout:
    """A copy of that one."""
    shutil.copytree(made.folder, tmp_path / "checkout", symlinks=True)
    return Checkout(tmp_path / "checkout", made.path)


def test_the_environment_is_made_once(made: Checkout) -> None:
    """The first command makes it; every other one finds it whole and asks nobody."""
    assert made.run("status").stdout == "cluster: status\n"
    assert made.take_calls() == []


def forget_stamp(checkout: Checkout) -> None:
    (checkout.folder / ".venv" / "requirements.installed").unlink()


def change_requirements(checkout: Checkout) -> None:
    (checkout.folder / "requirements.txt").write_text("thing\nother\n")


def remove_package(checkout: Checkout) -> None:
    shutil.rmtree(checkout.site / "thing")


def uninstall_package(checkout: Checkout) -> None:
    remove_package(checkout)
    shutil.rmtree(checkout.site / "thing-1.0.dist-info")


def unpack_in_part(checkout: Checkout) -> None:
    (checkout.site / "thing-1.0.dist-info" / "RECORD").unlink()


def break_pip(checkout: Checkout) -> None:
    forget_stamp(checkout)
    (checkout.site / "pip" / "__main__.py").write_text("import a_vendored_module_that_is_gone\n")


def lose_python(checkout: Checkout) -> None:
    for name in ("python", "python3", f"python3.{sys.version_info.minor}"):
        link = checkout.folder / ".venv" / "bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to("/nowhere/python3")


def move_python(checkout: Checkout) -> None:
    checkout.site.parent.rename(checkout.site.parent.with_name("python3.1"))


@pytest.mark.parametrize(
    ("damage", "calls"),
    [
        (forget_stamp, ["pip"]),
        (change_requirements, ["pip"]),
        (remove_package, ["pip --force-reinstall"]),
        (uninstall_package, ["pip --force-reinstall"]),
        (unpack_in_part, ["venv", "pip"]),
        (break_pip, ["venv", "pip"]),
        (lose_python, ["venv", "pip"]),
        (move_python, ["venv", "pip"]),
    ],
)
def test_what_is_not_whole_is_mended(
    used: Checkout, damage: Callable[[Checkout], None], calls: list[str]
) -> None:
    """After an interrupted installation, without a package or with another Python, no more is done than is
    needed, and the command runs.
    """
    damage(used)
    ended = used.run("status")
    assert (ended.returncode, ended.stdout) == (0, "cluster: status\n"), ended.stderr
    assert used.take_calls() == calls
    assert used.run("status").returncode == 0
    assert used.take_calls() == []


def test_an_environment_of_an_older_release_is_taken_as_it_is(used: Checkout) -> None:
    """Without a list of its packages, the stamp is believed."""
    (used.folder / ".venv" / "packages.installed").unlink()
    assert used.run("status").returncode == 0
    assert used.take_calls() == []


@pytest.mark.parametrize(
    ("python", "said", "packages"),
    [
        (None, "Python 3.11 or newer is needed", "python3 python3-venv"),
        # Debian's, without python3-venv.
        ('case "$2" in *ensurepip*) exit 1;; esac', "has no venv module", "python3-venv"),
    ],
)
def test_a_missing_python_or_venv_module_is_named_with_the_command_that_installs_it(
    checkout: Checkout, python: str | None, said: str, packages: str
) -> None:
    """No traceback and no cryptic shell error on a bare machine."""
    program = Path(checkout.path) / "python3"
    program.unlink()
    if python:
        program.write_text(f'#!/bin/bash\n{python}\nexec {sys.executable} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    ended = checkout.run("demo")
    assert ended.returncode == 2
    assert said in ended.stderr
    assert f"apt-get install {packages}" in ended.stderr and "brew install python" in ended.stderr


def wait_for_pip(checkout: Checkout) -> None:
    """Until pip was called."""
    calls = checkout.folder / "calls"
    until(lambda: calls.exists() and "pip" in calls.read_text(), LIMIT_S)


def test_an_interrupted_installation_says_so_and_goes_on_next_time(checkout: Checkout) -> None:
    """Ctrl-C while pip works: exit code 130, one sentence, no lock stays, and the next command repairs it."""
    with subprocess.Popen(
        ["bash", "./launch.sh", "start"],
        cwd=checkout.folder,
        env=checkout.environment(FAKE_PIP_HANGS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as interrupted:
        wait_for_pip(checkout)
        os.killpg(interrupted.pid, signal.SIGINT)
        _, said = interrupted.communicate(timeout=LIMIT_S)
    assert interrupted.returncode == 130
    assert "nothing was started" in said
    assert not (checkout.folder / ".venv.lock").exists()
    checkout.take_calls()
    assert checkout.run("status").returncode == 0
    assert checkout.take_calls() == ["pip"]


def test_a_second_command_waits_for_the_installation_of_the_first(checkout: Checkout) -> None:
    """Two at once make one environment; a lock whose owner was killed is taken over."""
    command = ["bash", "./launch.sh", "start"]
    environment = checkout.environment(FAKE_PIP_HANGS="1")
    with subprocess.Popen(
        command, cwd=checkout.folder, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    ) as first:
        wait_for_pip(checkout)
        with subprocess.Popen(
            command,
            cwd=checkout.folder,
            env=checkout.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as second:
            assert second.stdout
            assert second.stdout.readline() == f"Waiting for process {first.pid}, which makes .venv\n"
            os.killpg(first.pid, signal.SIGKILL)
            first.wait(LIMIT_S)
            said, _ = second.communicate(timeout=LIMIT_S)
    assert second.returncode == 0
    assert said.splitlines()[-1] == "cluster: start"


def test_links_of_any_kind_lead_to_the_checkout(checkout: Checkout, tmp_path: Path) -> None:
    """A link in PATH that leads over others, relative ones and a linked folder, from any folder."""
    real_bin, elsewhere = tmp_path / "deep" / "down" / "bin", tmp_path / "elsewhere"
    for folder in (real_bin, elsewhere, tmp_path / "checkout-not"):
        folder.mkdir(parents=True)
    (tmp_path / "bin").symlink_to(real_bin)
    (elsewhere / "absolute").symlink_to(checkout.folder / "launch.sh")
    (real_bin / "chained").symlink_to("../../../elsewhere/absolute")
    (real_bin / "mlxring").symlink_to("chained")
    path = f"{tmp_path / 'bin'}:{checkout.path}"
    ended = checkout.run("status", program="mlxring", cwd=str(elsewhere), PATH=path, CDPATH=str(tmp_path))
    assert (ended.returncode, ended.stdout) == (0, "cluster: status\n"), ended.stderr
    assert (checkout.folder / ".venv").is_dir()
    assert not (real_bin / ".venv").exists() and not (elsewhere / ".venv").exists()
    ended = checkout.run("status", program="bin/mlxring", cwd=str(tmp_path), CDPATH=str(elsewhere))
    assert ended.stdout == "cluster: status\n", ended.stderr

"""A worker's folder on another host, with our code and a virtual environment to run it.

    WORKER_DIR/code      server.py and the folders a rank imports, as they are here (rsync, only changes)
    WORKER_DIR/venv      a virtual environment with requirements.txt, in the versions installed here;
                         venv/requirements.installed has the hash of what was asked for, and is written
                         after pip has ended
    WORKER_DIR/models    whole or part models, by name (model_files.py)

All of it is private (0700, 0600). Spool, logs, settings files and secrets never go there. Knows nothing of
ranks or of their start.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from cluster.errors import ClusterError
from cluster.hosts.hosts import Cluster, Host
from cluster.hosts.remote_program import make_program
from cluster.hosts.ssh import Completed, run_for, run_on, shell_words, ssh_words
from cluster.log_files import LineBuffer
from config import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
# What server.py imports; cluster/, the front door and the tests are not copied.
CODE = ("server.py", "requirements.txt", "config", "distributed", "prompts", "spool")
RSYNC_FLAGS = ("-rlc", "-i", "--delete", "--exclude=__pycache__", "--exclude=*.pyc", "--exclude=.*")
MARK = "requirements.installed"
SHORT_LIMIT_S = 30.0
LOOK_LIMIT_S = 120.0  # tens of thousands of files, on a slow disk
RSYNC_LIMIT_S = 300.0
PIP_LIMIT_S = 3600.0
# A command over ssh lacks what a login shell adds to PATH on macOS.
MORE_PATH = "/opt/homebrew/bin:/usr/local/bin:/Library/Frameworks/Python.framework/Versions/Current/bin"
NEWEST_PYTHONS = ("python3.14", "python3.13", "python3.12", "python3.11", "python3")
NO_PYTHON = 41
NO_VENV = 42
NO_FOLDER = 43

Say = Callable[[str], None]


@dataclass(frozen=True)
class Worker:
    """A host and our folder there; `folder` is WORKER_DIR as written."""

    host: Host
    folder: str
    python: str = ""

    def shell_path(self, name: str = "") -> str:
        """A path in the folder, quoted for a line of sh there."""
        return quote_remote(f"{self.folder}/{name}" if name else self.folder)

    def rsync_path(self, name: str) -> str:
        """A path in the folder as a destination of rsync, which starts in the home folder there."""
        return f"{self.host.ssh}:{f'{self.folder}/{name}'.removeprefix('~/')}/"

    async def run(self, command: str, *, input: bytes = b"", timeout_s: float = SHORT_LIMIT_S) -> Completed:
        """Run a line of sh there. Raises: HostUnreachable."""
        return await run_on(self.host, command, input=input, timeout_s=timeout_s)


def list_workers(cluster: Cluster, settings: Settings) -> tuple[Worker, ...]:
    """The workers of a ring: one for each host behind ssh."""
    return tuple(Worker(host, settings.worker_dir, settings.worker_python) for host in cluster.remote_hosts)


async def sync_code(worker: Worker, *, dry_run: bool = False) -> list[str]:
    """Make WORKER_DIR/code equal to the code here; returns the files that were sent or removed.

    Raises:
        HostUnreachable: ssh failed.
        ClusterError: rsync is missing or failed, with its own message.
    """
    code = worker.shell_path("code")
    if not dry_run:
        await _prepare_folder(worker, code)
    elif (await worker.run(f"test -d {code}")).code:
        return list(CODE)
    remote_shell = shlex.join(ssh_words(worker.host, is_shared=True))
    words = ["rsync", *RSYNC_FLAGS, *(["-n"] if dry_run else []), "-e", remote_shell]
    sources = [str(ROOT / name) for name in CODE]
    # Without -p, old and new rsync take modes from this umask.
    words += ["--rsync-path=umask 077; rsync", *sources, worker.rsync_path("code")]
    late = ClusterError(f"{worker.host.name}: the code was not copied within {RSYNC_LIMIT_S:.0f} s")
    done = await run_for(worker.host, words, late, timeout_s=RSYNC_LIMIT_S)
    if done.code:
        raise ClusterError(f"{worker.host.name}: rsync ended with code {done.code}: {describe_rsync(done)}")
    return read_changes(done.stdout.decode("utf-8", errors="replace"))


def read_changes(said: str) -> list[str]:
    """The files that rsync -i lists as sent or removed."""
    pairs = [line.split(maxsplit=1) for line in said.splitlines() if " " in line.strip()]
    return [name.strip() for what, name in pairs if re.match(r"[<>]f|\*deleting", what)]


def describe_rsync(done: Completed) -> str:
    """Why rsync failed: its first message, as its last line names lines of its own source."""
    said = (line.strip() for line in done.stderr.splitlines())
    return next((line for line in said if re.match(r"rsync(\(\d+\))?: ", line)), done.last_line)


async def _prepare_folder(worker: Worker, code: str) -> None:
    done = await worker.run(
        f"umask 077; mkdir -p {code} && chmod 700 {worker.shell_path()} || exit 1\n"
        "command -v rsync >/dev/null && exit 0\n"
        "echo 'rsync is not installed there: sudo apt-get install rsync (Debian, Ubuntu)' >&2; exit 1"
    )
    if done.code:
        raise ClusterError(f"{worker.host.name}: {worker.folder} cannot be used: {done.last_line}")


def read_wanted() -> dict[str, str]:
    """The versions of requirements.txt's packages that are installed here."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = {match[0] for line in lines if (match := re.match(r"[A-Za-z0-9_.-]+", line))}
    return find_versions(sorted(names))


def find_versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed here; some are for another system."""
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def make_constraints() -> str:
    """The versions of `read_wanted` for pip on a worker."""
    return "".join(f"{name}=={version}\n" for name, version in read_wanted().items())


def environment_mark() -> str:
    """What venv/requirements.installed has in an environment for this release."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8") + make_constraints()
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Environment:
    """The state of WORKER_DIR/venv: good, missing, of another release, or broken (incomplete or damaged)."""

    state: Literal["good", "missing", "other", "broken"]
    trouble: str = ""


async def read_environment(worker: Worker) -> Environment:
    """Check the environment there, down to the sizes of its files. Raises: HostUnreachable."""
    venv = worker.shell_path("venv")
    done = await worker.run(
        f"[ -d {venv} ] || exit {NO_FOLDER}\n"
        f"cat {venv}/{MARK} 2>/dev/null; echo\n"
        f"exec {venv}/bin/python -I -",
        input=make_program("environment", {"wanted": read_wanted()}),
        timeout_s=LOOK_LIMIT_S,
    )
    if done.code == NO_FOLDER:
        return Environment("missing", "there is none")
    mark, *_, answer = done.stdout.decode("utf-8", errors="replace").splitlines() or [""]
    if done.code:
        return Environment("broken", f"its Python does not work: {done.last_line}")
    trouble = json.loads(answer)["trouble"] or ""
    if not mark:
        return Environment("broken", "its installation did not end")
    if mark != environment_mark():
        return Environment("other", trouble or "it was made for other requirements")
    return Environment("broken", trouble) if trouble else Environment("good")


async def ensure_environment(worker: Worker, say: Say) -> bool:
    """Make the environment unless it is good; True if something was done.

    Updates an environment of another release, and replaces a broken one.

    Raises:
        HostUnreachable: ssh failed.
        ClusterError: no Python, no venv module, or pip failed; with the command that fixes it.
    """
    found = await read_environment(worker)
    if found.state == "good":
        return False
    say("making the virtual environment" + (f" anew: {found.trouble}" if found.state == "broken" else ""))
    venv = worker.shell_path("venv")
    is_kept = f"{venv}/bin/python -m pip --version >/dev/null 2>&1" if found.state == "other" else "false"
    script = f"""set -e; umask 077; export PATH
# When we end, pip must end too: the next command may make the environment again.
exec 3<&0; (cat <&3; kill 0) >/dev/null 2>&1 &
{find_python_script(_list_pythons(worker))}rm -f {venv}/{MARK}
{is_kept} || "$python" -m venv --clear {venv} || exit {NO_VENV}
cat >{venv}/constraints.txt <<'END'
{make_constraints()}END
{venv}/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
  -r {worker.shell_path("code/requirements.txt")} -c {venv}/constraints.txt
echo {environment_mark()} >{venv}/{MARK}
"""
    late = ClusterError(f"{worker.host.name}: pip did not end within {PIP_LIMIT_S / 60:.0f} minutes")
    done = await run_for(
        worker.host,
        shell_words(worker.host, script),
        late,
        timeout_s=PIP_LIMIT_S,
        holds_stdin=True,
        on_output=PipLines(say).feed,
    )
    if done.code:
        raise ClusterError(f"{worker.host.name}: {_describe_environment_failure(worker, done)}")
    return True


def quote_remote(path: str) -> str:
    """A path for a remote shell; `~/` stays the home folder there."""
    return '"$HOME"/' + shlex.quote(path[2:]) if path.startswith("~/") else shlex.quote(path)


def find_python_script(names: Sequence[str], versions: Sequence[str] = ("3, 11",)) -> str:
    """Lines of sh that set `python` to the first of these that is new enough, or exit with NO_PYTHON.

    Args:
        names: quoted for sh.
        versions: the oldest that will do, as Python writes a tuple; a later one counts if none has the first.
    """
    return f"""PATH="$PATH":{MORE_PATH}
python=
for oldest in {shlex.join(versions)}; do
  for name in {" ".join(names)}; do
    [ -z "$python" ] && found=$(command -v "$name" 2>/dev/null) || continue
    # Without Apple's developer tools this stub opens a dialog on that Mac's screen.
    if [ "$found" = /usr/bin/python3 ] && [ -x /usr/bin/xcode-select ]; then
      xcode-select -p >/dev/null 2>&1 || continue
    fi
    "$found" -c "import sys; sys.exit(sys.version_info < ($oldest))" </dev/null >/dev/null 2>&1 || continue
    python=$found
  done
done
[ -n "$python" ] || exit {NO_PYTHON}
"""


def _list_pythons(worker: Worker) -> list[str]:
    """WORKER_PYTHON; else this machine's version first, as the versions installed here work with it."""
    if worker.python:
        return [quote_remote(worker.python)]
    return [f"python{sys.version_info.major}.{sys.version_info.minor}", *NEWEST_PYTHONS]


def _describe_environment_failure(worker: Worker, done: Completed) -> str:
    if done.code == NO_PYTHON and worker.python:
        return f"WORKER_PYTHON = {worker.python} is no Python 3.11 or newer there"
    if done.code == NO_PYTHON:
        return (
            "Python 3.11 or newer is needed and was not found: brew install python (macOS), "
            "sudo apt-get install python3 python3-venv (Debian, Ubuntu)"
        )
    if done.code == NO_VENV:
        return (
            f"the venv module failed ({done.last_line}): sudo apt-get install python3-venv (Debian, Ubuntu)"
        )
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return f"pip could not install requirements.txt: {errors[-1] if errors else done.last_line}"


class PipLines(LineBuffer):
    """Reads pip's output and reports each package."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self._say = say

    def put_line(self, line: str) -> None:
        words = line.split()
        if words[:1] == ["Collecting"] and len(words) > 1:
            self._say(f"pip: {words[1]}")
        elif words[:1] == ["Installing"]:
            self._say("pip: unpacking")

"""Runs commands on other hosts with plain OpenSSH: the user's own config, agent, keys and jump hosts.

Short commands to one host share one connection (a multiplex master), which ends a minute after the last of
them, or at `close_connections`; its socket is in a private folder with a short name. A rank has a connection
of its own: `is_shared=False`. Nothing ever asks for a password.

    exit code 255   ssh's own: the host was not reached, or the connection was lost
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shlex
import stat
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ClusterError
from cluster.hosts.hosts import Host

EXIT_SSH = 255
CONNECT_LIMIT_S = 8
# ssh notices a lost host after about interval x count seconds.
ALIVE_INTERVAL_S, ALIVE_COUNT = 2, 3
PERSIST_S = 60
# A socket's path has at most 104 bytes (macOS), and ssh adds 17 while it makes one.
CONTROL_ROOT = Path("/tmp")
END_LIMIT_S = 5.0

OPTIONS = (
    "BatchMode=yes",
    f"ConnectTimeout={CONNECT_LIMIT_S}",
    f"ServerAliveInterval={ALIVE_INTERVAL_S}",
    f"ServerAliveCountMax={ALIVE_COUNT}",
    "TCPKeepAlive=yes",
    "LogLevel=ERROR",
    "RequestTTY=no",
    "RemoteCommand=none",
    "PermitLocalCommand=no",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "VisualHostKey=no",
)


@dataclass(frozen=True)
class Completed:
    """How a command ended."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def last_line(self) -> str:
        """The last line of standard error, where programs report an error."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


class HostUnreachable(ClusterError):
    """ssh could not reach a host; `fix` is the command that helps."""

    def __init__(self, host: Host, reason: str, fix: str) -> None:
        super().__init__(f"{host.name}: {reason}: {fix}")
        self.host, self.reason, self.fix = host, reason, fix


@dataclass(frozen=True)
class _SshError:
    """A text on ssh's standard error, what it means, and the fix (with {ssh} and {host})."""

    said: tuple[str, ...]
    reason: str
    fix: str


_SSH_ERRORS = (
    _SshError(
        ("REMOTE HOST IDENTIFICATION HAS CHANGED",),
        "its host key is another one than before",
        "if that is expected: ssh-keygen -R {host}, then: ssh {ssh} true",
    ),
    _SshError(
        ("Host key verification failed",),
        "its host key is not known here yet",
        "accept it once: ssh {ssh} true",
    ),
    _SshError(
        ("Permission denied", "Too many authentication failures"),
        "it refuses our key",
        "put it there once: ssh-copy-id {ssh}",
    ),
    _SshError(
        ("Could not resolve hostname",),
        "its name is not known",
        "correct it in WORKER_HOSTS or RING_HOSTFILE, or name it in ~/.ssh/config",
    ),
    _SshError(
        ("Connection refused",),
        "nothing accepts ssh there",
        "switch it on there (macOS: System Settings, General, Sharing, Remote Login; "
        "Linux: sudo systemctl enable --now ssh)",
    ),
    _SshError(
        ("No route to host", "Network is unreachable", "Host is down"),
        "there is no way to it",
        "check that it is on and the cable is in: ping {host}",
    ),
    _SshError(
        ("timed out", "Timeout, server", "not responding"),
        "it does not answer",
        "check that it is on and awake: ping {host}",
    ),
)


def describe_failure(host: Host, stderr: str) -> HostUnreachable:
    """The error for what ssh wrote when it ended with 255."""
    assert host.ssh is not None
    words = {"ssh": shlex.quote(host.ssh), "host": host.ssh.rpartition("@")[2]}
    for known in _SSH_ERRORS:
        if any(said in stderr for said in known.said):
            return HostUnreachable(host, known.reason, known.fix.format(**words))
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    reason = f"ssh failed ({lines[-1]})" if lines else "the ssh connection was lost"
    return HostUnreachable(host, reason, f"try it by hand: ssh {words['ssh']} true")


def shell_words(host: Host, command: str, *, is_shared: bool = True) -> list[str]:
    """The command that runs a line of sh on a host (this machine too), with any login shell there."""
    if host.ssh is None:
        return ["/bin/sh", "-c", command]
    return [
        *ssh_words(host, is_shared=is_shared),
        "--",
        host.ssh,
        f"exec /bin/sh -c {shlex.quote(command)}",
    ]


def ssh_words(host: Host, *, is_shared: bool) -> list[str]:
    """`ssh` and its options, without the destination; also rsync's remote shell. Raises: ClusterError."""
    options = [word for option in OPTIONS for word in ("-o", option)]
    if not is_shared:
        return ["ssh", "-T", *options, "-o", "ControlMaster=no", "-o", "ControlPath=none"]
    return [
        *("ssh", "-T", *options, "-o", "ControlMaster=auto", "-o", f"ControlPersist={PERSIST_S}"),
        *("-o", f"ControlPath={control_path(host, make_control_dir())}"),
    ]


def control_path(host: Host, control_dir: Path) -> Path:
    """The socket of the connection to a host."""
    assert host.ssh is not None
    return control_dir / hashlib.sha256(host.ssh.encode()).hexdigest()[:12]


def make_control_dir(root: Path = CONTROL_ROOT) -> Path:
    """Make the folder for the sockets, one for each user, home folder and copy of this program.

    Raises:
        ClusterError: the folder belongs to another user or is open to others.
    """
    place = f"{Path(__file__).resolve().parent}\0{Path.home()}"
    folder = root / f"mlx-ring-{os.getuid()}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ClusterError(f"{folder} belongs to another user or is open to others: rm -r {folder}")
    return folder


async def run_on(host: Host, command: str, *, input: bytes = b"", timeout_s: float) -> Completed:
    """Run a line of sh on a host (this machine too) and wait for its end.

    Raises:
        HostUnreachable: ssh failed, or `timeout_s` is over.
    """
    late = HostUnreachable(
        host, f"no answer within {timeout_s:g} s", f"check that it is on and awake: ping {host.address}"
    )
    try:
        return await run_for(host, shell_words(host, command), late, input=input, timeout_s=timeout_s)
    except HostUnreachable as error:
        if error is late:
            await close_connection(host, how="stop")
        raise


async def run_for(
    host: Host,
    words: Sequence[str],
    late: ClusterError,
    *,
    input: bytes = b"",
    timeout_s: float,
    on_output: Callable[[bytes], None] | None = None,
    holds_stdin: bool = False,
) -> Completed:
    """Run a program that uses ssh to a host, as `run_words` does.

    Raises:
        HostUnreachable: ssh failed.
        ClusterError: `late`, when `timeout_s` is over.
    """
    done = await run_words(
        words, input=input, timeout_s=timeout_s, on_output=on_output, holds_stdin=holds_stdin
    )
    if done is None:
        raise late
    if done.code == EXIT_SSH and not host.is_local:
        raise describe_failure(host, done.stderr)
    return done


async def run_words(
    words: Sequence[str],
    *,
    input: bytes = b"",
    timeout_s: float,
    on_output: Callable[[bytes], None] | None = None,
    holds_stdin: bool = False,
) -> Completed | None:
    """Run a program on this machine to its end; None if it took longer than `timeout_s` and was killed.

    Its standard error goes to a file: a multiplex master may hold a pipe open after the program's end.

    Args:
        on_output: takes standard output as it comes; without it, output is collected.
        holds_stdin: keep its standard input open after `input`, until we end.
    """
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        assert process.stdout is not None
        collected: list[bytes] = []
        feed = asyncio.create_task(_feed(process, input, holds_stdin=holds_stdin))
        try:
            async with asyncio.timeout(timeout_s):
                while data := await process.stdout.read(1 << 16):
                    (on_output or collected.append)(data)
                code = await process.wait()
        except TimeoutError:
            return None
        finally:
            feed.cancel()
            if process.stdin is not None:
                process.stdin.close()
            if process.returncode is None:
                process.kill()
                await process.wait()
        errors.seek(0)
        return Completed(code, b"".join(collected), errors.read().decode("utf-8", errors="replace"))


async def _feed(process: asyncio.subprocess.Process, data: bytes, *, holds_stdin: bool) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(data)
        await process.stdin.drain()
    if not holds_stdin:
        process.stdin.close()


async def close_connection(host: Host, *, how: str = "exit") -> None:
    """End the shared connection to a host: `exit` at once, `stop` after its running commands."""
    if host.is_local:
        return
    control_dir = make_control_dir()
    path = control_path(host, control_dir)
    if path.exists():
        assert host.ssh is not None
        await run_words(
            ["ssh", "-o", f"ControlPath={path}", "-O", how, "--", host.ssh], timeout_s=END_LIMIT_S
        )
        path.unlink(missing_ok=True)


async def close_connections(hosts: Sequence[Host], *, how: str = "exit") -> None:
    """End the shared connections to all hosts, and remove the sockets' folder."""
    await asyncio.gather(*(close_connection(host, how=how) for host in hosts))
    with contextlib.suppress(OSError):  # sockets of another service are in it
        make_control_dir().rmdir()

"""Three Linux hosts on one machine, as a cluster sees them: network namespaces with real ssh daemons.

A host has its own network, host name, /etc/hosts, /run, home folder (its own /etc/passwd says so) and ssh
daemon with its own host key; processes, users and all other files are shared with this machine. The hosts are
joined by a switch, a fourth namespace with a bridge in it: nothing is seen in this machine's own network, and
the hosts reach each other and nothing else.

Names carry the pid and start time of the process that made them: what a crashed run has left is removed by
the next one. Knows nothing of the service.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.on_hosts.leftovers import (
    Leftovers,
    find_listening,
    find_pids,
    kill,
    list_files,
    read_command_line,
    read_start_time,
)
from tests.services.waiting import until

NAMES = ("mac1", "mac2", "mac3")
CARRIER_LIMIT_S = 10.0
SUBNET = "10.77.0"
NEEDED = ("ip", "unshare", "nsenter", "mount", "sshd", "ssh", "ssh-keygen", "rsync")
PREFIX = "mlxring"
NAMESPACE = re.compile(rf"{PREFIX}-(\d+)-(\d+)-\S+")
COMMAND_LIMIT_S = 120.0
START_LIMIT_S = 20.0

SSHD_CONFIG = """\
Port 22
HostKey {etc}/host_key
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile .ssh/authorized_keys
UsePAM no
PrintMotd no
MaxStartups 100
"""

# Runs inside of new mount and host name namespaces, then waits for the end of its standard input.
HOLDER = """\
set -e
mount --make-rprivate /
mount --bind "$2/passwd" /etc/passwd
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/meminfo" /proc/meminfo
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount -t sysfs sysfs /sys || true  # its own interfaces in /sys/class/net
hostname "$1"
echo ready
exec cat
"""


class NoNamespacesError(Exception):
    """This machine cannot make the hosts; the message is the reason."""


@dataclass
class NamespaceHost:
    """One host. `home` can be read and written from outside, under the same path."""

    name: str  # mac1, known to all hosts; also its host name
    address: str
    namespace: str
    etc: Path  # its passwd, hosts, meminfo, sshd_config, host_key
    home: Path
    _holder: subprocess.Popen[bytes] | None = None
    _daemon: subprocess.Popen[bytes] | None = None
    _at_first: frozenset[str] = field(default_factory=frozenset)

    def make_command(self, argv: Sequence[str | Path], cwd: Path | None = None) -> list[str]:
        """What to run on this machine so that `argv` runs on the host."""
        assert self._holder is not None
        enter = ["nsenter", "--target", str(self._holder.pid), "--net", "--mount", "--uts"]
        shell = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(cwd or self.home)]
        return [*enter, *shell, *(str(word) for word in argv)]

    def make_environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """A login's environment, and nothing of the test's own."""
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        login = {"HOME": str(self.home), "USER": "root", "LOGNAME": "root", "SHELL": "/bin/sh", "PATH": path}
        return {**login, "LANG": "C.UTF-8", **(extra or {})}

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
        limit_s: float = COMMAND_LIMIT_S,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host to its end."""
        return subprocess.run(
            self.make_command(argv, cwd),
            env=self.make_environment(env),
            input=input if input is not None else "",
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=check,
        )

    def popen(
        self, argv: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a command on the host; its pid here is the command's own."""
        return subprocess.Popen(
            self.make_command(argv, cwd),
            env=self.make_environment(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def find_pids(self) -> set[int]:
        """The processes of the host, its ssh daemon and the one that keeps it among them."""
        return find_pids(self.namespace)

    def stop_daemon(self) -> None:
        """End the ssh daemon and leave its connections."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()
            self._daemon = None

    def start_daemon(self) -> None:
        """Start the ssh daemon and wait until it answers."""
        command = self.make_command([shutil.which("sshd") or "sshd", "-D", "-f", self.etc / "sshd_config"])
        with (self.etc / "sshd.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                [*command, "-E", str(self.etc / "sshd.log")],
                env=self.make_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if self.run(["timeout", str(START_LIMIT_S), "sh", "-c", _ANSWERS]).returncode:
            raise NoNamespacesError(f"sshd did not start: {(self.etc / 'sshd.log').read_text()}")

    def limit_memory(self, total_bytes: int, free_bytes: int | None = None) -> None:
        """Let the host report this much memory in /proc/meminfo; nothing enforces it."""
        free = total_bytes if free_bytes is None else free_bytes
        told = {"MemTotal": total_bytes, "MemFree": free, "MemAvailable": free}
        lines = []
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            key = line.partition(":")[0]
            lines.append(f"{key}: {told[key] // 1024:>15} kB" if key in told else line)
        # Written in place: the file is mounted over /proc/meminfo.
        (self.etc / "meminfo").write_text("\n".join(lines) + "\n", encoding="ascii")

    def find_leftovers(self, *, within: Sequence[str] = ()) -> Leftovers:
        """What is there besides the daemon and files below these folders of the home folder."""
        allowed = tuple(f"{folder.rstrip('/')}/" for folder in within)
        files = {name for name in list_files(self.home) - self._at_first if not name.startswith(allowed)}
        own = {process.pid for process in (self._holder, self._daemon) if process}
        lines = [line for pid in self.find_pids() - own if (line := read_command_line(pid))]
        assert self._holder is not None
        ports = tuple(sorted(find_listening(self._holder.pid) - {22}))
        return Leftovers(tuple(sorted(lines)), ports, tuple(sorted(files)))

    def has_sessions(self) -> bool:
        """Whether the ssh daemon still serves a connection."""
        daemon = self._daemon.pid if self._daemon else None
        return any(read_command_line(pid).startswith("sshd:") for pid in self.find_pids() if pid != daemon)

    def end_processes(self) -> None:
        """Kill exactly the processes of the host; the one that keeps the host stays."""
        kept = {self._holder.pid} if self._holder else set()
        while found := self.find_pids() - kept:
            kill(found)
        self.stop_daemon()


# Every 50 ms until something listens on port 22; `timeout` bounds it.
_ANSWERS = "until grep -q ':0016 .* 0A ' /proc/net/tcp; do sleep 0.05; done"


class Hosts:
    """The three hosts; the first has a key that opens the others and itself, and knows their host keys.

    Used as a context manager: leaving it ends every process of the hosts and removes them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stem = f"{_own_stem()}-{secrets.token_hex(2)}"
        self._switch = f"{self._stem}-switch"
        self.all = tuple(self._describe(name, number) for number, name in enumerate(NAMES, start=1))
        self.first, self.second, self.third = self.all

    def __enter__(self) -> Hosts:
        remove_stale()
        try:
            self._make_switch()
            for number, host in enumerate(self.all, start=1):
                self._make_host(host, f"port{number}")
            self._let_in()
            for host in self.all:
                host._at_first = frozenset(list_files(host.home))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[NamespaceHost]:
        return iter(self.all)

    def __getitem__(self, number: int) -> NamespaceHost:
        return self.all[number]

    def cut(self, host: NamespaceHost) -> None:
        """Pull the host's cable: both ends lose the carrier."""
        _ip("-n", self._switch, "link", "set", self._port_of(host), "down")

    def heal(self, host: NamespaceHost) -> None:
        """Plug the cable in again; returns when the host sees it, which the kernel may take a second for."""
        _ip("-n", self._switch, "link", "set", self._port_of(host), "up")
        show = ("-n", host.namespace, "link", "show", "eth0")
        until(lambda: "state UP" in _ip(*show), CARRIER_LIMIT_S, f"{host.name} has no carrier")
        # Whom it tried to reach without a cable counts as gone for a while.
        _ip("-n", host.namespace, "neighbour", "flush", "all")

    def reboot(self, host: NamespaceHost, *, stays_down: bool = False) -> None:
        """End all processes of the host at once, then start its ssh daemon, unless it is to stay down."""
        self.cut(host)  # as with a power cut: nothing tells the others
        host.end_processes()
        if not stays_down:
            self.boot(host)

    def boot(self, host: NamespaceHost) -> None:
        """Start a host that was left down."""
        self.heal(host)
        host.start_daemon()

    def close(self) -> None:
        """End everything and remove the namespaces."""
        for host in self.all:
            _remove(host.namespace)
            for process in (host._holder, host._daemon):
                if process is not None:
                    process.kill()
                    process.wait()
                    for stream in (process.stdin, process.stdout):
                        if stream is not None:
                            stream.close()
            host._holder = host._daemon = None
        _remove(self._switch)

    def _describe(self, name: str, number: int) -> NamespaceHost:
        folder = self._folder / name
        return NamespaceHost(
            name, f"{SUBNET}.{number}", f"{self._stem}-{name}", folder / "etc", folder / "home"
        )

    def _port_of(self, host: NamespaceHost) -> str:
        return f"port{self.all.index(host) + 1}"

    def _make_switch(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge0", "up")

    def _make_host(self, host: NamespaceHost, port: str) -> None:
        host.etc.mkdir(parents=True)
        (host.home / ".ssh").mkdir(parents=True, mode=0o700)
        host.home.chmod(0o700)
        self._write_etc(host)
        _ip("netns", "add", host.namespace)
        pair = ["link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.namespace]
        _ip("-n", self._switch, *pair)
        _ip("-n", self._switch, "link", "set", port, "master", "bridge0", "up")
        _ip("-n", host.namespace, "link", "set", "lo", "up")
        _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", host.namespace, "link", "set", "eth0", "up")
        host._holder = _hold(host)
        host.start_daemon()

    def _write_etc(self, host: NamespaceHost) -> None:
        users = Path("/etc/passwd").read_text(encoding="utf-8").splitlines()
        root = f"root:x:0:0:root:{host.home}:/bin/sh"
        passwd = [root, *(line for line in users if not line.startswith("root:"))]
        (host.etc / "passwd").write_text("\n".join(passwd) + "\n", encoding="utf-8")
        names = [f"{other.address} {other.name}" for other in self.all]
        (host.etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names]) + "\n", encoding="ascii")
        shutil.copyfile("/proc/meminfo", host.etc / "meminfo")
        (host.etc / "sshd_config").write_text(SSHD_CONFIG.format(etc=host.etc), encoding="ascii")
        _make_key(host.etc / "host_key", host.name)

    def _let_in(self) -> None:
        """Give the first host a key, let it in everywhere, and tell it the host keys."""
        _make_key(self.first.home / ".ssh" / "id_ed25519", "key of mac1")
        public = (self.first.home / ".ssh" / "id_ed25519.pub").read_text(encoding="ascii")
        known = []
        for host in self.all:
            authorized = host.home / ".ssh" / "authorized_keys"
            authorized.write_text(public, encoding="ascii")
            authorized.chmod(0o600)
            kind, key = (host.etc / "host_key.pub").read_text(encoding="ascii").split()[:2]
            known.append(f"{host.name},{host.address} {kind} {key}\n")
        (self.first.home / ".ssh" / "known_hosts").write_text("".join(known), encoding="ascii")


def why_not() -> str:
    """Why this machine cannot make hosts; empty where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in NEEDED if not shutil.which(program)]
    if missing:
        packages = "iproute2, openssh-server, openssh-client, rsync"
        return f"not installed: {', '.join(missing)} (Debian: {packages})"
    trial = f"{_own_stem()}-trial"
    try:
        _ip("netns", "add", trial)
        _ip("-n", trial, "link", "add", "bridge0", "type", "bridge")
    except NoNamespacesError as error:
        return str(error)
    finally:
        _remove(trial)
    return ""


def remove_stale() -> None:
    """Remove the hosts of runs that are gone."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        match = NAMESPACE.match(line)
        if match and read_start_time(int(match[1])) != match[2]:
            _remove(match[0])


def _own_stem() -> str:
    return f"{PREFIX}-{os.getpid()}-{read_start_time(os.getpid())}"


def _remove(namespace: str) -> None:
    while found := find_pids(namespace):
        kill(found)
    subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def _hold(host: NamespaceHost) -> subprocess.Popen[bytes]:
    """Start the process that keeps the host's mounts and names; it ends with this one."""
    enter = ["nsenter", f"--net=/run/netns/{host.namespace}", "unshare", "--mount", "--uts"]
    holder = subprocess.Popen(
        [*enter, "sh", "-c", HOLDER, "sh", host.name, str(host.etc)],
        env=host.make_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stderr is not None
    ready, _, _ = select.select([holder.stdout], [], [], START_LIMIT_S)
    if not ready or holder.stdout.readline() != b"ready\n":
        holder.kill()
        raise NoNamespacesError(f"mount namespace: {holder.stderr.read().decode().strip()}")
    holder.stderr.close()
    return holder


def _ip(*arguments: str) -> str:
    ended = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise NoNamespacesError(f"ip {' '.join(arguments)}: {ended.stderr.strip()}")
    return ended.stdout


def _make_key(path: Path, comment: str) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    subprocess.run(command, check=True, capture_output=True)

"""What is done on a Mac only, on a pretended one: no Mac is here."""

from __future__ import annotations

import ast
import asyncio
import errno
import fcntl
import json
import os
import platform
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from chaos import flatness
from cluster import ports
from cluster.hosts import hosts
from cluster.hosts.host_rooms import measure_rooms
from cluster.hosts.hosts import Cluster, Host
from cluster.hosts.probe import make_facts
from cluster.hosts.remote_scripts import ending, facts
from cluster.hosts.ring_plan import choose_layout, find_short_hosts
from cluster.processes import ProcessIdentity, identify
from cluster.supervisor import front_door_watch, ring_epoch
from cluster.supervisor.epoch_plan import EpochPlan
from config import load_settings
from config.limits import raise_descriptor_limits
from distributed.backends import mac
from distributed.planning.capacities import NUM_SCORE_ARRAYS, RANK_BYTES
from distributed.ring.watchdog import EXIT_SUPERVISOR_GONE
from spool import Spool
from spool.fsio import FileSystem
from tests.cluster.hosts.test_ring_plan import make_default_source
from tests.fakes.spool_fakes import make_request
from tests.services.waiting import until

ROOT = Path(__file__).resolve().parent.parent
FULLFSYNC, BARRIERFSYNC = 51, 85  # of sys/fcntl.h
FLUSH_MS = {FULLFSYNC: 18, BARRIERFSYNC: 0}  # about, on an M1
# Says what it was given, and lives as long as the process behind -w.
CAFFEINATE = """#!/bin/sh
{ echo "$*"; env; } >"$0.part"
mv "$0.part" "$0.said"
while kill -0 "$3" 2>/dev/null; do sleep 0.05; done
touch "$0.ended"
"""
# psutil and the like are imported as on Linux; what looks later sees a Mac.
RANK = """
import os, sys
import server
sys.platform = "darwin"
code = server.main(sys.argv[1:])
print("left:", os.environ.get("MLX_METAL_FAST_SYNCH"), flush=True)
os._exit(code)
"""


def make_caffeinate(folder: Path, content: bytes) -> Path:
    """Make a program of that name."""
    program = folder / "caffeinate"
    program.write_bytes(content)
    program.chmod(0o755)
    return program


def wait_for(path: Path) -> str:
    """Read a file once it is there."""
    until(path.exists)
    return path.read_text()


@pytest.mark.slow
def test_a_rank_on_a_mac_is_kept_awake_and_drops_a_dangerous_setting(tmp_path: Path) -> None:
    """Before MLX is imported; the warning comes once, and caffeinate ends with the rank."""
    caffeinate = make_caffeinate(tmp_path, CAFFEINATE.encode())
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "STATE_DIR": str(tmp_path / "state"),
        "MLX_METAL_FAST_SYNCH": "1",
        "MARKER": "mine",
    }
    command = [sys.executable, "-c", RANK, "--rank", "1"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, input="", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == EXIT_SUPERVISOR_GONE, done.stderr
    assert "left: None" in done.stdout
    assert done.stderr.count("MLX_METAL_FAST_SYNCH") == 1
    until(caffeinate.with_suffix(".said").exists)
    words, *rest = caffeinate.with_suffix(".said").read_text().splitlines()
    assert words.startswith("-ims -w ")
    assert not any(line.startswith("MARKER") for line in rest)
    until(caffeinate.with_suffix(".ended").exists)


@pytest.mark.parametrize(
    ("platform", "content"),
    [("darwin", None), ("darwin", b"\x7fELF nothing"), ("linux", CAFFEINATE.encode())],
    ids=["absent", "no program", "on Linux"],
)
def test_a_rank_serves_where_nothing_keeps_its_machine_awake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, content: bytes | None
) -> None:
    """A Mac without caffeinate is no error; Linux does not look for it."""
    if content is not None:
        make_caffeinate(tmp_path, content)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert mac.keep_awake() is None


def test_a_setting_that_is_not_there_is_not_spoken_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No line in the log of most ranks."""
    monkeypatch.delenv(mac.FAST_SYNCH, raising=False)
    mac.drop_fast_synch()
    assert not caplog.records


FAILURES = [
    RuntimeError("proc_pidinfo(PROC_PIDLISTFDS) failed"),
    SystemError("returned NULL without setting an exception"),
    psutil.AccessDenied(1),
    PermissionError(1, "sysctl"),
]


@pytest.fixture(params=FAILURES, ids=lambda error: type(error).__name__)
def failing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let psutil fail at all that it is asked of processes, connections and memory."""

    def fail(*_: object, **__: object) -> None:
        raise request.param

    for name in ("Process", "net_connections", "virtual_memory", "net_if_addrs"):
        monkeypatch.setattr(psutil, name, fail)


@pytest.mark.usefixtures("failing")
def test_where_psutil_tells_nothing_a_process_is_alive_and_never_signalled() -> None:
    """By its pid alone: nobody takes what runs for dead, and nothing is killed that may be another's."""
    me = identify(os.getpid())
    assert me is not None
    assert abs(me.start_time - time.time()) < 60
    assert me.is_alive()
    assert not me.send(signal.SIGKILL)
    assert not me.wait(0.1)
    gone = ProcessIdentity(2**22 + 1, 1.0)
    assert not gone.is_alive()
    assert gone.wait(0.1)


@pytest.mark.usefixtures("failing")
def test_where_psutil_tells_nothing_a_start_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """Ports, addresses, the front door's watch and the programs on other hosts all answer."""
    assert "port 80 on ::1 is taken: end that" in str(ports.describe_taken("::1", 80))
    assert hosts.own_addresses() == set()
    assert front_door_watch.read_cpu_s(1) == 0.0
    assert not front_door_watch.waits_for_disk(1)
    assert not ring_epoch.is_listening(1, 1)
    facts.main({"address": "127.0.0.1", "num_ports": 1})
    ending.main({"processes": [[os.getpid(), time.time()]], "tolerance_s": 1e9})
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(told[0]["free_ports"]) == 1
    assert told[1] == {"num_killed": 0, "left": []}
    assert list(flatness.marked_processes("mine")) == []


def test_a_zombie_is_dead_even_if_psutil_fails_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody reaps a supervisor, `status` must not call it alive."""
    real, outcomes = psutil.Process.status, iter([RuntimeError(), psutil.AccessDenied(1)])

    def status(self: psutil.Process) -> str:
        for error in outcomes:
            raise error
        return str(real(self))

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        identity = identify(child.pid)
        assert identity is not None
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        monkeypatch.setattr(psutil.Process, "status", status)
        assert not identity.is_alive()


def test_a_failure_of_psutil_by_chance_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice in a row changes nothing: this very process is found."""
    me = identify(os.getpid())
    assert me is not None
    real, outcomes = psutil.Process.create_time, iter([RuntimeError(), psutil.AccessDenied(1)])

    def create_time(self: psutil.Process) -> float:
        for error in outcomes:
            raise error
        return real(self)

    monkeypatch.setattr(psutil.Process, "create_time", create_time)
    assert me.send(signal.SIGCONT)


async def wait_for_last(head_phase: str, *, seconds_ago: float) -> bool:
    """Whether the last of two ranks gets its start line while nobody says whether rank 0 listens."""
    plan = EpochPlan(1, ("a:1", "b:2"), "", (), Path("/"), {}, 1.0, 1.0)
    epoch = ring_epoch.RingEpoch(plan, lambda name: None, lambda: None)  # type: ignore[arg-type, return-value]
    written = asyncio.Event()

    async def write_line(line: str) -> None:
        written.set()

    for rank in epoch.ranks:
        child = SimpleNamespace(exit_code=None, identity=SimpleNamespace(pid=1), write_line=write_line)
        rank.child = child  # type: ignore[assignment]
    epoch.ranks[0].phase, epoch.ranks[0].phase_since = head_phase, time.monotonic() - seconds_ago
    starting = asyncio.create_task(epoch._start_last())
    for _ in range(5):
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    return written.is_set()


@pytest.mark.usefixtures("failing")
def test_no_start_hangs_where_psutil_does_not_say_who_listens() -> None:
    """A rank 0 that has long been connecting listens; one that still starts does not."""
    assert asyncio.run(wait_for_last("connecting", seconds_ago=60))
    assert not asyncio.run(wait_for_last("connecting", seconds_ago=0))
    assert not asyncio.run(wait_for_last("starting", seconds_ago=60))


@pytest.mark.parametrize(
    ("wanted", "reached"), [(2048, 2048), (65_536, 10_240), (10_240, 10_240)], ids=["usual", "above", "equal"]
)
def test_a_limit_of_files_that_macos_refuses_ends_at_what_it_grants(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: int, reached: int
) -> None:
    """The hard limit says unlimited, and more than OPEN_MAX is an invalid argument all the same."""
    limits = [256, resource.RLIM_INFINITY]

    def set_limits(which: int, pair: tuple[int, int]) -> None:
        if pair[0] > 10_240:
            raise ValueError("current limit exceeds maximum limit")
        limits[:] = pair

    monkeypatch.setattr(resource, "getrlimit", lambda which: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", set_limits)
    keys = dict.fromkeys(("FILE_DESCRIPTOR_SOFT_LIMIT", "FILE_DESCRIPTOR_HARD_LIMIT"), str(wanted))
    settings = load_settings(keys, root=tmp_path, environ={})
    message = raise_descriptor_limits(settings)
    assert limits == [reached, resource.RLIM_INFINITY]
    assert (message is not None) == (reached < wanted)


MOUNTS = """\
/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
devfs on /dev (devfs, local, nobrowse)
/dev/disk3s5 on /System/Volumes/Data (apfs, local, journaled, nobrowse, protect, root data)
map auto_home on /System/Volumes/Data/home (autofs, automounted, nobrowse)
//anna@nas/files on /Volumes/files of anna (smbfs, nodev, nosuid, mounted by anna)
"""


def test_what_is_mounted_on_a_mac_is_read_from_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks in a name, kinds of file systems; a network one is refused for the spool by its kind."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=MOUNTS))
    assert FileSystem().mounts() == [
        (Path("/"), "apfs"),
        (Path("/dev"), "devfs"),
        (Path("/System/Volumes/Data"), "apfs"),
        (Path("/System/Volumes/Data/home"), "autofs"),
        (Path("/Volumes/files of anna"), "smbfs"),
    ]


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("mount", 10)])
def test_a_start_does_without_what_a_command_of_macos_does_not_tell(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """mount that hangs at a dead server, sysctl that is not there."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", fail)
    assert FileSystem().mounts() == []
    assert FileSystem().boot_id() is None


@pytest.mark.parametrize("key", [None, "key"])
def test_an_accept_empties_the_cache_of_the_drive_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str | None
) -> None:
    """With a key, too: its record only has to be on the disk before the request."""
    commands: list[int] = []
    synced: list[bool] = []  # of each plain fsync: is it a file?

    def control(fd: int, command: int) -> int:
        commands.append(command)
        return 0

    spool = Spool.open(tmp_path)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(stat.S_ISREG(os.fstat(fd).st_mode)))
    spool.submit(make_request(), key)
    assert sum(FLUSH_MS[command] for command in commands) == 18
    assert commands == ([BARRIERFSYNC] if key else []) + [FULLFSYNC]
    assert synced == [True] * len(commands)
    if key:  # a retry makes sure
        commands.clear()
        spool.submit(make_request(), key)
        assert commands == [BARRIERFSYNC] * 3 + [FULLFSYNC]


def test_a_disk_without_the_command_gets_a_plain_fsync(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Any other error is one of the disk."""
    errors = [errno.ENOTSUP, errno.EIO]
    synced: list[int] = []

    def fail(fd: int, command: int) -> int:
        raise OSError(errors.pop(0), "fcntl")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "fcntl", fail)
    monkeypatch.setattr(os, "fsync", synced.append)
    FileSystem().sync_folder(tmp_path)
    assert len(synced) == 1
    with pytest.raises(OSError, match="fcntl"):
        FileSystem().sync_folder(tmp_path)


PRODUCT = ("config", "spool", "prompts", "frontdoor", "distributed", "cluster")
LINUX_ONLY = {
    "os": "sched_getaffinity sched_setaffinity sched_setscheduler eventfd memfd_create pidfd_open fdatasync "
    "posix_fadvise posix_fallocate splice copy_file_range getrandom setns unshare getxattr setxattr pipe2 "
    "getresuid setresuid waitid O_TMPFILE O_DIRECT O_PATH O_NOATIME RTLD_DEEPBIND",
    "socket": "MSG_NOSIGNAL SOCK_CLOEXEC SOCK_NONBLOCK SO_PEERCRED TCP_KEEPIDLE TCP_USER_TIMEOUT TCP_INFO "
    "TCP_QUICKACK TCP_DEFER_ACCEPT TCP_CORK AF_NETLINK AF_PACKET SO_BINDTODEVICE",
    "select": "epoll",
    "signal": "sigtimedwait sigwaitinfo SIGRTMIN SIGPWR SIGSTKFLT pidfd_send_signal",
    "mmap": "MAP_POPULATE MADV_HUGEPAGE MADV_NOHUGEPAGE MADV_DONTDUMP",
    "resource": "prlimit RUSAGE_THREAD",
    "time": "CLOCK_BOOTTIME",
}


def test_names_that_darwin_lacks_are_looked_for_before_they_are_used() -> None:
    """A file that uses one asks for it by name (hasattr, getattr); else a start ends in a traceback."""
    files = [ROOT / "server.py", ROOT / "api.py"]
    files += [path for room in PRODUCT for path in (ROOT / room).rglob("*.py")]
    found = []
    for path in files:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        asked = {node.value for node in nodes if isinstance(node, ast.Constant)}
        found += [
            f"{path.relative_to(ROOT)}:{node.lineno} {node.value.id}.{node.attr}"
            for node in nodes
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.attr in LINUX_ONLY.get(node.value.id, "").split()
            and node.attr not in asked
        ]
    assert not found


# By GiB: total bytes, then free, inactive and speculative pages of vm_stat. 16 and 24 were recorded on Macs
# in use (powerlevel10k issue 1181, HMCL pull request 4876), 32 is made up in their proportions.
MACS_IN_USE = {
    16: (17_179_869_184, 61_996, 377_102, 0),
    24: (25_769_803_776, 3857, 443_760, 1075),
    32: (34_359_738_368, 61_204, 803_377, 21_556),
}


@pytest.mark.parametrize("gib", MACS_IN_USE)
def test_two_macs_in_use_hold_the_default_model_from_their_commands_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gib: int
) -> None:
    """From what vm_stat and sysctl print to the layers of each rank; no MLX is there to be asked."""
    total, *pages = MACS_IN_USE[gib]
    lines = (f"{name}: {num}." for name, num in zip(("free", "inactive", "speculative"), pages, strict=True))
    said = {
        "vm_stat": "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        + "\n".join(f"Pages {line}" for line in lines),
        "hw.memsize": f"{total}\n",
        "iogpu.wired_limit_mb": "0\n",
        "machdep.cpu.brand_string": "Apple M2\n",
    }
    monkeypatch.setattr(facts, "run", lambda command: said.get(command[-1], ""))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    answer = facts.collect({"worker_dir": str(tmp_path), "environment": str(tmp_path / "venv")})
    assert 0.25 < answer["free_memory_bytes"] / answer["total_memory_bytes"] < 0.5
    cluster = Cluster((Host("localhost", None, "10.0.0.1", 1), Host("mac2", "mac2", "10.0.0.2", 1)))
    told = [make_facts(host, answer, answer["unix_time"], answer["unix_time"]) for host in cluster.hosts]
    settings = load_settings({}, root=tmp_path, environ={})
    layout = choose_layout(settings, make_default_source(), measure_rooms(cluster, told, {}))
    assert layout.counts == (13, 14)
    assert layout.attention_bytes == NUM_SCORE_ARRAYS * 512 * 4096 * 16 * 2
    assert 16e9 < sum(share.weights_bytes for share in layout.ranks) < 17.5e9
    for room, share in zip(layout.rooms, layout.ranks, strict=True):
        beside = RANK_BYTES + layout.attention_bytes
        assert share.weights_bytes + share.kv_bytes + beside < total * 2 // 3
        assert room.usable_bytes == total * 2 // 3 - beside
    assert list(find_short_hosts(layout)) == (["localhost", "mac2"] if gib < 32 else [])

"""Lets every Python that has this folder in PYTHONPATH see a Mac: its limits and failures.

No /proc, no names that Linux alone has, no epoll; paths of sockets up to 103 bytes; F_FULLFSYNC, which takes
18 ms; 256 files, and never more than 10240; psutil that fails at random for processes of others, and always
for connections. psutil itself, MLX and the kernel are those of Linux.
"""

from __future__ import annotations

import asyncio  # noqa: F401 - before Linux's names are gone
import fcntl
import os
import random
import resource
import select
import signal
import socket
import sys
import sysconfig
import time
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

import psutil

FULLFSYNC, BARRIERFSYNC = 51, 85
MAX_SOCKET_PATH = 103
OPEN_MAX = 10_240
FAILURE_SHARE = 0.2
LACKING = {
    os: "sched_getaffinity sched_setaffinity eventfd memfd_create pidfd_open posix_fadvise splice",
    socket: "SO_PEERCRED TCP_KEEPIDLE TCP_USER_TIMEOUT TCP_INFO TCP_QUICKACK AF_NETLINK AF_PACKET",
    select: "epoll",
    signal: "sigtimedwait sigwaitinfo SIGRTMIN SIGPWR",
    resource: "prlimit RUSAGE_THREAD",
    time: "CLOCK_BOOTTIME",
}


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse what macOS refuses, whoever asks but psutil."""
    if event in ("open", "os.listdir", "os.scandir"):
        if str(arguments[0]).startswith(("/proc/", "/sys/")) and not comes_from("psutil", "_pslinux"):
            raise FileNotFoundError(2, "No such file or directory", str(arguments[0]))
    elif event in ("socket.bind", "socket.connect", "socket.sendto"):
        address = arguments[1]
        if isinstance(address, (str, bytes)) and len(os.fsencode(address)) > MAX_SOCKET_PATH:
            raise OSError("AF_UNIX path too long")


def comes_from(*modules: str) -> bool:
    """Whether code of these modules is among the callers."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").rpartition(".")[2] not in modules:
        frame = frame.f_back
    return frame is not None


def control(fd: int, command: int, argument: Any = 0, _real: Callable[..., Any] = fcntl.fcntl) -> Any:
    """fcntl with Apple's two commands."""
    if command not in (FULLFSYNC, BARRIERFSYNC):
        return _real(fd, command, argument)
    time.sleep(0.018 if command == FULLFSYNC else 0)
    os.fsync(fd)
    return 0


def set_limit(which: int, limits: tuple[int, int], _real: Callable[..., None] = resource.setrlimit) -> None:
    """setrlimit with OPEN_MAX."""
    if which == resource.RLIMIT_NOFILE and limits[0] > OPEN_MAX:
        raise ValueError("current limit exceeds maximum limit")
    _real(which, limits)


def fail_at_random(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of psutil.Process fail now and then, for other processes (psutil issues 1901, 2116)."""

    def call(self: psutil.Process, *arguments: Any, **options: Any) -> Any:
        if self.pid != os.getpid() and chance.random() < FAILURE_SHARE:
            raise chance.choice([psutil.AccessDenied(self.pid), RuntimeError("proc_pidinfo() failed")])
        return method(self, *arguments, **options)

    return call


def refuse(*_: object, **__: object) -> None:
    """What needs root on macOS."""
    raise psutil.AccessDenied(1)


sysconfig.get_config_vars()  # read by the platform's name
proxies: Any = ModuleType("_scproxy")  # what urllib asks on macOS
proxies._get_proxies = proxies._get_proxy_settings = dict
sys.modules["_scproxy"] = proxies
chance = random.Random(os.getpid())
for module, names in LACKING.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for name in ("create_time", "cmdline", "environ", "cpu_times", "memory_info", "status", "children"):
    setattr(psutil.Process, name, fail_at_random(getattr(psutil.Process, name)))
for owner, name, fake in (
    (psutil, "net_connections", refuse),
    (psutil.Process, "net_connections", refuse),
    (fcntl, "fcntl", control),
    (fcntl, "F_FULLFSYNC", FULLFSYNC),
    (resource, "setrlimit", set_limit),
):
    setattr(owner, name, fake)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
sys.addaudithook(watch)
sys.platform = "darwin"

"""Checks over HTTP every few seconds whether a front door still answers.

A front door that hangs answers nothing and uses no processor time. An overloaded one uses some, and gets
several times as long. Knows one path that every front door answers, and takes any byte for an answer; knows
nothing else of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import psutil

from cluster.processes import PSUTIL_ERRORS, ProcessIdentity

SILENCE_LIMIT_S = 15.0
NUM_ASKED_PER_LIMIT = 3
# Checks in a row without an answer after which a busy front door counts as silent.
NUM_BUSY_SILENCES = 4
IDLE_CPU_SHARE = 0.02
LATE_S = 1.0


async def wait_for_silence(identity: ProcessIdentity, address: tuple[str, int], limit_s: float) -> str:
    """Check until the process counts as silent; a sentence for the log and the status."""
    num_silences = 0
    while True:
        await asyncio.sleep(limit_s / NUM_ASKED_PER_LIMIT)
        cpu_s, asked_at = read_cpu_s(identity.pid), time.monotonic()
        has_answered = await answers(address, limit_s)
        if has_answered or time.monotonic() - asked_at > limit_s + LATE_S:
            num_silences = 0  # late: we were stopped ourselves, and missed the answer
            continue
        num_silences += 1
        is_idle = read_cpu_s(identity.pid) - cpu_s < IDLE_CPU_SHARE * limit_s
        if (is_idle and not waits_for_disk(identity.pid)) or num_silences >= NUM_BUSY_SILENCES:
            return f"the front door gave no answer for {num_silences * limit_s:.0f} s"


async def answers(address: tuple[str, int], limit_s: float) -> bool:
    """Whether an answer comes in time; any error but a timeout counts as an answer."""
    host, port = address
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(limit_s):
            reader, writer = await asyncio.open_connection(host, port)
            shown = f"[{host}]" if ":" in host else host
            writer.write(f"GET /livez HTTP/1.1\r\nHost: {shown}\r\nConnection: close\r\n\r\n".encode())
            await reader.read(1)
    except TimeoutError:
        return False
    except OSError:  # reset by a process that ended, or no descriptor left here
        return True
    finally:
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.transport.abort()
    return True


def read_cpu_s(pid: int) -> float:
    """Processor time of a process; 0 if it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except PSUTIL_ERRORS:
        return 0.0
    return float(times.user + times.system)


def waits_for_disk(pid: int) -> bool:
    """Whether it is in an uninterruptible system call, as with a disk that does not answer."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_DISK_SLEEP)
    except PSUTIL_ERRORS:
        return False

"""One part of the self-test as a process: `python -m distributed.self_test PART TASK`.

The settings come from the environment, as a rank's do, and the BLAS loads before MLX. A part leads a process
group of its own. When its standard input ends, the command that started it is gone: then the whole group
ends, a second process of a part alone.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import threading
from typing import Any

from config.limits import count_cores
from distributed.backends.cpu.blas import load_fast_blas
from distributed.backends.mac import drop_fast_synch
from distributed.self_test.reporting import Report, Task

# Part or second process -> module and function.
PARTS = {
    "disk": ("disk", "run"),
    "bell-peer": ("disk", "run_bell_peer"),
    "ring": ("ring_laps", "run"),
    "ring-peer": ("ring_laps", "run_peer"),
    "parity": ("parity", "run"),
    "model": ("steps", "make_model"),
    "steps": ("steps", "run"),
    "memory": ("steps", "run_memory"),
    "sharing": ("sharing", "run"),
    "sharing-peer": ("sharing", "run_peer"),
    "speed": ("serving", "run"),
}


def main(name: str, text: str) -> None:
    """Run the part."""
    is_leader = os.getpgrp() == os.getpid()
    threading.Thread(target=_end_with_parent, args=(is_leader,), daemon=True).start()
    logging.basicConfig(level=logging.ERROR)
    task = Task.from_json(text)
    if name not in ("disk", "bell-peer"):
        drop_fast_synch()
        # MLX comes after the BLAS.
        load_fast_blas(task.settings.cpu_blas, count_cores())
    module, function = PARTS[name]
    getattr(importlib.import_module(f"distributed.self_test.{module}"), function)(task, Report(_write))


def _write(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _end_with_parent(is_leader: bool) -> None:
    sys.stdin.buffer.read()
    if is_leader:
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
    # After a ring, MLX's threads may hang in the interpreter's normal exit (mlx 0.32.4).
    os._exit(0)

"""`submit FILE.jsonl`: puts many requests straight into the spool, and prints their answers on demand.

One JSON object per line, with the fields of a prompt file (spool/prompt_files.py). Checks all lines before it
submits the first. The requests are for the running service's model, else for the settings' model. Needs no
front door and no running service: requests wait for one. Prints one JSON object per line.
"""

from __future__ import annotations

import contextlib
import json
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from cluster.errors import ClusterError
from cluster.supervisor.service import read_service
from cluster.terminal import Terminal
from config import Settings
from spool import Request, Spool, SpoolError, SpoolFull, make_door_name, make_id
from spool.prompt_files import PromptFileDefaults, read_prompt

LOOK_INTERVAL_S = 1.0


def submit_file(settings: Settings, terminal: Terminal, path: Path, *, waits: bool) -> int:
    """Submit every line; with `waits`, print each answer as it comes. 0, or 1 if an answer is an error.

    Raises:
        ClusterError: a line is wrong (then none was submitted), or the spool refuses.
    """
    service = read_service(settings)
    model = service.ring.get("model") if service.holder else None
    defaults = PromptFileDefaults(model or settings.model_name, settings.default_max_tokens)
    requests = read_lines(path, defaults)
    try:
        spool = open_spool(settings)
        submit_all(spool, requests, terminal)
        if service.holder is None:
            print("Nothing is running: answers come after ./launch.sh start", file=sys.stderr)
        return wait_for_all(spool, [request.id for request in requests], terminal) if waits else 0
    except SpoolError as error:
        raise ClusterError(f"the spool refuses: {error}") from error


def open_spool(settings: Settings) -> Spool:
    """Open the spool of STATE_DIR with the settings' limits. Raises SpoolError."""
    return Spool.open(
        settings.spool_dir,
        durability=settings.spool_durability,
        max_depth=settings.max_queue_depth,
        max_bytes=settings.max_queue_mb * 2**20,
    )


def read_lines(path: Path, defaults: PromptFileDefaults) -> list[Request]:
    """The requests of a file; empty lines are skipped.

    Raises:
        ClusterError: naming the line, without its text.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ClusterError(f"{path} cannot be read: {error.strerror}") from None
    requests = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            requests.append(read_prompt(f"{make_id()}.json", line, defaults))
        except ValueError as error:
            raise ClusterError(f"{path}:{number}: {error}") from None
    return requests


def submit_all(spool: Spool, requests: Sequence[Request], terminal: Terminal) -> None:
    """Submit in order; wait while the queue is full."""
    with spool.listen(make_door_name()) as bell:
        for number, request in enumerate(requests, 1):
            while True:
                try:
                    spool.submit(request)
                    break
                except SpoolFull:
                    terminal.live(f"the queue is full: {number - 1} of {len(requests)} submitted")
                    select.select([bell], [], [], LOOK_INTERVAL_S)
                    bell.drain()
            terminal.line(json.dumps({"number": number, "id": request.id}))


def wait_for_all(spool: Spool, ids: Sequence[str], terminal: Terminal) -> int:
    """Print each answer when it comes; 1 if one is an error."""
    waiting, num_errors = dict.fromkeys(ids), 0
    with spool.listen(make_door_name()) as bell:
        while waiting:
            for request_id in list(waiting):
                result = spool.read_result(request_id)
                if result is None:
                    continue
                del waiting[request_id]
                num_errors += result.error is not None
                terminal.line(json.dumps(make_answer(result), ensure_ascii=False))
            if waiting:
                terminal.live(f"{len(ids) - len(waiting)} of {len(ids)} answered")
                select.select([bell], [], [], LOOK_INTERVAL_S)
                with contextlib.suppress(OSError):
                    bell.drain()
    return 1 if num_errors else 0


def make_answer(result: Any) -> dict[str, Any]:
    """An answer as JSON."""
    answer = {"id": result.id, "finish_reason": result.finish_reason, "text": result.text}
    answer["usage"] = msgspec.structs.asdict(result.usage)
    return answer | ({"error": result.error} if result.error else {})

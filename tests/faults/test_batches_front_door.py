"""Row 37 of the faults, without a ring: the front door of a batch is killed again and again, the next one
goes on, and no line runs twice.
"""

import json
import socket
import threading
import time
from pathlib import Path

from spool import Spool
from spool.batches import Batch, BatchStore, make_batch_id, make_record
from tests.fakes.fake_engine import FakeEngine
from tests.services.api_process import api_on
from tests.services.frontdoor_service import make_settings

NUM_LINES, NUM_KILLS, LIMIT_S = 400, 4, 60.0


def begin(store: BatchStore) -> Batch:
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": f"[paced] {number}", "max_tokens": 10, "n": 1 + number % 2},
        }
        for number in range(NUM_LINES)
    ]
    with store.files.begin() as upload:
        upload.append("\n".join(map(json.dumps, lines)).encode())
        file = upload.publish(make_record("lines.jsonl", "batch", owner=""))
    now = time.time()
    return store.create(Batch(make_batch_id(), "/v1/completions", file.id, "24h", now, now + 86_400))


def wait_for(store: BatchStore, batch_id: str, num_lines: int) -> None:
    """Wait until so many lines have ended, or the batch has."""
    deadline, pause = time.monotonic() + LIMIT_S, threading.Event()
    while True:
        view = store.find(batch_id)
        assert view is not None
        if view.state.has_ended if num_lines == NUM_LINES else view.state.num_completed >= num_lines:
            return
        assert time.monotonic() < deadline, view
        pause.wait(0.02)


def test_each_line_runs_once_whoever_runs_the_batch(tmp_path: Path) -> None:
    """Half of them have two answers; a kill may come between the two submits."""
    settings = make_settings(tmp_path)
    spool = Spool.open(settings.spool_dir, durability="process")
    store = BatchStore(spool)
    with (
        FakeEngine(spool, settings.run_dir, max_open=16) as engine,
        socket.create_server(("127.0.0.1", 0)) as listening,
    ):
        batch_id = begin(store).id
        for life in range(1, NUM_KILLS + 2):
            with api_on(listening, settings) as (process, _):
                wait_for(store, batch_id, NUM_LINES * life // (NUM_KILLS + 1))
                process.kill()
        view = store.find(batch_id)
        assert view is not None
        assert (view.state.status, view.state.num_completed) == ("completed", NUM_LINES)
        assert view.state.output_file_id is not None
        text = store.files.path(view.state.output_file_id).read_text("utf-8")
        assert [json.loads(line)["custom_id"] for line in text.splitlines()] == list(
            map(str, range(NUM_LINES))
        )
        ids = [request.id for request in engine.claimed]
        assert len(ids) == len(set(ids)) == NUM_LINES * 3 // 2

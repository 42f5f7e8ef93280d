"""Records the steps of some seconds on request, for a timeline.

`./launch.sh trace` writes run/trace-request.json, {"id", "seconds"}, beside ring.json. Rank 0 looks for it
once a second, records the times that returning frames carry for every stage, and writes run/trace.json. A new
request ends the recording before it; one of 0 seconds only ends it. The ring carries nothing extra for it.
Knows nothing of how a timeline is drawn.

    {"id", "epoch", "begin_us", "end_us", "ranks": [{"rank", "host", "first_layer", "num_layers"}],
     "steps": [{"step", "table", "is_prefill", "num_rows", "num_tokens", "sent_us", "start_us": [by rank],
                "busy_us": [by rank]}]}

All times are microseconds of each rank's own monotonic clock; those of other ranks than 0 are cut to 31 bits
in the frame.
"""

from __future__ import annotations

import os
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

from config.disk_trouble import DiskTroubles
from config.run_files import read_json, write_json
from distributed.engine.sequence import Microbatch
from distributed.ring.frame import Frame
from distributed.ring.handshake import RankInfo
from distributed.ring.ring import clock_us

REQUEST_NAME, RECORD_NAME = "trace-request.json", "trace.json"
MAX_SECONDS = 600
MAX_STEPS = 200_000


class StepTrace:
    """Records steps while a request asks for it."""

    def __init__(
        self, run_dir: Path, epoch: int, num_ranks: int, troubles: DiskTroubles | None = None
    ) -> None:
        self._run_dir, self._epoch, self._num_ranks = run_dir, epoch, num_ranks
        self._troubles = troubles or DiskTroubles()
        self._unwritten: dict[str, Any] | None = None
        self._id = ""
        self._begin_us = self._end_us = 0
        self._is_on = False
        self._sent_us: dict[int, int] = {}
        self._steps: list[dict[str, Any]] = []

    def tick(self, ranks: Items[RankInfo]) -> None:
        """Start a requested recording, end one that is over; called once a second."""
        seconds, wanted = self._look()
        is_over = clock_us() >= self._end_us or len(self._steps) >= MAX_STEPS
        if self._is_on and (is_over or seconds is not None):
            self._end(ranks)
        if self._unwritten is not None:
            self._write(self._unwritten)
        if seconds:
            self._id, self._is_on = wanted, True
            self._begin_us = clock_us()
            self._end_us = self._begin_us + int(seconds * 1e6)

    def sent(self, number: int) -> None:
        """Note that rank 0 sends a microbatch now."""
        if self._is_on:
            self._sent_us[number] = clock_us()

    def finished(self, microbatch: Microbatch, frame: Frame, start_us: int) -> None:
        """Note that rank 0's own stage, which began at `start_us`, has finished a microbatch."""
        if not self._is_on:
            return
        sent_us = self._sent_us.pop(microbatch.number, None)
        if sent_us is None:  # it was in flight when the recording began
            return
        others = range(1, self._num_ranks)
        self._steps.append(
            {
                "step": microbatch.number,
                "table": microbatch.table,
                "is_prefill": microbatch.is_prefill,
                "num_rows": len(microbatch.sequences),
                "num_tokens": sum(len(row.token_ids) for row in microbatch.rows),
                "sent_us": sent_us,
                "start_us": [start_us, *(frame.start_us(rank) for rank in others)],
                "busy_us": [clock_us() - start_us, *(frame.busy_us(rank) for rank in others)],
            }
        )

    def _look(self) -> tuple[float | None, str]:
        """Read and remove the request file; return its seconds and id, (None, "") without a valid one."""
        path = self._run_dir / REQUEST_NAME
        asked = read_json(path)
        if asked is None:
            return None, ""
        with self._troubles.guard(REQUEST_NAME):
            path.unlink(missing_ok=True)
        if os.path.exists(path):  # it cannot be removed: it would count again each second
            return None, ""
        seconds = asked.get("seconds")
        if not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_SECONDS:
            return None, ""
        return float(seconds), str(asked.get("id", ""))

    def _end(self, ranks: Items[RankInfo]) -> None:
        names = ("rank", "host", "first_layer", "num_layers")
        self._unwritten = {
            "id": self._id,
            "epoch": self._epoch,
            "begin_us": self._begin_us,
            "end_us": min(clock_us(), self._end_us),
            "ranks": [{name: getattr(info, name) for name in names} for info in ranks],
            "steps": self._steps,
        }
        self._is_on, self._steps, self._sent_us = False, [], {}

    def _write(self, record: dict[str, Any]) -> None:
        """Write a record; if the disk refuses, keep it for the next tick."""
        with self._troubles.guard(RECORD_NAME):
            write_json(self._run_dir / RECORD_NAME, record)
            self._unwritten = None

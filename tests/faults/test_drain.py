"""Row 28 with a real ring: SIGTERM with a short limit puts back what runs, and the next start goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from spool import EntryName
from tests.checkpoints import make_checkpoint
from tests.ring_service import RingService

pytestmark = pytest.mark.slow

PROMPT = [(7 * j) % 240 for j in range(9)]
NUM_TOKENS = 600
NUM_SEEN = 20


def test_what_does_not_end_in_time_is_put_back_and_goes_on(tmp_path: Path) -> None:
    """Every rank exits with 0, the attempt is not counted, and the answer is the undisturbed one.

    One search for the client's id in rank 0's log tells the request's life, and nothing of its content.
    """
    model = make_checkpoint(tmp_path / "tiny-llama", "llama")
    with RingService(tmp_path / "state", model, 2, shutdown_timeout=0.1) as ring:
        whole = ring.ask(ring.request(PROMPT, max_tokens=NUM_TOKENS))[0]
        request = replace(ring.request(PROMPT, max_tokens=NUM_TOKENS), client_id="job-7")
        spool = ring.spool()
        with spool.listen("door-test") as bell:
            spool.submit(request)
            reader = spool.open_log(request.id)
            while reader.next_index < NUM_SEEN:
                bell.drain()
                reader.read_new()
            assert ring.stop() == [0, 0]
            assert (spool.state(request.id), spool.read_result(request.id)) == ("waiting", None)
            (name,) = map(EntryName.parse, os.listdir(spool.folder.incoming))
            assert name is not None
            assert (name.id, name.attempt, name.is_suspect) == (request.id, 1, False)
            num_kept = len(spool.open_log(request.id).read_new())
            assert NUM_SEEN <= num_kept < NUM_TOKENS
            ring.kill()
            ring.start()
            result = ring.wait(spool, bell, request.id)
        life = [line for line in ring.log(0).splitlines() if "job-7" in line]
    assert (result.token_ids, result.text) == (whole.token_ids, whole.text)
    assert result.usage.completion_tokens == NUM_TOKENS
    assert all(request.id in line for line in life)
    assert "1 answers stay in the spool" in ring.log(0)
    for line, part in zip(
        life,
        (
            f"begins: {len(PROMPT)} prompt tokens, attempt 1",
            "is put back",
            f"attempt 1, goes on after {num_kept} tokens",
            f"length, {len(PROMPT)} + {NUM_TOKENS} tokens",
        ),
        strict=True,
    ):
        assert part in line

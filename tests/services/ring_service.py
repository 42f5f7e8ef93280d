"""A real ring for tests: server.py processes joined by pipes and sockets, and a spool to ask it through."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cluster.ports import free_ring_ports
from prompts.tokenizer import tokenizer_hash
from spool import Request, Result, SamplingParams, Spool, make_door_name

ROOT = Path(__file__).resolve().parent.parent.parent
SECRET = "5ec2e7" * 8
START_SECONDS = 180.0
ANSWER_SECONDS = 180.0

free_ports = partial(free_ring_ports, "127.0.0.1")  # by their number


def make_token_request(model: Path, token_ids: Sequence[int], **params: Any) -> Request:
    """Make a request of token ids for a model; `params` are those of SamplingParams."""
    return Request(
        id=uuid.uuid4().hex,
        params=SamplingParams(**{"max_tokens": 16, **params}),
        text=None,
        token_ids=tuple(token_ids),
        tokenizer_hash=tokenizer_hash(model),
        model=model.name,
        created_unix=time.time(),
    )


class RingService:
    """Ranks of one ring as child processes; use it as a context manager."""

    def __init__(self, state: Path, model: Path, num_ranks: int, **settings: Any) -> None:
        self.state, self.model, self.num_ranks = state, model, num_ranks
        self.settings = {
            "STATE_DIR": str(state),
            "MODEL_REPO": str(model),
            "SPOOL_DURABILITY": "process",
            "BLAS_THREADS": "1",
            "LOCAL_RANKS": str(num_ranks),
            **{key.upper(): str(value) for key, value in settings.items()},
        }
        self.program = ROOT / "server.py"
        self.ranks: list[subprocess.Popen[str]] = []
        self.epoch = 0
        self.hosts: list[str] = []
        state.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> RingService:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def spawn(
        self,
        *,
        hosts: Sequence[str] | None = None,
        hosts_seen_by: dict[int, Sequence[str]] | None = None,
        secrets: Sequence[str] | None = None,
        overrides: dict[int, dict[str, str]] | None = None,
        prefixes: dict[int, Sequence[str]] | None = None,
    ) -> None:
        """Start the processes without waiting.

        Args:
            hosts: address:port by rank; free ports on this machine by default.
            hosts_seen_by: what single ranks are told instead, to put something between neighbours.
            overrides: settings of single ranks.
            prefixes: what single ranks' commands begin with, such as `ip netns exec NAME`.
        """
        self.epoch += 1
        self.hosts = list(hosts or (f"127.0.0.1:{port}" for port in free_ports(self.num_ranks)))
        self.ranks = []
        for rank in range(self.num_ranks):
            command = [sys.executable, str(self.program), "--rank", str(rank)]
            environment = {**os.environ, **self.settings, **(overrides or {}).get(rank, {})}
            with (self.state / f"rank-{rank}.log").open("a") as log:
                child = subprocess.Popen(
                    [*(prefixes or {}).get(rank, ()), *command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment,
                    text=True,
                )
            line = {
                "epoch": self.epoch,
                "rank": rank,
                "hosts": list((hosts_seen_by or {}).get(rank, self.hosts)),
                "secret": secrets[rank] if secrets else SECRET,
            }
            assert child.stdin is not None
            child.stdin.write(json.dumps(line) + "\n")
            child.stdin.flush()
            self.ranks.append(child)

    def start(self) -> None:
        """Start the processes and wait until rank 0 is ready."""
        self.spawn()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until rank 0 says that it is ready."""
        lines = self.ranks[0].stdout
        assert lines is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            ready, _, _ = select.select([lines], [], [], max(0.0, deadline - time.monotonic()))
            line = lines.readline() if ready else ""
            if not line:
                break
            if json.loads(line).get("phase") == "ready":
                return
        raise AssertionError(f"the ring is not ready:\n{self.log(0)}")

    def stop(self) -> list[int]:
        """Ask rank 0 to stop; return all exit codes."""
        self.ranks[0].send_signal(signal.SIGTERM)
        return [rank.wait(20) for rank in self.ranks]

    def end(self) -> None:
        """Stop the ring and wait for it, so that another can be spawned."""
        self.stop()
        self.kill()

    def kill(self) -> None:
        """End what still runs."""
        for rank in self.ranks:
            if rank.poll() is None:
                rank.kill()
            rank.wait(10)
            for pipe in (rank.stdin, rank.stdout):
                if pipe is not None:
                    pipe.close()

    def log(self, rank: int) -> str:
        return (self.state / f"rank-{rank}.log").read_text()

    def spool(self) -> Spool:
        return Spool.open(self.state / "spool", durability="process")

    def request(self, token_ids: Sequence[int], **params: Any) -> Request:
        """Make a request of token ids for this ring's model."""
        return make_token_request(self.model, token_ids, **params)

    def ask(self, *requests: Request) -> list[Result]:
        """Submit requests and wait for all results, in order."""
        spool = self.spool()
        with spool.listen(make_door_name()) as bell:
            for request in requests:
                spool.submit(request)
            return [self.wait(spool, bell, request.id) for request in requests]

    def begin(self, token_ids: Sequence[int], max_tokens: int) -> str:
        """Submit a request and wait for its first tokens; return its id."""
        request = self.request(token_ids, max_tokens=max_tokens)
        self.spool().submit(request)
        self.read_until(request.id, 1)
        return request.id

    def read_until(self, request_id: str, num_tokens: int) -> None:
        """Wait until the log of a request holds so many tokens."""
        spool, deadline = self.spool(), time.monotonic() + ANSWER_SECONDS
        reader = spool.open_log(request_id)
        with spool.listen(make_door_name()) as bell:
            while reader.next_index < num_tokens:
                assert time.monotonic() < deadline, self.log(0)
                select.select([bell], [], [], 0.2)
                bell.drain()
                reader.read_new()

    def wait_for(self, request_id: str) -> Result:
        """Wait for the result of what was begun."""
        spool = self.spool()
        with spool.listen(make_door_name()) as bell:
            return self.wait(spool, bell, request_id)

    def wait(self, spool: Spool, bell: Any, request_id: str) -> Result:
        """Wait for one result."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            result = spool.read_result(request_id)
            if result is not None:
                return result
            select.select([bell], [], [], 0.2)
            bell.drain()
        raise AssertionError(f"no answer:\n{self.log(0)}")

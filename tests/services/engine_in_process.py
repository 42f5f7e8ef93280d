"""The real engine in the test's own process: stages of a small model, frames, a spool and a driven clock.

    with EngineInProcess(tmp_path, model, num_ranks=2, layer_split="3,1") as service:
        request = service.request([1, 2, 3], max_tokens=8, temperature=0.7, seed=5)
        (result,) = service.ask(request)

It has the methods of `ring_service.RingService` (settings by name, `request`, `ask`, `spool`, `stop`, `kill`,
`start`), so a test of real processes becomes one of logic with another class. Rank 0's Engine, Scheduler and
spool are the product's, and so are the Worker of every other rank and the frames between them, encoded as on
a wire. What it does not prove: processes, sockets, signals, the handshake, the warm-up.

- Nothing happens between calls. `step()` is one turn of `Engine.step`: frames in flight pass all stages, and
  rank 0 receives at most one. `run_until(condition)` takes turns until the condition holds, `ask` until all
  results exist; `submit` and `cancel` only write to the spool, as a front door does.
- `clock.now` is the engine's monotonic clock. A turn takes a millisecond of it; a turn in which nothing
  arrives takes as long as the engine would have waited, and no real time. `advance(seconds)` moves it by
  hand, so poll interval, status, pings, sweeps and STEP_TIMEOUT are tested without a pause.
- `kill()` ends everything at once, as `kill -9` does, and `start()` begins the next epoch; `stop()` drains as
  SIGTERM does. With `wire.is_lost` every use of the ring raises RingLost; with `wire.is_silent` frames never
  arrive.
- To look inside: `engine`, `scheduler`, `owner`, `stages` by rank, `records(request)` (the token log),
  `status()` (ring.json). `edit(POLL_INTERVAL=5)` is an edit of live settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from concurrent.futures import Executor, Future
from functools import lru_cache
from pathlib import Path
from typing import Any

from config import Settings, load_settings
from distributed.backends.backend import StageRunner
from distributed.backends.choose import choose_backend, choose_products
from distributed.backends.stage import Stage
from distributed.engine.draw import DrawnToken
from distributed.engine.engine import Engine, EngineParts
from distributed.engine.engine_config import chunk_tokens, make_engine_limits, make_scheduler
from distributed.engine.live_settings import LiveSettings
from distributed.engine.request_source import RequestSource
from distributed.engine.sampling import Draws
from distributed.engine.status import RingStatus
from distributed.engine.token_writer import TokenWriter
from distributed.joining import Launch, describe
from distributed.rank import make_facts, make_status, open_spool, plan_here
from distributed.ring.watchdog import RankStart, Watchdog
from distributed.utils import shard_and_load
from distributed.worker import Worker
from prompts.tokenizer import load_tokenizer
from spool import Request, Result, Spool, SpoolOwner, TokenRecord
from tests.fakes.loopback_ring import DrivenClock, RingEnd, RingOfStages, Wire
from tests.services.ring_service import make_token_request

TURN_SECONDS = 0.001
# A test that takes more turns waits for something that never comes.
MAX_TURNS = 20_000


class AtOnce(Executor):
    """Runs what is submitted before `submit` returns."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - the future raises it, as a thread's does
            future.set_exception(error)
        return future


def given_draws(answers: Mapping[int, Items[int]]) -> type[Draws]:
    """Return `Draws` that give requests of these seeds these answers, where their logits are finite."""

    class GivenDraws(Draws):
        def finish(self) -> list[DrawnToken | None]:
            return [
                token
                if token is None or row.seed not in answers
                else DrawnToken(answers[row.seed][row.index])
                for token, row in zip(super().finish(), self.rows, strict=True)
            ]

    return GivenDraws


@lru_cache(maxsize=32)
def _load(
    folder: Path, rank: int, layers: tuple[range, ...], products: str | None, dtype: str | None
) -> StageRunner:
    """Load one rank's layers; tests that share a model folder share them."""
    backend = choose_backend(folder, products, rank)
    return shard_and_load(
        folder, rank, len(layers), layers=layers, backend=backend, dequantize=True, dtype=dtype
    )


class EngineInProcess:
    """A ring of one process, from settings to results; use it as a context manager."""

    def __init__(
        self, state: Path, model: Path, num_ranks: int = 1, *, dtype: str | None = None, **settings: Any
    ) -> None:
        """
        Args:
            dtype: of the weights; where it is given, MLX runs the layers.
            settings: by name, as text or numbers.
        """
        self.state, self.model, self.num_ranks = state, model, num_ranks
        self._dtype = dtype
        own = {
            "STATE_DIR": str(state),
            "MODEL_REPO": str(model),
            "SPOOL_DURABILITY": "process",
            "LOCAL_RANKS": str(num_ranks),
            **{key.upper(): str(value) for key, value in settings.items()},
        }
        state.mkdir(parents=True, exist_ok=True)
        self.settings: Settings = load_settings(own, root=state, environ={})
        self.clock = DrivenClock()
        self.compiler: Executor = AtOnce()  # of grammars; a test may replace it before a start
        self.epoch = 0
        self._is_running = False
        self._wakeup = os.pipe()

    def __enter__(self) -> EngineInProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for descriptor in self._wakeup:
            os.close(descriptor)

    def start(self) -> None:
        """Begin an epoch: unfinished requests of the one before continue."""
        self.epoch += 1
        self.wire = Wire(self.num_ranks)
        ring = RingOfStages(self.epoch, self.wire, self.clock)
        self.stages = self._load_stages()
        starts = [RankStart(self.epoch, rank, ("here:0",) * ring.size, "") for rank in range(ring.size)]
        launches = [
            Launch(start, self.settings, Watchdog(start.rank, has_supervisor=False)) for start in starts
        ]
        status = make_status(launches[0])
        status.ranks = tuple(
            describe(launch, stage, "cpu", 0.0) for launch, stage in zip(launches, self.stages, strict=True)
        )
        chunk = chunk_tokens(self.settings, choose_backend(self.model))
        self.scheduler = make_scheduler(self.settings, status, chunk, 1.0)
        self._connect(ring, launches, status)
        self.owner: SpoolOwner = open_spool(self.settings)
        self.owner.recover()
        self.bell = self.owner.listen()
        layers = tuple((info.first_layer, info.num_layers) for info in status.ranks)
        self.writer = TokenWriter(self.owner, layers, status.troubles, AtOnce())
        tokenizer = load_tokenizer(self.settings)
        facts = make_facts(status, self.model, self.stages[0], tokenizer, self.compiler)
        source = RequestSource(self.owner, self.bell, facts, self.writer, status.troubles, self.clock)
        watchdog = launches[0].watchdog
        parts = EngineParts(ring, self.stages[0], self.scheduler, source, self.writer, status, watchdog)
        self.engine = Engine(parts, make_engine_limits(self.settings), self.clock)
        self._live = LiveSettings(self.settings, self.owner, self.engine)
        status.enter("ready")
        self._is_running = True

    def step(self) -> None:
        """Take one turn of the engine's loop."""
        self.clock.advance(TURN_SECONDS)
        self.engine.step(self._wakeup[0])

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Take turns until the condition holds."""
        for _ in range(MAX_TURNS):
            if condition():
                return
            self.step()
        raise AssertionError(f"not in {MAX_TURNS} turns: {self.status()}")

    def stop(self) -> None:
        """Drain and stop, as SIGTERM makes rank 0 do; then close the spool."""
        self.engine.run(lambda: True, self._wakeup[0])
        self.kill()

    def kill(self) -> None:
        """End at once, with claimed requests still claimed; do nothing if it does not run."""
        if not self._is_running:
            return
        self._is_running = False
        for answer in self.writer.answers.values():
            answer.log.close()
        self.bell.close()
        self.owner.close()

    def advance(self, seconds: float) -> None:
        """Let time pass, then take a turn."""
        self.clock.advance(seconds)
        self.step()

    def signal(self) -> None:
        """Wake the loop, as a signal does."""
        os.write(self._wakeup[1], b"\0")

    def edit(self, **values: Any) -> None:
        """Edit live settings, as the supervisor passes them on."""
        self._live.on_settings(values)

    def spool(self) -> Spool:
        """The spool as a front door has it."""
        return Spool.open(self.settings.spool_dir, durability="process")

    def request(self, token_ids: Items[int], **params: Any) -> Request:
        """Make a request of token ids for this model."""
        return make_token_request(self.model, token_ids, **params)

    def submit(self, *requests: Request) -> None:
        """Submit requests to the spool."""
        spool = self.spool()
        for request in requests:
            spool.submit(request)

    def cancel(self, request: Request) -> bool:
        """Cancel a request, as a front door does."""
        return self.spool().cancel(request.id)

    def ask(self, *requests: Request) -> list[Result]:
        """Submit requests and run until all have ended; their results, in order."""
        self.submit(*requests)
        return self.results(*requests)

    def results(self, *requests: Request) -> list[Result]:
        """Run until all have ended; their results, in order."""
        self.run_until(lambda: all(self.result(request) for request in requests))
        return [result for request in requests if (result := self.result(request))]

    def result(self, request: Request) -> Result | None:
        """A request's result, if it has ended."""
        return self.owner.spool.read_result(request.id)

    def records(self, request: Request) -> list[TokenRecord]:
        """Read a request's token log."""
        return self.owner.spool.open_log(request.id).read_new()

    def status(self) -> dict[str, Any]:
        """Read ring.json."""
        status: dict[str, Any] = json.loads((self.settings.run_dir / "ring.json").read_text())
        return status

    def _load_stages(self) -> list[Stage]:
        products = None if self._dtype else choose_products(self.settings)
        backend = choose_backend(self.model, products)
        layers = plan_here(self.settings, self.num_ranks, backend, dequantize=True)
        stages = [
            Stage(_load(self.model, rank, layers, products, self._dtype)) for rank in range(len(layers))
        ]
        for stage in stages:
            stage.measure_kv()
        return stages

    def _connect(self, ring: RingOfStages, launches: list[Launch], status: RingStatus) -> None:
        """Make the workers of all ranks but rank 0, the first stage's first."""
        limit_seconds = self.settings.step_timeout
        for launch, stage, info in list(zip(launches, self.stages, status.ranks, strict=True))[:0:-1]:
            end = RingEnd(info.rank, self.epoch, self.wire)
            ring.workers.append((end, Worker(end, stage, launch.watchdog, limit_seconds, info)))

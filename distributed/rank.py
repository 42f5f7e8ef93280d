"""Rank 0 from start to end: join the ring, say HELLO, load, serve.

It reads the settings and owns the spool; the others (distributed/worker.py) take everything about the ring
and the model from HELLO. Every wait in here is under a limit of the watchdog.
"""

from __future__ import annotations

import logging
import signal
import socket
import time
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from config import Settings
from distributed.backends.backend import Backend
from distributed.backends.choose import choose_backend, choose_products
from distributed.backends.cpu.threads import ProductThreads
from distributed.backends.memory import check_memory
from distributed.backends.stage import Stage
from distributed.engine import tokenizers
from distributed.engine.constraints import Grammars
from distributed.engine.engine import Engine, EngineParts
from distributed.engine.engine_config import chunk_tokens, make_engine_limits, make_scheduler
from distributed.engine.live_settings import LiveSettings, apply_to_spool
from distributed.engine.request_source import ModelFacts, RequestSource
from distributed.engine.scheduler import Scheduler
from distributed.engine.status import RingStatus
from distributed.engine.token_writer import TokenWriter
from distributed.engine.warm_up import WarmUp
from distributed.joining import ROOT, AnyRing, Launch, join_ring, load_own_stage, receive
from distributed.planning.capacities import HostCapacity, longest_context
from distributed.planning.checkpoint import BadCheckpoint, read_config
from distributed.planning.layer_plan import plan_layers, split_layers, weights_hash
from distributed.planning.model_shape import read_shape, settle_windows
from distributed.planning.stage_files import WeightsMark, local_sums_file, mark_weights
from distributed.ring import handshake
from distributed.ring.frame import FLAG_READY
from distributed.ring.handshake import RankInfo, RingPlan
from distributed.ring.watchdog import RankStart, Watchdog
from distributed.warming import warm_up
from prompts.tokenizer import PromptTokenizer
from spool import Spool, SpoolOwner

logger = logging.getLogger(__name__)


def serve_rank0(
    start: RankStart,
    settings: Settings,
    watchdog: Watchdog,
    owner: SpoolOwner,
    threads: ProductThreads | None = None,
) -> None:
    """Run rank 0 until a signal asks it to stop.

    Args:
        threads: what its products run on, where there is no GPU.

    Raises:
        RingLost: the ring broke.
        RefusedStart: a rank differs.
    """
    signals = _Signals()
    launch = Launch(start, settings, watchdog, threads)
    status = make_status(launch)
    status.enter("connecting")
    ring = join_ring(launch)
    products = choose_products(settings)
    backend = choose_backend(settings.model_dir, products)
    plan = _make_plan(launch, ring, backend, products)
    _hello_lap(launch, ring, plan)
    stage, scheduler, facts = _load(launch, ring, plan, backend, status)
    recovered = owner.recover()
    if recovered:
        logger.info("%d unfinished requests of an earlier life go on", len(recovered))
    with owner.listen() as bell:
        layers = tuple((info.first_layer, info.num_layers) for info in status.ranks)
        writer = TokenWriter(owner, layers, status.troubles)
        source = RequestSource(owner, bell, facts, writer, status.troubles)
        parts = EngineParts(ring, stage, scheduler, source, writer, status, watchdog)
        engine = Engine(parts, make_engine_limits(settings))
        watchdog.on_settings(LiveSettings(settings, owner, engine).on_settings)
        logger.info("ready: %s on %d ranks, layers %s", settings.model_name, ring.size, list(plan.layers))
        logger.info("context: %s", facts.context.describe())
        engine.run(signals.has_arrived, signals.descriptor)


def _load(
    launch: Launch, ring: AnyRing, plan: RingPlan, backend: Backend, status: RingStatus
) -> tuple[Stage, Scheduler, ModelFacts]:
    """Load layers and tokenizer, wait for every other rank, and run first steps through all of them."""
    settings = launch.settings
    status.enter("loading")
    launch.watchdog.enter("loading", settings.load_timeout)
    finish_tokenizers = tokenizers.begin_loading(settings)
    stage, own = load_own_stage(launch, ring, plan, backend)
    status.ranks = _ready_lap(launch, ring, own)
    chunk = chunk_tokens(settings, backend)
    scheduler = make_scheduler(settings, status, chunk, stage.thread_gain)
    assert status.context is not None, "known since the scheduler was made"
    has_drafts = settings.speculation != "off" and not scheduler.limits.slots.has_states
    warm_up(launch, ring, stage, WarmUp(scheduler.limits, status.context.max_tokens, has_drafts))
    status.last_lap_unix = time.time()
    return stage, scheduler, make_facts(status, settings.model_dir, stage, finish_tokenizers())


def make_status(launch: Launch) -> RingStatus:
    """Make the status that rank 0 writes to ring.json."""
    start, settings = launch.start, launch.settings
    return RingStatus(
        settings.run_dir / "ring.json",
        epoch=start.epoch,
        ring_size=len(start.hosts),
        model=settings.model_name,
        settings=settings.public(),
    )


class _Signals:
    """SIGTERM and SIGINT set a flag and wake the selector."""

    def __init__(self) -> None:
        self._arrived = False
        receiver, sender = socket.socketpair()
        for end in (receiver, sender):
            end.setblocking(False)
        self._ends = (receiver, sender)
        signal.set_wakeup_fd(sender.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    @property
    def descriptor(self) -> int:
        return self._ends[0].fileno()

    def has_arrived(self) -> bool:
        return self._arrived

    def _on_signal(self, number: int, frame: Any) -> None:
        self._arrived = True


def open_spool(settings: Settings) -> SpoolOwner:
    """Open the spool and take its lock.

    Raises:
        SpoolLocked, SpoolRefused, SpoolUnavailable: told to the user by server.py.
    """
    owner = SpoolOwner(Spool.open(settings.spool_dir, durability=settings.spool_durability))
    apply_to_spool(settings, owner)
    owner.acquire()
    return owner


def _make_plan(launch: Launch, ring: AnyRing, backend: Backend, products: str | None) -> RingPlan:
    """Take the supervisor's plan where it has one, as files lie on other hosts by it; else plan here."""
    start, settings, folder = launch.start, launch.settings, launch.settings.model_dir
    dequantize, config = start.dequantize, read_config(folder)
    if dequantize is None:
        dequantize = backend.should_dequantize(read_shape(folder, dequantize=True, float_bytes=4))
    if start.layers is not None:
        layers = split_layers(int(config["num_hidden_layers"]), start.layers)
    else:
        layers = plan_here(settings, ring.size, backend, dequantize=dequantize)
    return RingPlan(
        epoch=ring.epoch,
        ring_size=ring.size,
        code_hash=handshake.hash_code(ROOT),
        versions=handshake.list_versions(),
        weights_hash=weights_hash(folder),
        model_folder=str(folder),
        layers=tuple((part.start, part.stop) for part in layers),
        dequantize=dequantize,
        products=products,
        weights_marks=_mark_all(folder, layers, local_sums_file(folder, settings.state_dir)),
        keeps_windows=settle_windows(str(folder), config, longest_context(settings, config))["keeps_windows"],
        step_timeout_seconds=settings.step_timeout,
        load_timeout_seconds=settings.load_timeout,
    )


def _mark_all(folder: Path, layers: tuple[range, ...], sums_file: Path) -> tuple[WeightsMark, ...]:
    """Mark every rank's weight files; one without marks has files that this host has not fetched."""
    marks = []
    for rank in range(1, len(layers)):
        try:
            marks.append(mark_weights(folder, layers, rank, sums_file))
        except BadCheckpoint:
            marks.append(WeightsMark())
    return (WeightsMark(), *marks)


def plan_here(settings: Settings, num_ranks: int, backend: Backend, *, dequantize: bool) -> tuple[range, ...]:
    """Plan for ranks that are all on this machine.

    Raises:
        DoesNotFit: with the numbers.
    """
    folder = settings.model_dir
    num_tokens = longest_context(settings, read_config(folder))
    shape = read_shape(folder, dequantize=dequantize, float_bytes=backend.float_bytes, num_tokens=num_tokens)
    counts = settings.layer_counts
    if counts is not None:
        layers = split_layers(shape.num_layers, counts)
    else:
        layers = plan_layers(shape, [HostCapacity(num_ranks=num_ranks)])
    check_memory(settings, shape, layers, backend.limit_bytes())
    return layers


def _hello_lap(launch: Launch, ring: AnyRing, plan: RingPlan) -> None:
    secret, limit_seconds = launch.start.secret, launch.settings.connect_timeout
    launch.watchdog.expect(limit_seconds)
    if ring.size == 1:
        return
    ring.send(handshake.make_hello(plan, secret))
    frame, _ = receive(ring, launch.watchdog, limit_seconds)
    handshake.check_signatures(frame, ring, secret)


def _ready_lap(launch: Launch, ring: AnyRing, own: RankInfo) -> tuple[RankInfo, ...]:
    ring.send(handshake.make_ready(ring))
    frame, _ = receive(ring, launch.watchdog, launch.settings.load_timeout)
    assert frame.flags & FLAG_READY
    return handshake.read_ready(frame, own, ring.size)


def make_facts(
    status: RingStatus,
    folder: Path,
    stage: Stage,
    tokenizer: PromptTokenizer,
    compiler: Executor | None = None,
) -> ModelFacts:
    """Return what requests need to know of the model in a folder; `compiler` is for Grammars."""
    assert status.context is not None, "known since the scheduler was made"
    vocab_size, end_token_ids = max(stage.model.vocab_size, tokenizer.vocab_size), tokenizer.end_token_ids
    return ModelFacts(
        name=status.model,
        weights_hash=weights_hash(folder),
        tokenizer=tokenizer,
        detokenizer=tokenizer.detokenizer,
        end_token_ids=end_token_ids,
        vocab_size=stage.model.vocab_size,
        context=status.context,
        grammars=Grammars(folder / "tokenizer.json", vocab_size, end_token_ids, compiler),
    )

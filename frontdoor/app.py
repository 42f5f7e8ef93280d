"""Builds the FastAPI app: the front door, the layers around the routes, and the routes.

    Edge (path, request id, Host, 500) → CORS (where set) → Gate (Origin, keys) → routes

Opens the spool and the tokenizer before the first request; knows nothing of sockets.
"""

import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from config import Settings
from config.context_length import read_model_tokens
from frontdoor import NAME, VERSION
from frontdoor.batches.runner import BatchRunner
from frontdoor.disconnects import Disconnects
from frontdoor.http.auth import Gate, Keys
from frontdoor.http.edge import Edge
from frontdoor.http.errors import install_error_handler
from frontdoor.http.hosts import HostNames
from frontdoor.http.paths import names_behind_v1
from frontdoor.kept_turns import KeptTurns
from frontdoor.key_limits import RATE_HEADERS, KeyLimits
from frontdoor.latencies import Latencies
from frontdoor.queue_estimate import QueueEstimate
from frontdoor.ring_status import RingStatus
from frontdoor.routes import (
    batches,
    files,
    generate,
    health,
    messages,
    metrics,
    ollama,
    openai_chat,
    openai_completions,
    page,
    requests,
    responses,
    tokenize,
)
from frontdoor.routes import models as openai_models
from frontdoor.routes.openapi import describe
from frontdoor.sampling_defaults import read_sampling_defaults
from frontdoor.state import FrontDoor
from frontdoor.subscriptions import Subscriptions
from prompts.tokenizer import load_tokenizer
from spool import Spool
from spool.batches import BatchStore

NUM_WORKERS = 8
# In the order of the path look-up: the routes that accept requests come first.
ROUTE_MODULES = (
    generate,
    openai_chat,
    openai_completions,
    responses,
    messages,
    ollama,
    requests,
    tokenize,
    openai_models,
    files,
    batches,
    health,
    metrics,
    page,
)

log = logging.getLogger(__name__)


def make_app(settings: Settings) -> FastAPI:
    """Build the app.

    Raises:
        KeysUnreadable, TokenizerUnusable, config.ModelNotReady, spool.SpoolRefused, spool.SpoolUnavailable:
            the front door cannot start; the message says why.
    """
    keys = Keys(settings.api_keys_file)
    front = make_front_door(settings, keys)
    hosts = HostNames([settings.api_host, *settings.allowed_host_list])

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        hosts.learn()
        front.start()
        runner = BatchRunner(lambda: app.state.front_door)
        runner.start()
        yield
        await runner.stop()
        front.stop()

    app = FastAPI(
        title=NAME,
        version=VERSION,
        docs_url=None,  # FastAPI's documentation pages load from a CDN
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        middleware=_layers(settings, keys, hosts),
    )
    app.state.front_door = front
    install_error_handler(app)
    for module in ROUTE_MODULES:
        app.include_router(module.router)
    description = describe(app, needs_keys=keys.are_required)
    app.openapi = lambda: description  # type: ignore[method-assign]
    return app


def make_front_door(settings: Settings, keys: Keys) -> FrontDoor:
    """Open the parts that all requests share."""
    spool = Spool.open(
        settings.spool_dir,
        durability=settings.spool_durability,
        max_depth=settings.max_queue_depth,
        max_bytes=settings.max_queue_mb * 2**20,
    )
    ring_status, tokenizer = RingStatus(settings.run_dir), load_tokenizer(settings)
    queue_estimate = QueueEstimate(spool, ring_status)
    workers = ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="front-door")
    return FrontDoor(
        settings=settings,
        model_name=settings.model_name,
        spool=spool,
        tokenizer=tokenizer,
        subscriptions=Subscriptions(spool, poll_interval_seconds=settings.poll_interval),
        disconnects=Disconnects(spool, grace_seconds=settings.disconnect_grace_seconds),
        ring_status=ring_status,
        queue_estimate=queue_estimate,
        latencies=Latencies(),
        kept_turns=KeptTurns(spool, tokenizer),
        batches=BatchStore(spool),
        keys=keys,
        key_limits=KeyLimits(keys, spool, queue_estimate, workers),
        workers=workers,
        started_unix=time.time(),
        model_tokens=read_model_tokens(settings.model_dir),
        sampling_defaults=read_sampling_defaults(settings),
    )


def _layers(settings: Settings, keys: Keys, hosts: HostNames) -> list[Middleware]:
    """Return the layers before the routes, outermost first."""
    routes = [route for module in ROUTE_MODULES for route in module.router.routes]
    paths = [route.path for route in routes if isinstance(route, APIRoute)]
    origins = frozenset(origin.lower() for origin in settings.cors_origin_list)
    layers = [
        Middleware(Edge, hosts=hosts, v1_names=names_behind_v1(paths)),
        Middleware(Gate, keys=keys, origins=origins),
    ]
    if origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origin_list),
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            allow_private_network=True,  # Chrome requires it for a page from the Internet
            expose_headers=["X-Request-Id", "Request-Id", "Location", "Retry-After", *RATE_HEADERS],
        )
        layers.insert(1, cors)
    return layers

"""Builds the FastAPI app from its parts: the front door, the layers around the routes, and the routes.

    Edge (path, request id, Host, 500) → CORS (where set) → Gate (Origin, keys) → Shortcut (POST) → FastAPI

Opens the spool and the tokenizer before the first request; knows nothing of sockets or of how it is served.
"""

import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from config import Settings
from config.context_length import read_model_tokens
from frontdoor import (
    NAME,
    VERSION,
    generate,
    health,
    metrics,
    openai_chat,
    openai_completions,
    openai_models,
    page,
    requests,
)
from frontdoor.attendance import Attendance
from frontdoor.auth import Gate, Keys
from frontdoor.dialects import NOT_SERVED
from frontdoor.edge import Edge
from frontdoor.errors import install_error_handler
from frontdoor.forecast import Forecast
from frontdoor.hosts import HostNames
from frontdoor.latencies import Latencies
from frontdoor.leaving import Leavers
from frontdoor.openapi import describe
from frontdoor.paths import names_behind_v1
from frontdoor.ring_status import RingStatus
from frontdoor.shortcut import Endpoint, Shortcut
from frontdoor.state import FrontDoor
from frontdoor.waiting import Listener
from prompts.tokenizer import load_tokenizer
from spool import Spool, SpoolError

NUM_WORKERS = 8
ROOMS = (page, health, metrics, generate, requests, openai_chat, openai_completions, openai_models)

log = logging.getLogger(__name__)


class LayeredApp(FastAPI):
    """FastAPI behind layers of ours: none of its own is passed before them (a dozen calls a request)."""

    entrance: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.entrance is None:
            await self.inner(scope, receive, send)
            return
        scope["app"] = self
        await self.entrance(scope, receive, send)

    async def inner(self, scope: Scope, receive: Receive, send: Send) -> None:
        """FastAPI itself."""
        await super().__call__(scope, receive, send)


def make_app(settings: Settings) -> LayeredApp:
    """Build the app.

    Raises:
        KeysUnreadable, TokenizerUnusable, config.ModelNotReady, spool.SpoolRefused, spool.SpoolUnavailable:
            the front door cannot start; the message says why.
    """
    keys = Keys.load(settings.api_keys_file)
    front = make_front_door(settings)
    hosts = HostNames([settings.api_host, *settings.allowed_host_list])

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        hosts.learn()
        front.start()
        yield
        front.stop()

    app = LayeredApp(
        title=NAME,
        version=VERSION,
        docs_url=None,  # FastAPI's documentation pages load from a CDN
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.front_door = front
    install_error_handler(app)
    for room in ROOMS:
        app.include_router(room.router)
    description = describe(app)
    app.openapi = lambda: description  # type: ignore[method-assign]
    v1_names = names_behind_v1([*description["paths"], *NOT_SERVED])
    app.entrance = Edge(_layers(app.inner, settings, keys), hosts=hosts, v1_names=v1_names)
    return app


def make_front_door(settings: Settings) -> FrontDoor:
    """Open what all requests share."""
    spool = Spool.open(
        settings.spool_dir,
        durability=settings.spool_durability,
        max_depth=settings.max_queue_depth,
        max_bytes=settings.max_queue_mb * 2**20,
    )

    model_folder, ring_status = settings.model_dir, RingStatus(settings.run_dir)

    def cancel(request_id: str) -> None:
        try:
            if spool.cancel(request_id):
                log.info("request %s is cancelled: its client left", request_id)
        except SpoolError as error:
            log.warning("request %s, whose client left, cannot be cancelled: %s", request_id, error)

    return FrontDoor(
        settings=settings,
        model_name=settings.model_name,
        spool=spool,
        tokenizer=load_tokenizer(settings),
        listener=Listener(spool, poll_interval_seconds=settings.poll_interval),
        leavers=Leavers(
            cancel,
            grace_seconds=settings.disconnect_grace_seconds,
            attendance=Attendance(settings.run_dir / "attended"),
        ),
        ring_status=ring_status,
        forecast=Forecast(spool, ring_status),
        latencies=Latencies(),
        workers=ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="front-door"),
        started_unix=time.time(),
        model_tokens=read_model_tokens(model_folder),
    )


def _layers(app: ASGIApp, settings: Settings, keys: Keys) -> ASGIApp:
    origins = frozenset(origin.lower() for origin in settings.cors_origin_list)
    layered: ASGIApp = Gate(Shortcut(app, endpoints=_taking_in()), keys=keys, origins=origins)
    if origins:
        layered = CORSMiddleware(
            layered,
            allow_origins=list(settings.cors_origin_list),
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            allow_private_network=True,  # a page of the internet that may call us asks Chrome for this
            expose_headers=["X-Request-Id", "Location", "Retry-After"],
        )
    return layered


def _taking_in() -> dict[str, Endpoint]:
    """The endpoints that take requests in, by path."""
    routes = (route for room in ROOMS for route in room.router.routes if isinstance(route, APIRoute))
    return {route.path: route.endpoint for route in routes if route.methods == {"POST"}}

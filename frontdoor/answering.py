"""Answers an accepted request: waits for its result, or follows its tokens as events.

All streams share one event type; each route's renderer writes it. When a client disconnects, its grace time
starts. When an answer takes too long, the client gets a time-out, and its request goes on.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Protocol

from fastapi import Request as HttpRequest
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from config.errors import ServiceError
from frontdoor.accepting import Accepted
from frontdoor.following import Event, Follower
from frontdoor.http.errors import GenerationFailed, GenerationTimeout
from frontdoor.http.events import (
    COMMENT_END,
    COMMENT_SECONDS,
    FIRST_COMMENT_SECONDS,
    EventStream,
    comment_frame,
)
from frontdoor.state import FrontDoor
from frontdoor.subscriptions import Watch
from spool import Result, SpoolUnavailable, TokenRecord


class Renderer(Protocol):
    """Turns events into the frames of one API.

    `ends_at_reset`: clients cannot discard tokens that they received. `is_quiet`: some of the API's readers
    lose an answer that begins with a comment, so comments start only after a long silence.
    """

    ends_at_reset: bool
    is_quiet: bool

    def tokens(self, records: tuple[TokenRecord, ...]) -> bytes: ...

    def reset(self) -> bytes: ...

    def done(self, result: Result) -> bytes: ...

    def error(self, error: ServiceError) -> bytes: ...


async def wait_for_result(front: FrontDoor, http: HttpRequest, accepted: Accepted) -> Result:
    """Wait for the answer.

    Raises:
        GenerationTimeout, GenerationFailed: instead of an answer.
        ClientDisconnect: the client has left.
    """
    async with _watching(front, accepted, http.receive, with_tokens=False) as watch:
        if not await watch.news(front.settings.request_timeout):
            raise GenerationTimeout(accepted.id, front.settings.request_timeout)
    if watch.failure is not None:
        raise watch.failure
    if watch.result is None:
        raise ClientDisconnect
    if watch.result.error is not None:
        raise GenerationFailed(watch.result.error)
    return watch.result


def stream_answer(front: FrontDoor, accepted: Accepted, renderer: Renderer, *, start: int = 0) -> EventStream:
    """Answer with server-sent events: the renderer's frames, and comments during silence.

    Args:
        start: the index of the first token to send.
    """

    async def frames(receive: Receive) -> AsyncGenerator[bytes, None]:
        if not renderer.is_quiet:
            yield comment_frame(f"accepted {accepted.id}")
        patience = COMMENT_SECONDS if renderer.is_quiet else FIRST_COMMENT_SECONDS
        owes_end = False
        async with (
            _watching(front, accepted, receive, with_tokens=True) as watch,
            aclosing(_events(watch, front.settings.request_timeout, start, patience)) as events,
        ):
            async for event in events:
                frame = _render(front, accepted.id, renderer, event)
                if not frame:  # no text yet: a character in several tokens
                    continue
                yield COMMENT_END + frame if owes_end and event.is_news else frame
                owes_end = renderer.is_quiet and not event.is_news
                if event.is_reset and renderer.ends_at_reset:
                    return

    return EventStream(frames)


@asynccontextmanager
async def _watching(
    front: FrontDoor, accepted: Accepted, receive: Receive, *, with_tokens: bool
) -> AsyncGenerator[Watch, None]:
    """Follow a request while its client is connected; then count its answer, or start the grace time."""
    with (
        front.disconnects.following(accepted.id, is_new=accepted.is_first),
        front.subscriptions.watch(accepted.id, with_tokens=with_tokens) as watch,
        _noticing_disconnect(watch, receive),
    ):
        yield watch
    if watch.result is not None and accepted.is_first:
        front.latencies.observe(watch.result)
    if watch.result is None and watch.is_client_gone and accepted.is_asker:
        front.disconnects.client_left(accepted.id, may_return=accepted.may_return)


async def _events(
    watch: Watch, timeout_seconds: float, start: int, patience: float
) -> AsyncGenerator[Event, None]:
    """Follow a watch to its end; the time-out counts from the last news.

    Args:
        start: the index of the first token to send.
        patience: seconds of silence until the first event without news.
    """
    loop = asyncio.get_running_loop()
    follower = Follower(start)
    deadline = loop.time() + timeout_seconds
    has_news = True  # tokens and results that exist already
    while not watch.is_client_gone:
        if has_news:
            was_reset, records = watch.take_reset(), watch.take_records()
            for event in follower.take(records, was_reset=was_reset, result=watch.result):
                yield event
            if watch.failure is not None:
                yield Event(error=watch.failure)
            if watch.result is not None or watch.failure is not None:
                return
            deadline = loop.time() + timeout_seconds
        elif loop.time() >= deadline:
            yield Event(error=GenerationTimeout(watch.request_id, timeout_seconds))
            return
        else:
            yield Event()
            patience = COMMENT_SECONDS
        has_news = await watch.news(min(patience, max(0.0, deadline - loop.time())))


def _render(front: FrontDoor, request_id: str, renderer: Renderer, event: Event) -> bytes:
    if event.records:
        return renderer.tokens(event.records)
    if event.result is not None:
        return renderer.done(event.result)
    if event.error is not None:
        return renderer.error(event.error)
    if event.is_reset:
        return renderer.reset()
    try:
        place = front.queue_estimate.place(request_id)
    except SpoolUnavailable:
        place = None
    return comment_frame("working" if place is None else f"waiting, {place}")


@contextmanager
def _noticing_disconnect(watch: Watch, receive: Receive) -> Iterator[None]:
    """Notify the watch when the connection is lost."""
    task = asyncio.create_task(_wait_for_disconnect(watch, receive))
    try:
        yield
    finally:
        task.cancel()


async def _wait_for_disconnect(watch: Watch, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":  # the body has been read: no other message follows
        pass
    watch.client_gone()

"""From an accepted request to its answer: wait for the result, or follow its tokens as events.

One event type serves every stream; how it looks on the wire is the adapters' business. A client that leaves
starts the grace time; one that waits too long gets a time-out while its request goes on.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Protocol

from fastapi import Request as HttpRequest
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from frontdoor.errors import FrontDoorError, GenerationFailed, GenerationTimeout
from frontdoor.events import COMMENT_SECONDS, EventStream, comment_frame
from frontdoor.state import FrontDoor
from frontdoor.waiting import Watch
from spool import Request, Result, TokenRecord


@dataclass(frozen=True)
class Event:
    """One thing that a stream tells; exactly one member is set, none means that there is nothing new."""

    records: tuple[TokenRecord, ...] = ()
    is_reset: bool = False
    result: Result | None = None
    error: FrontDoorError | None = None


class Renderer(Protocol):
    """Turns events into the frames of one API."""

    def tokens(self, records: tuple[TokenRecord, ...]) -> bytes: ...

    def reset(self) -> bytes: ...

    def done(self, result: Result) -> bytes: ...

    def error(self, error: FrontDoorError) -> bytes: ...


async def wait_for_result(front: FrontDoor, http: HttpRequest, request: Request) -> Result:
    """Wait for the answer.

    Raises:
        GenerationTimeout, GenerationFailed: instead of an answer.
        ClientDisconnect: nobody is left to answer.
    """
    with front.listener.watch(request.id, with_tokens=False) as watch, _told_of_leaving(watch, http.receive):
        if not await watch.news(front.settings.request_timeout):
            raise GenerationTimeout(request.id, front.settings.request_timeout)
    if watch.failure is not None:
        raise watch.failure
    if watch.result is None:
        front.leavers.left(request.id)
        raise ClientDisconnect
    if watch.result.error is not None:
        raise GenerationFailed(watch.result.error)
    return watch.result


def stream_answer(front: FrontDoor, request: Request, renderer: Renderer) -> EventStream:
    """Answer with server-sent events: a comment at once, then what the renderer makes of each event."""

    async def frames(receive: Receive) -> AsyncGenerator[bytes, None]:
        yield comment_frame(f"accepted {request.id}")
        with front.listener.watch(request.id, with_tokens=True) as watch, _told_of_leaving(watch, receive):
            async with aclosing(_events(watch, front.settings.request_timeout)) as events:
                async for event in events:
                    yield _render(front, request, renderer, event)
        if watch.is_client_gone and watch.result is None:
            front.leavers.left(request.id)

    return EventStream(frames)


async def _events(watch: Watch, timeout_seconds: float) -> AsyncGenerator[Event, None]:
    """Follow a watch to its end; the time-out counts from the last news, as a stream shows that it lives."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds
    while not watch.is_client_gone:
        has_news = await watch.news(min(COMMENT_SECONDS, max(0.0, deadline - loop.time())))
        if not has_news and loop.time() >= deadline:
            yield Event(error=GenerationTimeout(watch.request_id, timeout_seconds))
            return
        if not has_news:
            yield Event()
            continue
        deadline = loop.time() + timeout_seconds
        if watch.take_reset():
            yield Event(is_reset=True)
        records = watch.take_records()
        if records:
            yield Event(records=tuple(records))
        if watch.result is not None or watch.failure is not None:
            yield _last_event(watch)
            return


def _last_event(watch: Watch) -> Event:
    if watch.result is None or watch.failure is not None:
        return Event(error=watch.failure)
    if watch.result.error is not None:
        return Event(error=GenerationFailed(watch.result.error))
    return Event(result=watch.result)


def _render(front: FrontDoor, request: Request, renderer: Renderer, event: Event) -> bytes:
    if event.records:
        return renderer.tokens(event.records)
    if event.result is not None:
        return renderer.done(event.result)
    if event.error is not None:
        return renderer.error(event.error)
    if event.is_reset:
        return renderer.reset()
    position = front.spool.position(request.id)
    return comment_frame("working" if position is None else f"waiting, position {position}")


@contextmanager
def _told_of_leaving(watch: Watch, receive: Receive) -> Iterator[None]:
    """Tell the watch when the connection is lost."""
    task = asyncio.create_task(_wait_for_leaving(watch, receive))
    try:
        yield
    finally:
        task.cancel()


async def _wait_for_leaving(watch: Watch, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":  # the body has been read: nothing else can come
        pass
    watch.client_gone()

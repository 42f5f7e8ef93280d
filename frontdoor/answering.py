"""Answers accepted requests: waits for their results, or follows their tokens as events.

One HTTP request may have several requests in the spool, one for each choice. All streams share one event
type; each route's renderer writes it. When a client disconnects, its grace time starts. When an answer takes
too long, the client gets a time-out, and its requests go on. When one choice fails, the others are cancelled.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager

from fastapi import Request as HttpRequest
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from config.errors import ServiceError
from frontdoor.accepting import Accepted
from frontdoor.following import Event, Follower
from frontdoor.http.errors import GenerationFailed, GenerationTimeout
from frontdoor.http.events import (
    COMMENT_SECONDS,
    EVENT_STREAM,
    EventStream,
    comment_frame,
)
from frontdoor.state import FrontDoor
from frontdoor.subscriptions import WatchGroup
from spool import Result, SpoolUnavailable, TokenRecord


class Renderer(ABC):
    """Turns events into the frames of one API; `choice` is the place of the request among those accepted.

    `ends_at_reset`: clients cannot discard tokens that they received. `patience_seconds`: of silence until
    the first comment; some readers lose an answer that begins with one.
    """

    ends_at_reset = True
    patience_seconds = COMMENT_SECONDS
    media_type = EVENT_STREAM
    comment_end = b""  # goes before the first frame after a comment

    def opening(self) -> bytes:
        """Return what a client gets as soon as its requests are accepted."""
        return b""

    @abstractmethod
    def tokens(self, choice: int, records: tuple[TokenRecord, ...]) -> bytes: ...

    def reset(self, choice: int) -> bytes:
        """Return the frames where the log lost tokens that were sent."""
        return self.error(ServiceError("the log lost tokens that this stream had sent; retry the request"))

    @abstractmethod
    def done(self, choice: int, result: Result) -> bytes: ...

    @abstractmethod
    def error(self, error: ServiceError) -> bytes: ...

    def silence(self, text: str) -> bytes:
        """Return a frame without meaning, which keeps the connection open."""
        return comment_frame(text)


async def wait_for_results(front: FrontDoor, http: HttpRequest, accepted: Sequence[Accepted]) -> list[Result]:
    """Wait for all answers.

    Raises:
        GenerationTimeout, GenerationFailed: instead of an answer.
        ClientDisconnect: the client has left.
    """
    timeout_seconds = front.settings.request_timeout
    async with _watching(front, accepted, http.receive, with_tokens=False) as group:
        while not (group.is_complete or group.is_client_gone):
            if not await group.news(timeout_seconds):
                raise GenerationTimeout(accepted[0].id, timeout_seconds)
    results = []
    for watch in group.watches:
        if watch.failure is not None:
            raise watch.failure
        if watch.result is not None and watch.result.error is not None:
            raise GenerationFailed(watch.result.error)
        if watch.result is not None:
            results.append(watch.result)
    if len(results) < len(accepted):
        raise ClientDisconnect
    return results


def stream_answer(
    front: FrontDoor, accepted: Sequence[Accepted], renderer: Renderer, *, start: int = 0
) -> EventStream:
    """Answer with a stream: the renderer's frames, and comments during silence.

    Args:
        start: the index of the first token to send.
    """

    async def frames(receive: Receive) -> AsyncGenerator[bytes, None]:
        opening, patience = renderer.opening(), renderer.patience_seconds
        if opening:
            yield opening
        owes_end = False
        async with (
            _watching(front, accepted, receive, with_tokens=True) as group,
            aclosing(_events(group, front.settings.request_timeout, start, patience)) as events,
        ):
            async for choice, event in events:
                frame = _render(front, accepted[choice].id, renderer, choice, event)
                if not frame:  # no text yet: a character in several tokens
                    continue
                yield renderer.comment_end + frame if owes_end and event.is_news else frame
                owes_end = not event.is_news
                if event.is_reset and renderer.ends_at_reset:
                    return

    return EventStream(frames, renderer.media_type)


@asynccontextmanager
async def _watching(
    front: FrontDoor, accepted: Sequence[Accepted], receive: Receive, *, with_tokens: bool
) -> AsyncGenerator[WatchGroup, None]:
    """Follow requests while their client is connected; then count the answers, or start the grace time."""
    group = WatchGroup()
    with ExitStack() as stack:
        for each in accepted:
            stack.enter_context(front.disconnects.following(each.id, is_new=each.is_first))
            stack.enter_context(front.subscriptions.watch(each.id, group, with_tokens=with_tokens))
        stack.enter_context(_noticing_disconnect(group, receive))
        yield group
    has_failed = group.has_failed
    for each, watch in zip(accepted, group.watches, strict=True):
        if watch.result is not None and each.is_first:
            front.latencies.observe(watch.result)
        if watch.result is None and each.is_asker and (group.is_client_gone or has_failed):
            front.disconnects.client_left(each.id, may_return=each.may_return and not has_failed)


async def _events(
    group: WatchGroup, timeout_seconds: float, start: int, patience: float
) -> AsyncGenerator[tuple[int, Event], None]:
    """Follow watches to their end, or to the first error; the time-out counts from the last news.

    Args:
        start: the index of the first token to send.
        patience: seconds of silence until the first event without news.

    Yields:
        The place of a watch, and its event.
    """
    loop = asyncio.get_running_loop()
    followed = {choice: (watch, Follower(start)) for choice, watch in enumerate(group.watches)}
    deadline = loop.time() + timeout_seconds
    has_news = True  # tokens and results that exist already
    while not group.is_client_gone:
        if has_news:
            for choice, (watch, follower) in list(followed.items()):
                was_reset, records = watch.take_reset(), watch.take_records()
                for event in follower.take(records, was_reset=was_reset, result=watch.result):
                    yield choice, event
                if watch.failure is not None:
                    yield choice, Event(error=watch.failure)
                if watch.has_failed:
                    return
                if watch.result is not None:
                    del followed[choice]
            if not followed:
                return
            deadline = loop.time() + timeout_seconds
        elif loop.time() >= deadline:
            choice = next(iter(followed))
            yield choice, Event(error=GenerationTimeout(group.watches[choice].request_id, timeout_seconds))
            return
        else:
            yield next(iter(followed)), Event()
            patience = COMMENT_SECONDS
        has_news = await group.news(min(patience, max(0.0, deadline - loop.time())))


def _render(front: FrontDoor, request_id: str, renderer: Renderer, choice: int, event: Event) -> bytes:
    if event.records:
        return renderer.tokens(choice, event.records)
    if event.result is not None:
        return renderer.done(choice, event.result)
    if event.error is not None:
        return renderer.error(event.error)
    if event.is_reset:
        return renderer.reset(choice)
    try:
        place = front.queue_estimate.place(request_id)
    except SpoolUnavailable:
        place = None
    return renderer.silence("working" if place is None else f"waiting, {place}")


@contextmanager
def _noticing_disconnect(group: WatchGroup, receive: Receive) -> Iterator[None]:
    """Notify the watches when the connection is lost."""
    task = asyncio.create_task(_wait_for_disconnect(group, receive))
    try:
        yield
    finally:
        task.cancel()


async def _wait_for_disconnect(group: WatchGroup, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":  # the body has been read: no other message follows
        pass
    group.client_gone()

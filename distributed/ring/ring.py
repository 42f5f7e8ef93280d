"""The ring: frames from one rank to the next over MLX's ring backend: `send`, `wait`, `recv`.

Knows frames and descriptors; nothing of their meaning. Rank r receives from r + 1 and sends to r - 1 (rank 0
to the last rank), so a microbatch makes one lap: 0 -> N-1 -> ... -> 1 -> 0. No collectives.

MLX connects and sends. A pending `mx.distributed.recv` spins on a whole core (mlx 0.32.4), so frames are read
from a duplicate of the ring's own descriptor, after a `poll()`: MLX reads no byte that it was not asked for.
Sends have a CPU stream of their own: a large one delays no computation, and on Metal the GPU's graph never
waits for a peer. After a ring error (`RingLost`) the ring is unusable: the process ends, its neighbours
notice, and the supervisor builds a new ring."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import selectors
import socket
import stat
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from distributed.ring.frame import (
    NUM_BLOCK_INTS,
    Frame,
    FrameError,
    Int32Array,
    Kind,
    decode,
    encode,
    num_rest_ints,
)

# Rank 0 keeps at most this many unread bytes in flight, so that its sends never block on a full buffer.
MAX_UNREAD_BYTES = 32 * 1024
# Keepalive reports a peer that vanished without a FIN after about idle + interval x count seconds, on the
# connection that a rank receives on, where it has no unacknowledged data. No TCP_USER_TIMEOUT: it would end a
# connection over a slow link.
KEEPALIVE_IDLE_SECONDS, KEEPALIVE_INTERVAL_SECONDS, KEEPALIVE_COUNT = 1, 1, 3
# The rest of a frame follows message 1 at once; a peer that stalls between the two is broken.
REST_TIMEOUT_SECONDS = 30.0


class RingLost(RuntimeError):
    """A neighbour is gone or sent an invalid frame. The process ends."""


class Ring(Protocol):
    """The transport that the engine and the stages use."""

    rank: int
    size: int
    epoch: int

    def send(self, frame: Frame, hidden: mx.array | None = None) -> None: ...

    def wait(self, timeout: float | None, others: Iterable[int] = ()) -> set[int]: ...

    def is_readable(self) -> bool: ...

    def expect_hidden(self, num_rows: int, num_tokens: int) -> mx.array | None: ...

    def recv(self) -> tuple[Frame, mx.array | None]: ...

    def flush(self) -> None: ...


@dataclass(frozen=True)
class HiddenShape:
    """Width and type of hidden states; known once the model's config has been read."""

    hidden_size: int
    dtype: Any


@dataclass(frozen=True)
class _Expected:
    """Hidden states, (rows, tokens, hidden size), and the array that their bytes are written into."""

    buffer: mx.array
    hidden: mx.array


class LoopbackRing:
    """The ring of one rank: it receives the frames that it sends."""

    def __init__(self, epoch: int = 1) -> None:
        self.rank, self.size, self.epoch = 0, 1, epoch
        self._frames: deque[tuple[Frame, mx.array | None]] = deque()
        self._selector = selectors.DefaultSelector()

    def set_hidden_shape(self, shape: HiddenShape) -> None:
        """Do nothing: no hidden states cross a wire."""

    def send(self, frame: Frame, hidden: mx.array | None = None) -> None:
        self._frames.append((frame, hidden))

    def is_readable(self) -> bool:
        return bool(self._frames)

    def expect_hidden(self, num_rows: int, num_tokens: int) -> None:
        """Return nothing: hidden states are there when they are sent."""

    def wait(self, timeout: float | None, others: Iterable[int] = ()) -> set[int]:
        """Return the ready ones of `others`; at once if a frame has arrived."""
        return _ready(self._selector, others, 0.0 if self._frames else timeout)

    def recv(self) -> tuple[Frame, mx.array | None]:
        return self._frames.popleft()

    def flush(self) -> None:
        """Do nothing: no frame is ever in flight."""


class MlxRing:
    """A ring of two ranks or more on `mx.distributed`'s ring backend."""

    def __init__(self, rank: int, hosts: list[str], epoch: int, connect_timeout: float) -> None:
        """Connect to both neighbours; return when the whole ring is connected.

        Args:
            hosts: `address:port` of every rank, by rank.

        Raises:
            RingLost: the ring did not connect in time.
        """
        self.rank, self.size, self.epoch = rank, len(hosts), epoch
        self._group = _init_group(rank, hosts, connect_timeout)
        self._send_stream = mx.new_stream(mx.cpu)
        self._to, self._from = (rank - 1) % self.size, (rank + 1) % self.size
        self._socket, self._silent = _neighbour_sockets(rank, hosts)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._selector.register(self._silent, selectors.EVENT_READ)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._shape: HiddenShape | None = None
        self._expected: _Expected | None = None

    @property
    def sockets(self) -> tuple[socket.socket, socket.socket]:
        """Duplicates of the connections to both neighbours."""
        return self._socket, self._silent

    def set_hidden_shape(self, shape: HiddenShape) -> None:
        """Set width and type of the hidden states, the same on all ranks."""
        self._shape = shape

    def send(self, frame: Frame, hidden: mx.array | None = None) -> None:
        """Send to the next lower rank; return before the bytes have left.

        Args:
            hidden: (rows, tokens, hidden size), evaluated; required if the frame has FLAG_HIDDEN.
        """
        assert frame.has_hidden == (hidden is not None)
        if frame.kind is Kind.STOP:  # the neighbour may end before the frame has made its lap
            self._selector.unregister(self._silent)
        block, rest = encode(frame)
        with _lost_on_error("send"):
            parts = [mx.array(part) for part in (block, rest) if part is not None]
            if hidden is not None:
                parts.append(hidden)
            with mx.stream(self._send_stream):  # of `depends`, which takes none
                sent: list[mx.array] = []
                for part in parts:
                    # An evaluation keeps no order of its own.
                    after = mx.depends([part], sent)[0] if sent else part
                    sent = [mx.distributed.send(after, self._to, group=self._group, stream=self._send_stream)]
                mx.async_eval(sent)

    def is_readable(self) -> bool:
        return bool(self._poll.poll(0))

    def expect_hidden(self, num_rows: int, num_tokens: int) -> mx.array:
        """Return the array that `recv` will fill with the next hidden states, if these have this shape.

        Until `recv` has returned it, it holds nothing and must not be evaluated.
        """
        self._expected = self._make_hidden(num_rows, num_tokens)
        return self._expected.hidden

    def wait(self, timeout: float | None, others: Iterable[int] = ()) -> set[int]:
        """Wait until a frame begins, one of the descriptors `others` is readable, or the timeout ends.

        Returns:
            The ready ones of `others`.

        Raises:
            RingLost: the neighbour that this rank sends to is gone.
        """
        ready = _ready(self._selector, others, timeout)
        if self._silent.fileno() in ready:
            raise RingLost(f"the connection to rank {self._to} was lost")
        return ready

    def recv(self) -> tuple[Frame, mx.array | None]:
        """Receive the frame that `wait` reported, and its hidden states (rows, tokens, hidden size) or None.

        Raises:
            RingLost: the neighbour is gone, or its frame is invalid.
        """
        try:
            block = self._recv_ints(NUM_BLOCK_INTS)
            num_rest = num_rest_ints(block, epoch=self.epoch)
            frame = decode(block, self._recv_ints(num_rest) if num_rest else None)
        except (FrameError, ValueError) as error:
            raise RingLost(f"rank {self._from} sent an invalid frame: {error}") from error
        return frame, self._recv_hidden(frame.num_rows, frame.num_tokens) if frame.has_hidden else None

    def flush(self) -> None:
        """Wait until all sent frames have left this process; call this before it ends."""
        with _lost_on_error("flush"):
            mx.synchronize(self._send_stream)

    def _recv_ints(self, count: int) -> Int32Array:
        ints = np.empty(count, np.int32)
        self._recv_into(ints)
        return ints

    def _recv_hidden(self, num_rows: int, num_tokens: int) -> mx.array:
        expected, self._expected = self._expected, None
        if expected is None or expected.hidden.shape[:2] != (num_rows, num_tokens):
            expected = self._make_hidden(num_rows, num_tokens)
        self._recv_into(np.asarray(expected.buffer))
        return expected.hidden

    def _make_hidden(self, num_rows: int, num_tokens: int) -> _Expected:
        assert self._shape is not None, "set_hidden_shape comes before the first step"
        dtype = self._shape.dtype
        # NumPy knows no bfloat16.
        stored = np.float32 if dtype == mx.float32 else np.uint16
        buffer = mx.array(np.empty((num_rows, num_tokens, self._shape.hidden_size), stored))
        return _Expected(buffer, buffer if dtype == mx.float32 else buffer.view(dtype))

    def _recv_into(self, array: np.ndarray[Any, Any]) -> None:
        """Read from the socket itself: MLX reads no byte that it was not asked for (mlx 0.32.4 ring.cpp)."""
        left = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        while left:
            if not self._poll.poll(REST_TIMEOUT_SECONDS * 1000):
                raise RingLost(f"rank {self._from} stopped in the middle of a frame")
            try:
                num_bytes = self._socket.recv_into(left, flags=socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError as error:
                raise RingLost(f"receive failed: {error}") from error
            if not num_bytes:
                raise RingLost(f"rank {self._from} closed the connection")
            left = left[num_bytes:]


@contextlib.contextmanager
def _lost_on_error(what: str) -> Any:
    try:
        yield
    except RuntimeError as error:
        raise RingLost(f"{what} failed: {error}") from error


def _ready(selector: selectors.BaseSelector, others: Iterable[int], timeout: float | None) -> set[int]:
    known = selector.get_map()
    for descriptor in others:
        if descriptor not in known:
            selector.register(descriptor, selectors.EVENT_READ)
    return {key.fd for key, _ in selector.select(timeout)}


def _init_group(rank: int, hosts: list[str], connect_timeout: float) -> Any:
    """Make MLX's ring. It waits without limit for a neighbour and holds the interpreter's lock (mlx 0.32.4).

    No Python thread can watch it, so faulthandler's own thread dumps the stacks and ends the process.
    """
    faulthandler.dump_traceback_later(connect_timeout, exit=True)
    try:
        return _make_group(rank, hosts, connect_timeout)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _make_group(rank: int, hosts: list[str], connect_timeout: float) -> Any:
    # MLX reads the hosts from a file, once and in order (mlx 0.32.4): a pipe works and needs no disk.
    hostfile, writing = os.pipe()
    try:
        os.write(writing, json.dumps([[host] for host in hosts]).encode())
        os.close(writing)
        os.environ.update(MLX_RANK=str(rank), MLX_HOSTFILE=f"/dev/fd/{hostfile}")
        group = mx.distributed.init(strict=True, backend="ring")
    except RuntimeError as error:
        raise RingLost(
            f"rank {rank} could not join the ring within {connect_timeout:g} s: {error}"
        ) from error
    finally:
        os.close(hostfile)
    if group.size() != len(hosts) or group.rank() != rank:
        raise RingLost(f"asked for rank {rank} of {len(hosts)}, got {group.rank()} of {group.size()}")
    return group


def _neighbour_sockets(rank: int, hosts: list[str]) -> tuple[socket.socket, socket.socket]:
    """Return duplicates of the socket on which frames arrive and of the other neighbour's; set keepalive.

    No data ever arrives on the second one: when it is readable, that connection has ended.

    MLX does not expose its descriptors. The one to the right neighbour has that rank's ring port as its peer
    port, the one from the left neighbour has our own ring port as its local port. `recv` from rank + 1 uses
    the left one in a ring of two (MLX looks left first) and the right one from three on (mlx 0.32.4
    distributed/ring)."""
    own_port, right_port = (int(hosts[r % len(hosts)].rpartition(":")[2]) for r in (rank, rank + 1))
    left = right = None
    for candidate in _connected_sockets():
        if candidate.getsockname()[1] == own_port:
            left = candidate
        elif candidate.getpeername()[1] == right_port:
            right = candidate
        else:
            candidate.close()
            continue
        _keep_alive(candidate)
    if left is None or right is None:
        raise RingLost("the ring's connections were not found among this process's descriptors")
    return (left, right) if len(hosts) == 2 else (right, left)


def _connected_sockets() -> list[socket.socket]:
    """Return duplicates of all connected TCP sockets of this process.

    Other descriptors are only inspected: macOS kills a process that duplicates a descriptor which one of its
    system libraries guards (xnu guarded_open_np).
    """
    found = []
    for descriptor in sorted(int(name) for name in os.listdir("/dev/fd")):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode) and _is_connected(descriptor):
                found.append(socket.socket(fileno=os.dup(descriptor)))
    return found


def _is_connected(descriptor: int) -> bool:
    view = socket.socket(fileno=descriptor)
    try:
        is_tcp = view.family in (socket.AF_INET, socket.AF_INET6) and view.type == socket.SOCK_STREAM
        return is_tcp and bool(view.getpeername())
    except OSError:
        return False
    finally:
        view.detach()


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle = getattr(
        socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None)
    )  # macOS has the second name
    if idle is not None:
        connection.setsockopt(socket.IPPROTO_TCP, idle, KEEPALIVE_IDLE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)


def clock_us() -> int:
    """Return this machine's monotonic clock in microseconds."""
    return time.monotonic_ns() // 1000

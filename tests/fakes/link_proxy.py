"""A TCP proxy to put between two neighbours of a ring: it can delay, throttle, damage and cut what passes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

READ_BYTES = 4096


class LinkProxy:
    """Passes one direction's bytes through `mangle`, until `close`.

    Attributes:
        address: where the left neighbour connects instead of to `target`.
        delay_seconds: how long each piece waits, both ways.
        mangle: called with each piece and the number of bytes before it; returns what goes on.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.delay_seconds = 0.0
        self.mangle: Callable[[bytes, int], bytes] = lambda data, _: data
        self._lock = threading.Lock()  # three threads may cut at once
        self._connections: list[socket.socket] = []
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """Take no more connections and reset those that there are."""
        self._closed.set()
        self._listening.close()
        self.cut()

    def cut(self) -> None:
        """Reset all connections."""
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            # Linger zero: the peer sees a reset.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()

    def _accept(self) -> None:
        try:
            near, _ = self._listening.accept()
            far = self._connect()
        except OSError:
            return
        with self._lock:
            self._connections += [near, far]
        for source, sink, is_forward in ((near, far, True), (far, near, False)):
            threading.Thread(target=self._pump, args=(source, sink, is_forward), daemon=True).start()

    def _connect(self) -> socket.socket:
        """Reach the right neighbour, who may not listen yet."""
        while not self._closed.is_set():
            try:
                return socket.create_connection(self._target, timeout=None)
            except ConnectionRefusedError:
                self._closed.wait(0.05)
        raise OSError("closed")

    def _pump(self, source: socket.socket, sink: socket.socket, is_forward: bool) -> None:
        num_bytes = 0
        try:
            while data := source.recv(READ_BYTES):
                self._closed.wait(self.delay_seconds)
                sink.sendall(self.mangle(data, num_bytes) if is_forward else data)
                num_bytes += len(data)
        except OSError:
            pass
        self.cut()

"""Measures the link between two hosts: a server on one, a client on the other. links.py sends it to both.

The server listens on the ring address only, for a limited time, and serves one client, which must send the
token that both have. The client sends single bytes that come back (latency), then a stream in each direction
(bandwidth).

    server   prints {"port": 20123} when it listens, ends after one client
    client   prints {"latency_us": p50, "send_mbps": …, "receive_mbps": …} or {"error": …}
"""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import time
from typing import Any

PIECE_BYTES = 1 << 18
NUM_ECHOES = 200
STEP_LIMIT_S = 10.0
ECHO, TAKE, GIVE = b"E", b"T", b"G"


def main(question: dict[str, Any]) -> None:
    """Be the server or the client.

    Args:
        question: {"role", "address", "port" (server: 0 takes a free one), "token" (hex), "limit_s" (to get
            together), "span_s" (of each measurement)}
    """
    if question["role"] == "server":
        serve(question)
        return
    try:
        print(json.dumps(measure(question)), flush=True)
    except OSError as error:
        print(json.dumps({"error": error.strerror or str(error), "errno": error.errno}), flush=True)


def serve(question: dict[str, Any]) -> None:
    """Listen, print the port, and answer the client that has the token."""
    try:
        listening = socket.create_server((question["address"], question.get("port") or 0))
    except OSError as error:
        print(json.dumps({"error": error.strerror or str(error), "errno": error.errno}), flush=True)
        return
    with listening:
        print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
        deadline = time.monotonic() + question["limit_s"]
        while (left_s := deadline - time.monotonic()) > 0:
            listening.settimeout(left_s)
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(min(STEP_LIMIT_S, max(left_s, 0.1)))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                token = bytes.fromhex(question["token"])
                if read_exactly(connection, len(token)) == token:
                    answer(connection)
                    return


def answer(connection: socket.socket) -> None:
    """Answer the client until it disconnects."""
    while order := connection.recv(1):
        if order == ECHO:
            connection.sendall(order)
        elif order == TAKE:
            num_bytes = int.from_bytes(read_exactly(connection, 8), "big")
            read_through(connection, num_bytes)
            connection.sendall(ECHO)
        elif order == GIVE:
            num_bytes = int.from_bytes(read_exactly(connection, 8), "big")
            send_through(connection, num_bytes)
            if connection.recv(1) != ECHO:
                return


def measure(question: dict[str, Any]) -> dict[str, Any]:
    """Connect and measure."""
    target = (question["address"], question["port"])
    with socket.create_connection(target, timeout=question["limit_s"]) as connection:
        connection.settimeout(STEP_LIMIT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(bytes.fromhex(question["token"]))
        latency_us = measure_latency(connection, question["span_s"])
        return {
            "latency_us": latency_us,
            "send_mbps": measure_stream(connection, TAKE, question["span_s"]),
            "receive_mbps": measure_stream(connection, GIVE, question["span_s"]),
            "from": connection.getsockname()[0],
        }


def measure_latency(connection: socket.socket, span_s: float) -> float:
    """The median round trip of a byte in microseconds."""
    times: list[float] = []
    deadline = time.monotonic() + span_s
    while len(times) < NUM_ECHOES and (len(times) < 3 or time.monotonic() < deadline):
        began = time.perf_counter()
        connection.sendall(ECHO)
        if connection.recv(1) != ECHO:
            raise ConnectionError("the other side disconnected")
        times.append((time.perf_counter() - began) * 1e6)
    return round(statistics.median(times), 1)


def measure_stream(connection: socket.socket, order: bytes, span_s: float) -> float:
    """Mbit/s in one direction: pieces that grow until one takes long enough to be counted."""
    num_bytes = PIECE_BYTES
    while True:
        began = time.perf_counter()
        connection.sendall(order + num_bytes.to_bytes(8, "big"))
        if order == TAKE:
            send_through(connection, num_bytes)
            if connection.recv(1) != ECHO:
                raise ConnectionError("the other side disconnected")
        else:
            read_through(connection, num_bytes)
            connection.sendall(ECHO)
        took_s = time.perf_counter() - began
        if took_s >= span_s / 3:
            return round(num_bytes * 8 / took_s / 1e6, 1)
        num_bytes *= 4 if took_s < span_s / 12 else 2


def send_through(connection: socket.socket, num_bytes: int) -> None:
    """Send `num_bytes`, rounded down to whole pieces."""
    piece = bytes(PIECE_BYTES)
    for _ in range(num_bytes // PIECE_BYTES):
        connection.sendall(piece)


def read_through(connection: socket.socket, num_bytes: int) -> None:
    """Read `num_bytes` and drop them."""
    left = num_bytes
    while left:
        data = connection.recv(min(left, PIECE_BYTES))
        if not data:
            raise ConnectionError("the other side disconnected")
        left -= len(data)


def read_exactly(connection: socket.socket, num_bytes: int) -> bytes:
    """Read `num_bytes`, or less if the other side disconnects."""
    data = b""
    while len(data) < num_bytes and (more := connection.recv(num_bytes - len(data))):
        data += more
    return data

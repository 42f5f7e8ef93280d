"""The lines of the ring: sockets, keepalive, laps of two ranks on this machine, a long wait for a neighbour.

The second process returns each frame, after as many milliseconds as the frame's number says.
"""

from __future__ import annotations

import socket
import time

import mlx.core as mx

from distributed.ring.frame import Frame, Kind, with_hidden
from distributed.ring.ring import HiddenShape, MlxRing
from distributed.self_test.reporting import Report, Task, peer

CONNECT_LIMIT_S, LAP_LIMIT_S = 30.0, 60.0
EPOCH = 1
HIDDEN_SIZE = 64  # 256 bytes a token
LAP_TOKENS = {"lap-256B": 1, "lap-64KB": 256}
PRODUCT_SIZE = 512


def run(task: Task, report: Report) -> None:
    """Measure all lines."""
    with peer("ring-peer", task):
        ring = _join(0, task)
        with report.attempt("sockets"):
            kinds = sorted({f"{one.family.name} {one.type.name}" for one in ring.sockets})
            report.line("sockets", f"both of the ring's found: {', '.join(kinds)}", {"kinds": kinds})
        with report.attempt("keepalive"):
            _report_options(ring, report)
        for name, num_tokens in LAP_TOKENS.items():
            with report.attempt(name):
                report.spread(name, [_lap(ring, num_tokens) for _ in range(task.amounts.num_laps)])
        with report.attempt("ring-wait"):
            _report_wait(ring, report, task.amounts.ring_wait_s)
        ring.send(Frame(Kind.STOP, EPOCH))
        _receive(ring)
        ring.flush()


def run_peer(task: Task, report: Report) -> None:
    """Return each frame until STOP comes."""
    ring = _join(1, task)
    while True:
        frame, hidden = _receive(ring, None)
        time.sleep(frame.step / 1000)
        ring.send(frame, hidden)
        if frame.kind is Kind.STOP:
            ring.flush()
            return


def _join(rank: int, task: Task) -> MlxRing:
    ring = MlxRing(rank, list(task.hosts), EPOCH, CONNECT_LIMIT_S)
    ring.set_hidden_shape(HiddenShape(HIDDEN_SIZE, mx.float32))
    return ring


def _lap(ring: MlxRing, num_tokens: int, pause_s: float = 0.0) -> float:
    hidden = mx.zeros((1, num_tokens, HIDDEN_SIZE), mx.float32)
    mx.eval(hidden)
    step = Frame(Kind.STEP, EPOCH, step=int(pause_s * 1000), num_rows=1, num_tokens=num_tokens)
    began = time.perf_counter()
    ring.send(with_hidden(step), hidden)
    _receive(ring)
    return time.perf_counter() - began


def _receive(ring: MlxRing, limit_s: float | None = LAP_LIMIT_S) -> tuple[Frame, mx.array | None]:
    while not ring.is_readable():
        ring.wait(limit_s)
        if limit_s is not None and not ring.is_readable():
            raise TimeoutError(f"no frame came back within {limit_s:g} s")
    return ring.recv()


def _report_options(ring: MlxRing, report: Report) -> None:
    """Report what the system says of the sockets' options, not what was asked for."""
    idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
    wanted = {
        "on": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        **({"idle_s": (socket.IPPROTO_TCP, idle)} if idle is not None else {}),
        "interval_s": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
        "count": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
        "nodelay": (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    }
    of_each = [{name: one.getsockopt(*option) for name, option in wanted.items()} for one in ring.sockets]
    texts = [", ".join(f"{name} {value}" for name, value in options.items()) for options in of_each]
    is_on = all(options["on"] for options in of_each)
    report.line("keepalive", "; ".join(dict.fromkeys(texts)), {"sockets": of_each}, failed=not is_on)


def _report_wait(ring: MlxRing, report: Report, wait_s: float) -> None:
    """Wait for the neighbour while the device has had work, then give it work again."""
    values = mx.ones((PRODUCT_SIZE, PRODUCT_SIZE))
    mx.async_eval(values @ values)
    waited_s = _lap(ring, 1, wait_s)
    began = time.perf_counter()
    mx.eval(values @ values)
    product_s = time.perf_counter() - began
    report.times("ring-wait", {"waited": waited_s, "then_a_product": product_s, "a_lap": _lap(ring, 1)})

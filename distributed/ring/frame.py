"""The frame: the message that one rank sends to the next.

Knows the wire format; nothing of sockets, models or requests. A frame is a block of int32, then hidden
states.

    message 1   256 int32   fields 0-15, start_us and busy_us of each rank at 16-47, up to 208 payload ints
    message 2   int32       the rest of the payload, only if it is longer than 208
    message 3   float       hidden states (rows, tokens, hidden size), only if FLAG_HIDDEN is set

The payload of a STEP is `slots, offsets, counts` (rows ints each), then four ints a prefix copy, then the
table orders (four ints a resize, then its slots; three ints a clear), then, to the first stage only, the
token ids (rows x tokens). The payload of HELLO is JSON bytes. The checksum is the crc32 of message 1, with 0
in its own field, and message 2; only TCP's checksum covers hidden states. A frame holds integers and JSON
only: no rank ever executes what it receives."""

from __future__ import annotations

import json
import zlib
from dataclasses import astuple, dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed.planning.step import Clear, PrefixCopy, Resize, StageStep

Int32Array = NDArray[np.int32]

MAGIC = 0x52494E47  # "RING"
VERSION = 3
MAX_RANKS = 16
NUM_FIELDS = 16
NUM_HEADER_INTS = NUM_FIELDS + 2 * MAX_RANKS
NUM_BLOCK_INTS = 256
NUM_INLINE_INTS = NUM_BLOCK_INTS - NUM_HEADER_INTS
MAX_PAYLOAD_INTS = 1 << 22
_SIZE_FIELD, _CHECKSUM_FIELD = 9, 13


class FrameError(RuntimeError):
    """A block that is not a valid frame of this ring and epoch; the ring must be rebuilt."""


class Kind(IntEnum):
    """What a stage does with a frame."""

    HELLO = 1  # the plan and proof of the ring secret, before loading; each rank's line, after it; pings
    STEP = 2  # run a microbatch
    CACHE = 3  # drop all KV tables
    STOP = 4  # pass it on, then end


FLAG_HIDDEN = 1  # hidden states follow
FLAG_IDS = 2  # the payload ends with token ids
FLAG_LOGITS = 4  # the last stage samples each row's last token
FLAG_READY = 16  # HELLO only: the lap after loading
FLAG_ALONE = 32  # no other step is in flight: the other stages' cores are idle
FLAG_WARM = 64  # HELLO only: every GPU evaluates something, so that it stays awake


@dataclass(frozen=True)
class Frame:
    """A frame without its hidden states, which are a separate MLX array (rows, tokens, hidden size)."""

    kind: Kind
    epoch: int
    step: int = 0
    table: int = 0
    num_rows: int = 0
    num_tokens: int = 0
    num_copies: int = 0
    num_resizes: int = 0
    num_order_ints: int = 0  # of resizes and clears
    flags: int = 0
    payload: Int32Array = field(default_factory=lambda: np.zeros(0, np.int32))
    times: Int32Array = field(default_factory=lambda: np.zeros(2 * MAX_RANKS, np.int32))

    @property
    def has_hidden(self) -> bool:
        return bool(self.flags & FLAG_HIDDEN)

    @property
    def has_ids(self) -> bool:
        return bool(self.flags & FLAG_IDS)

    @property
    def num_bytes(self) -> int:
        """Bytes of messages 1 and 2."""
        return 4 * (NUM_BLOCK_INTS + max(0, self.payload.size - NUM_INLINE_INTS))

    @property
    def num_head_ints(self) -> int:
        """Payload ints that every stage gets: rows, copies and orders, without token ids."""
        return 3 * self.num_rows + 4 * self.num_copies + self.num_order_ints

    def with_times(self, rank: int, start_us: int, busy_us: int) -> Frame:
        """Return a copy with `rank`'s start (31 bits of its own clock) and busy time, in microseconds."""
        times = self.times.copy()
        times[2 * rank] = start_us & 0x7FFFFFFF
        times[2 * rank + 1] = min(busy_us, 0x7FFFFFFF)
        return replace(self, times=times)

    def busy_us(self, rank: int) -> int:
        return int(self.times[2 * rank + 1])

    def start_us(self, rank: int) -> int:
        return int(self.times[2 * rank])


def make_step_frame(step: StageStep, token_ids: Int32Array, *, epoch: int, number: int) -> Frame:
    """Build rank 0's frame for the first stage; `token_ids` is (rows, tokens) int32, padded on the right."""
    assert token_ids.shape == (step.num_rows, step.num_tokens)
    rows = np.array([step.slots, step.offsets, step.counts], dtype=np.int32)
    copies = np.array([astuple(copy) for copy in step.copies], dtype=np.int32)
    orders = np.array(_order_ints(step.resizes, step.clears), dtype=np.int32)
    return Frame(
        kind=Kind.STEP,
        epoch=epoch,
        step=number,
        table=step.table,
        num_rows=step.num_rows,
        num_tokens=step.num_tokens,
        num_copies=len(step.copies),
        num_resizes=len(step.resizes),
        num_order_ints=orders.size,
        flags=FLAG_IDS | (FLAG_LOGITS if step.wants_logits else 0) | (FLAG_ALONE if step.is_alone else 0),
        payload=np.concatenate([rows.ravel(), copies.ravel(), orders, token_ids.ravel()]),
    )


def _order_ints(resizes: tuple[Resize, ...], clears: tuple[Clear, ...]) -> list[int]:
    ints: list[int] = []
    for resize in resizes:
        ints += (resize.table, resize.num_rows, resize.num_tokens, len(resize.slots), *resize.slots)
    for clear in clears:
        ints += astuple(clear)
    return ints


def _parse_orders(frame: Frame, ints: list[int]) -> tuple[tuple[Resize, ...], tuple[Clear, ...]]:
    """Raises: FrameError: the ints are not valid orders."""
    resizes, place = [], 0
    for _ in range(frame.num_resizes):
        end = place + 4 + (max(0, ints[place + 3]) if place + 3 < len(ints) else len(ints))
        if end > len(ints):
            raise FrameError(f"step {frame.step}: a resize reaches beyond its orders")
        table, num_rows, num_tokens, _, *slots = ints[place:end]
        resizes.append(Resize(table, num_rows, num_tokens, tuple(slots)))
        place = end
    if (len(ints) - place) % 3:
        raise FrameError(f"step {frame.step}: {len(ints) - place} ints of clears, three each expected")
    return tuple(resizes), tuple(Clear(*ints[i : i + 3]) for i in range(place, len(ints), 3))


def parse_step(frame: Frame) -> tuple[StageStep, Int32Array | None]:
    """Return the step of a STEP frame and its token ids (rows, tokens), None after the first stage."""
    rows, head = frame.num_rows, frame.num_head_ints
    orders = head - frame.num_order_ints
    wanted = head + (rows * frame.num_tokens if frame.has_ids else 0)
    if frame.payload.size != wanted:
        raise FrameError(f"step {frame.step}: {frame.payload.size} payload ints, {wanted} expected")
    slots, offsets, counts = (tuple(part.tolist()) for part in frame.payload[: 3 * rows].reshape(3, rows))
    resizes, clears = _parse_orders(frame, frame.payload[orders:head].tolist())
    step = StageStep(
        table=frame.table,
        slots=slots,
        offsets=offsets,
        counts=counts,
        num_tokens=frame.num_tokens,
        wants_logits=bool(frame.flags & FLAG_LOGITS),
        copies=tuple(PrefixCopy(*part) for part in frame.payload[3 * rows : orders].reshape(-1, 4).tolist()),
        resizes=resizes,
        clears=clears,
        is_alone=bool(frame.flags & FLAG_ALONE),
    )
    ids = frame.payload[head:].reshape(rows, frame.num_tokens) if frame.has_ids else None
    return step, ids


def with_hidden(frame: Frame) -> Frame:
    """Return the frame that a stage passes on: without token ids, followed by hidden states."""
    head = frame.payload[: frame.num_head_ints]
    return replace(frame, flags=(frame.flags | FLAG_HIDDEN) & ~FLAG_IDS, payload=head)


def make_json_frame(kind: Kind, body: Any, *, epoch: int, flags: int = 0) -> Frame:
    """Build a frame whose payload is JSON, padded with spaces to whole ints."""
    raw = json.dumps(body, separators=(",", ":")).encode()
    padded = np.frombuffer(raw + b" " * (-len(raw) % 4), dtype="<i4").astype(np.int32)
    return Frame(kind=kind, epoch=epoch, flags=flags, payload=padded)


def parse_json(frame: Frame) -> Any:
    """Read the JSON payload of a frame.

    Raises:
        FrameError: the payload is not JSON.
    """
    try:
        return json.loads(frame.payload.astype("<i4").tobytes())
    except ValueError as error:
        raise FrameError(f"{frame.kind.name}: payload is not JSON") from error


def encode(frame: Frame) -> tuple[Int32Array, Int32Array | None]:
    """Return messages 1 and 2 of a frame; None: there is no message 2."""
    if frame.payload.size > MAX_PAYLOAD_INTS:
        raise FrameError(f"payload of {frame.payload.size} ints is over the limit of {MAX_PAYLOAD_INTS}")
    block = np.zeros(NUM_BLOCK_INTS, np.int32)
    block[:_CHECKSUM_FIELD] = (
        MAGIC,
        VERSION,
        frame.epoch,
        frame.step & 0x7FFFFFFF,
        frame.kind,
        frame.table,
        frame.num_rows,
        frame.num_tokens,
        frame.flags,
        frame.payload.size,
        frame.num_copies,
        frame.num_resizes,
        frame.num_order_ints,
    )
    block[NUM_FIELDS:NUM_HEADER_INTS] = frame.times
    inline = min(frame.payload.size, NUM_INLINE_INTS)
    block[NUM_HEADER_INTS : NUM_HEADER_INTS + inline] = frame.payload[:inline]
    rest = frame.payload[inline:] if frame.payload.size > inline else None
    block[_CHECKSUM_FIELD] = _checksum(block, rest)
    return block, rest


def num_rest_ints(block: Int32Array, *, epoch: int) -> int:
    """Check message 1's fixed fields; return how many ints message 2 has (0: there is none).

    Raises:
        FrameError: wrong magic, version, epoch or sizes.
    """
    magic, version, got_epoch = (int(v) for v in block[:3])
    if magic != MAGIC or version != VERSION:
        raise FrameError(f"not a frame of version {VERSION} (magic {magic:#x}, version {version})")
    if got_epoch != epoch:
        raise FrameError(f"a frame of epoch {got_epoch} in epoch {epoch}")
    size = int(block[_SIZE_FIELD])
    if not 0 <= size <= MAX_PAYLOAD_INTS:
        raise FrameError(f"payload size {size} is out of range")
    return max(0, size - NUM_INLINE_INTS)


def decode(block: Int32Array, rest: Int32Array | None) -> Frame:
    """Build the frame from messages 1 and 2.

    Raises:
        FrameError: the checksum or a field is wrong.
    """
    sent = int(block[_CHECKSUM_FIELD])
    clean = block.copy()
    clean[_CHECKSUM_FIELD] = 0
    if _checksum(clean, rest) != sent:
        raise FrameError("frame checksum does not match")
    fields = [int(v) for v in block[:NUM_FIELDS]]
    inline = block[NUM_HEADER_INTS : NUM_HEADER_INTS + min(fields[_SIZE_FIELD], NUM_INLINE_INTS)]
    return Frame(
        kind=Kind(fields[4]),
        epoch=fields[2],
        step=fields[3],
        table=fields[5],
        num_rows=fields[6],
        num_tokens=fields[7],
        flags=fields[8],
        num_copies=fields[10],
        num_resizes=fields[11],
        num_order_ints=fields[12],
        payload=inline.copy() if rest is None else np.concatenate([inline, rest]),
        times=block[NUM_FIELDS:NUM_HEADER_INTS].copy(),
    )


def _checksum(block: Int32Array, rest: Int32Array | None) -> int:
    value = zlib.crc32(block.tobytes())
    if rest is not None:
        value = zlib.crc32(rest.tobytes(), value)
    return value - (1 << 32) if value >= 1 << 31 else value

"""Frames on the wire: a frame reads back the same, and a damaged one is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed.planning.step import Clear, PrefixCopy, Resize, StageStep
from distributed.ring.frame import (
    NUM_BLOCK_INTS,
    NUM_INLINE_INTS,
    Frame,
    FrameError,
    Int32Array,
    Kind,
    decode,
    encode,
    make_json_frame,
    make_step_frame,
    num_rest_ints,
    parse_json,
    parse_step,
    with_hidden,
)


def make_frame(num_rows: int = 3, num_tokens: int = 4) -> Frame:
    rows = range(num_rows)
    step = StageStep(
        table=1,
        slots=tuple(rows),
        offsets=tuple(10 * row for row in rows),
        counts=(num_tokens,) * num_rows,
        num_tokens=num_tokens,
        wants_logits=False,
        copies=(PrefixCopy(0, 1, 2, 30),) * (num_rows % 3),
        resizes=(Resize(0, 0, 0), Resize(1, 4, 512, (3, 1)))[: num_rows % 4],
        clears=(Clear(0, 5, 9), Clear(2, 0, 64))[: num_tokens % 3],
        is_alone=True,
    )
    ids = np.arange(num_rows * num_tokens, dtype=np.int32).reshape(num_rows, num_tokens)
    return make_step_frame(step, ids, epoch=5, number=9)


def receive(block: Int32Array, rest: Int32Array | None) -> Frame:
    num_rest_ints(block, epoch=5)
    return decode(block, rest)


@given(num_rows=st.integers(1, 40), num_tokens=st.integers(1, 60))
def test_a_step_survives_the_wire(num_rows: int, num_tokens: int) -> None:
    """Small payloads fit into message 1, larger ones need message 2; both read back the same."""
    frame = make_frame(num_rows, num_tokens)
    block, rest = encode(frame)
    assert block.shape == (NUM_BLOCK_INTS,)
    assert (rest is None) == (frame.payload.size <= NUM_INLINE_INTS)
    assert num_rest_ints(block, epoch=5) == (0 if rest is None else rest.size)
    step, ids = parse_step(decode(block, rest))
    assert step == parse_step(frame)[0]
    assert (step.is_alone, step.wants_logits) == (True, False)
    assert len(step.clears) == min(2, num_tokens % 3)
    assert ids is not None
    assert ids.tolist() == np.arange(num_rows * num_tokens).reshape(num_rows, num_tokens).tolist()


@given(bit=st.integers(0, 32 * NUM_BLOCK_INTS - 1))
def test_any_flipped_bit_of_the_header_is_noticed(bit: int) -> None:
    """No frame with a damaged first message is accepted."""
    block, rest = encode(make_frame())
    damaged = bytearray(block.tobytes())
    damaged[bit // 8] ^= 1 << bit % 8
    array = np.frombuffer(bytes(damaged), np.int32)
    with pytest.raises((FrameError, ValueError)):
        receive(array, rest)


def test_a_frame_of_another_epoch_is_refused() -> None:
    """A stale rank's frame cannot enter a new ring."""
    block, _ = encode(make_frame())
    with pytest.raises(FrameError, match="epoch 5 in epoch 6"):
        num_rest_ints(block, epoch=6)


def test_token_ids_leave_the_frame_at_the_first_stage() -> None:
    """What a stage passes on has rows but no ids, and announces hidden states."""
    passed = with_hidden(make_frame())
    assert passed.has_hidden
    assert parse_step(passed)[1] is None
    assert parse_step(passed)[0].offsets == (0, 10, 20)


def test_each_rank_writes_its_own_times() -> None:
    """Start and busy time of a rank are read back by rank."""
    frame = make_frame().with_times(2, start_us=123, busy_us=456).with_times(0, start_us=1, busy_us=2)
    assert (frame.busy_us(2), frame.start_us(2), frame.busy_us(0), frame.busy_us(1)) == (456, 123, 2, 0)


def test_json_goes_through_a_frame() -> None:
    """HELLO's body reads back, also beyond the inline size; rubbish is refused."""
    body = {"text": "ü" * 900, "list": [1, 2]}
    assert parse_json(decode(*encode(make_json_frame(Kind.HELLO, body, epoch=1)))) == body
    with pytest.raises(FrameError):
        parse_json(Frame(Kind.HELLO, 1, payload=np.array([1, 2, 3], np.int32)))

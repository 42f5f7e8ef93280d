"""Text leaves only when it is certain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer

from distributed.text_stream import TextStream
from tests.checkpoints import make_tokenizer


@pytest.fixture(scope="module")
def detokenizer() -> Any:
    return BPEStreamingDetokenizer(make_tokenizer())


def stream(detokenizer: Any, text: str, *stop: str) -> tuple[list[str], TextStream]:
    """Feed a text, one token a byte; return the pieces as they leave, the last one from the end."""
    made = TextStream(detokenizer, stop)
    pieces = []
    for token in make_tokenizer().encode(text, add_special_tokens=False):
        pieces.append(made.add(token))
        if made.is_stopped:
            return pieces, made
    pieces.append(made.finish())
    return pieces, made


def test_incomplete_utf8_is_held_back(detokenizer: Any) -> None:
    """A character of four bytes appears with its last byte."""
    pieces, _ = stream(detokenizer, "a😀b")
    assert pieces == ["a", "", "", "", "😀", "b", ""]


def test_a_stop_string_over_several_tokens_is_never_shown(detokenizer: Any) -> None:
    """Its beginning is held back until it is complete or cannot be."""
    pieces, made = stream(detokenizer, "one END two", "END")
    assert ("".join(pieces), made.is_stopped) == ("one ", True)
    pieces, made = stream(detokenizer, "one ENter", "END")
    assert ("".join(pieces), made.is_stopped) == ("one ENter", False)
    assert pieces[3:7] == ["", " ", "", "ENt"]  # mlx-lm holds a lone space back, too


def test_what_is_held_at_the_end_is_released(detokenizer: Any) -> None:
    """An answer that ends in half a stop string keeps it."""
    pieces, made = stream(detokenizer, "one EN", "END")
    assert ("".join(pieces), made.is_stopped) == ("one EN", False)


# mlx_lm 0.32.2 decodes the zero byte wrongly (tokenizer_utils.py, _decode_bytes).
TEXT = st.characters(codec="utf-8", exclude_characters="\0")


@given(text=st.text(TEXT, max_size=40), stop=st.text(TEXT, min_size=1, max_size=4))
def test_pieces_are_the_text_up_to_the_first_stop_string(text: str, stop: str) -> None:
    """Whatever the text and the stop string."""
    text = "x" + text  # the detokenizer trims a leading space of the whole text
    pieces, made = stream(BPEStreamingDetokenizer(make_tokenizer()), text, stop)
    found = text.find(stop)
    assert made.is_stopped == (found >= 0)
    assert "".join(pieces) == (text[:found] if found >= 0 else text)


def test_replayed_tokens_lead_to_the_same_state(detokenizer: Any, tmp_path: Path) -> None:
    """A resumed answer that replays its ids goes on exactly as the first one."""
    ids = make_tokenizer().encode("héllo wörld STOP", add_special_tokens=False)
    first, second = (TextStream(detokenizer, ("STOP",)) for _ in range(2))
    shown = [first.add(token) for token in ids[:7]]
    assert [second.add(token) for token in ids[:7]] == shown
    assert [first.add(token) for token in ids[7:]] == [second.add(token) for token in ids[7:]]

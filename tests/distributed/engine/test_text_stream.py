"""The text of an answer is what its tokens say, and leaves only when it is certain."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distributed.engine.text_stream import TextStream
from prompts.detokenizer import Detokenizer
from tests.fakes.checkpoints import make_tokenizer
from tests.fakes.trained_tokenizers import DECODED

BYTES = Detokenizer(make_tokenizer(), {"type": "ByteLevel"}, frozenset({256, 257}))


def stream(text: str, *stop: str) -> tuple[list[str], TextStream]:
    """Feed a text, one token a byte; return the pieces as they leave, the last one from the end."""
    made = TextStream(BYTES, stop)
    pieces = []
    for token in make_tokenizer().encode(text, add_special_tokens=False).ids:
        pieces.append(made.add(token))
        if made.is_stopped:
            return pieces, made
    pieces.append(made.finish())
    return pieces, made


def text_of(made: TextStream, token_ids: list[int]) -> str:
    return "".join(map(made.add, token_ids)) + made.finish()


def detokenizer_of(name: str) -> Detokenizer:
    described = json.loads(DECODED[name].to_str())
    return Detokenizer(DECODED[name], described["decoder"], frozenset())


DETOKENIZERS = {name: detokenizer_of(name) for name in DECODED}


def is_utf8(name: str, token_ids: list[int]) -> bool:
    """Whether each run of byte tokens is whole characters: tokenizers writes one sign a byte otherwise."""
    run = b""
    for token_id in [*token_ids, 0]:
        token = DECODED[name].id_to_token(token_id) or ""
        if token.startswith("<0x"):
            run += bytes([int(token[3:5], 16)])
        elif run.decode(errors="ignore").encode() != run:
            return False
        else:
            run = b""
    return True


@pytest.mark.parametrize("name", DECODED)
@settings(deadline=None)
@given(data=st.data())
def test_the_text_is_that_of_the_whole_list_of_ids(name: str, data: Any) -> None:
    """Token by token, whatever the kind of tokenizer, ids beyond the vocabulary and halves of characters."""
    size = DECODED[name].get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size + 2), max_size=12))
    whole = DECODED[name].decode(ids, skip_special_tokens=False)
    text = text_of(TextStream(DETOKENIZERS[name], ()), ids)
    if is_utf8(name, ids):
        assert text == whole
    assert text == text_of(TextStream(DETOKENIZERS[name], ()), ids)


@pytest.mark.parametrize("name", DECODED)
def test_an_answer_that_continues_a_text_keeps_its_first_space(name: str) -> None:
    """The texts of prompt and answer one after the other are the text of both, on every tokenizer."""
    tokenizer = DECODED[name]
    for text in ("the sea", "the sea is cold", " the"):
        ids = tokenizer.encode(text).ids
        for cut in range(1, len(ids)):
            made = TextStream(DETOKENIZERS[name], (), ids[cut - 1])
            before = tokenizer.decode(ids[:cut], skip_special_tokens=False)
            assert before + text_of(made, ids[cut:]) == tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", DECODED)
def test_the_cost_of_a_token_does_not_grow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most two tokens are decoded at once, however long the answer and its lines."""
    lengths = []
    detokenizer, ids = detokenizer_of(name), list(range(3, 20)) * 50

    def decode(*token_ids: int) -> str:
        lengths.append(len(token_ids))
        return str(DECODED[name].decode(token_ids, skip_special_tokens=False))

    monkeypatch.setattr(detokenizer, "_decode", decode)
    text_of(TextStream(detokenizer, ()), ids)
    assert max(lengths, default=0) <= 2


def test_the_first_space_of_an_answer_belongs_to_it() -> None:
    """It is shown at once, and a stop string may be made of it."""
    assert stream(" Paris")[0] == [" ", "P", "a", "r", "i", "s", ""]
    assert stream(" Paris", "Paris")[0][0] == " "
    for stop in (" ", " P"):
        pieces, made = stream(" Paris", stop)
        assert ("".join(pieces), made.is_stopped) == ("", True)


@pytest.mark.parametrize("name", DECODED)
def test_a_space_that_the_template_writes_is_dropped_once(name: str) -> None:
    """By the decoder or here, and only from the start of an answer in a chat."""
    tokenizer, described = DECODED[name], json.loads(DECODED[name].to_str())
    made = Detokenizer(tokenizer, described["decoder"], frozenset(), has_template_space=True)
    for text in ("the sea", " the sea", "sea"):
        ids = tokenizer.encode(text).ids
        plain = text_of(TextStream(DETOKENIZERS[name], ()), ids)
        spaced = text_of(TextStream(DETOKENIZERS[name], (), ids[0]), ids)
        wanted = spaced[1:] if spaced.startswith(" ") else plain
        assert text_of(TextStream(made, ()), ids) == wanted
        assert text_of(TextStream(made, (), ids[0]), ids) == spaced


def test_incomplete_utf8_is_held_back() -> None:
    """A character of four bytes appears with its last byte; half of one at the end is not lost."""
    assert stream("a😀b")[0] == ["a", "", "", "", "😀", "b", ""]
    made = TextStream(BYTES, ())
    ids = make_tokenizer().encode("a😀", add_special_tokens=False).ids
    assert [made.add(token) for token in ids[:-1]] == ["a", "", "", ""]
    assert made.finish() == "\ufffd"


def test_a_silent_token_leaves_no_trace() -> None:
    """Special tokens, ends of answers and ids beyond the vocabulary: not even within a character."""
    ids = make_tokenizer().encode("a😀", add_special_tokens=False).ids
    assert text_of(TextStream(BYTES, ()), [256, *ids[:2], 257, 5000, *ids[2:], 257]) == "a😀"


def test_a_stop_string_over_several_tokens_is_never_shown() -> None:
    """Its beginning is held back until it is complete or cannot be."""
    pieces, made = stream("one END two", "END")
    assert ("".join(pieces), made.is_stopped) == ("one ", True)
    pieces, made = stream("one ENter", "END")
    assert ("".join(pieces), made.is_stopped) == ("one ENter", False)
    assert pieces[3:7] == [" ", "", "", "ENt"]


def test_the_stop_string_that_is_complete_first_ends_the_answer() -> None:
    """Wherever tokens end; of several that end together the longest."""
    for stops in (("abc", "b"), ("b", "abc")):
        for ids in (list("abc"), ["abc"]):
            made = TextStream(Words(), stops)
            shown = "".join(made.add(Words.number(word)) for word in ids if not made.is_stopped)
            assert (shown, made.is_stopped) == ("a", True)
    assert "".join(stream("xabc", "bc", "abc")[0]) == "x"


class Words:
    """A token a word."""

    WORDS = ("a", "b", "c", "abc")

    @classmethod
    def number(cls, word: str) -> int:
        return cls.WORDS.index(word)

    def is_known(self, token_id: int) -> bool:
        return True

    def added_bytes(self, token_id: int, before: int | None) -> bytes:
        return self.WORDS[token_id].encode()


TEXT = st.characters(codec="utf-8")
STOPS = st.lists(st.text(TEXT, min_size=1, max_size=4), max_size=16)


@settings(deadline=None)
@example(text="one EN", stops=["END"])
@given(text=st.text(TEXT, max_size=40), stops=STOPS)
def test_pieces_are_the_text_up_to_the_first_stop_string(text: str, stops: list[str]) -> None:
    """Whatever the text and the stop strings."""
    pieces, made = stream(text, *stops)
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert made.is_stopped == bool(ends)
    assert "".join(pieces) == (text[: min(ends)[1]] if ends else text)

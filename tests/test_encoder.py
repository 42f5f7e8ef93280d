"""Two tokenizer libraries, one numbering; and a long text holds nobody up."""

import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from prompts import encoder as encoder_module
from prompts.encoder import TextEncoder
from tests.trained_tokenizers import BY_NEIGHBOUR, BY_PLACE, SPECIAL, TOKENIZERS

PIECES = st.sampled_from(
    [
        *SPECIAL,
        "<tool>",
        "<|im_",
        "north",
        "NORTH",
        "'s",
        "'LL",
        "  ",
        "\n\n",
        "\r\n",
        " 345",
        "the sea",
        "。",
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=12), max_size=20).map("".join)


def make_encoder(tokenizer: Tokenizer) -> TextEncoder:
    return TextEncoder(tokenizer.to_str().encode())


BOTH = TOKENIZERS | BY_NEIGHBOUR
ENCODERS = {name: make_encoder(tokenizer) for name, tokenizer in BOTH.items()}


@pytest.mark.parametrize("name", BOTH)
@settings(deadline=None)
@given(text=TEXTS, adds=st.booleans())
def test_both_libraries_number_alike(name: str, text: str, adds: bool) -> None:
    """Any text in any script, for every family of tokenizers that is served."""
    encoder = ENCODERS[name]
    assert encoder.is_quick or encoder.hasten()
    assert encoder.encode(text, add_special_tokens=adds) == (
        BOTH[name].encode(text, add_special_tokens=adds).ids
    )


@pytest.mark.parametrize("name", BY_PLACE)
def test_other_tokenizers_keep_to_the_one_library(name: str) -> None:
    """What was not compared is not used."""
    encoder = make_encoder(BY_PLACE[name])
    assert not encoder.hasten()
    assert encoder.encode("the sea") == BY_PLACE[name].encode("the sea", add_special_tokens=False).ids


class OtherNumbers:
    """Reads every tokenizer, and agrees with none on digits."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        return self._tokenizer.encode(text.replace("13", "31"), add_special_tokens=add_special_tokens)


class Fake:
    """Stands for the fastokens module."""

    class Tokenizer:
        @staticmethod
        def from_json_str(described: str) -> OtherNumbers:
            return OtherNumbers(Tokenizer.from_str(described))


def test_one_that_disagrees_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The texts that are compared at every start tell."""
    monkeypatch.setattr(encoder_module, "fastokens", Fake)
    encoder = make_encoder(TOKENIZERS["plain"])
    assert not encoder.hasten()
    assert "otherwise" in caplog.text
    assert encoder.encode("13") == TOKENIZERS["plain"].encode("13").ids


def test_a_machine_without_a_wheel_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """fastokens is no more than a help."""
    monkeypatch.setattr(encoder_module, "fastokens", None)
    encoder = make_encoder(TOKENIZERS["plain"])
    assert not encoder.hasten()
    assert encoder.encode("the sea") == TOKENIZERS["plain"].encode("the sea").ids


def test_a_text_that_one_gives_up_on_is_left_to_the_other() -> None:
    """A million spaces are too deep for fastokens' regular expressions."""
    encoder = ENCODERS["digits"]
    assert encoder.is_quick or encoder.hasten()
    text = " " * 1_000_000
    with pytest.raises(ValueError, match="regex"):
        encoder._quick.encode(text, add_special_tokens=False)
    assert encoder.encode(text) == TOKENIZERS["digits"].encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("is_quick", [False, True])
def test_a_long_text_holds_nobody_up(is_quick: bool) -> None:
    """The interpreter's lock is free meanwhile: other threads go on, as the front door's event loop must."""
    encoder = make_encoder(TOKENIZERS["digits"])
    assert not is_quick or encoder.hasten()
    text = "the water of the sea is cold, 12 345 degrees " * (20_000 if is_quick else 4_000)
    is_over = threading.Event()
    begun_s = time.perf_counter()

    def encode() -> None:
        encoder.encode(text)
        is_over.set()

    thread = threading.Thread(target=encode)
    thread.start()
    longest_s, last_s = 0.0, begun_s
    while not is_over.wait(0.001):
        now_s = time.perf_counter()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    thread.join()
    assert longest_s < (time.perf_counter() - begun_s) / 2

"""Chats tokenized turn by turn: the same ids as the whole text, and no turn twice."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from prompts import turns
from prompts.encoder import TextEncoder
from prompts.turns import TurnEncoder, find_separator
from tests.trained_tokenizers import BY_NEIGHBOUR, BY_PLACE, SAMPLE, SPECIAL, TOKENIZERS, config_of

PIECES = st.sampled_from(
    [
        *SPECIAL,
        "<tool>",
        "<|im_",
        "start|>",
        "|>",
        "<",
        " ",
        "\n",
        "user\n",
        "the sea",
        " 345",
        "north",
        "NORTH",
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=8), max_size=30).map("".join)


def make_encoder(tokenizer: Tokenizer) -> TurnEncoder:
    return TurnEncoder(TextEncoder(tokenizer.to_str().encode()), config_of(tokenizer), SAMPLE)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_turn_by_turn_is_the_same_as_at_once(name: str, texts: list[str]) -> None:
    """Whatever is between the special tokens, halves of them included, fresh or remembered."""
    tokenizer = TOKENIZERS[name]
    encoder = make_encoder(tokenizer)
    assert encoder.separator == "<|im_start|>"
    for text in [*texts, *texts]:
        assert encoder.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids


class CountingEncoder(TextEncoder):
    """Keeps a list of the texts."""

    texts: list[str]

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        self.texts.append(text)
        return super().encode(text, add_special_tokens=add_special_tokens)


def test_only_new_turns_are_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    """The history and a shared system prompt are remembered; the oldest go when it is too much."""
    tokenizer = CountingEncoder(TOKENIZERS["plain"].to_str().encode())
    tokenizer.texts = []
    encoder = TurnEncoder(tokenizer, config_of(TOKENIZERS["plain"]), SAMPLE)
    system, ask = "<|im_start|>system\nbe brief<|im_end|>\n", "<|im_start|>user\nhi<|im_end|>\n"
    encoder.encode(f"{system}{ask}<|im_start|>assistant\n")
    assert tokenizer.texts == ["system\nbe brief<|im_end|>\n", "user\nhi<|im_end|>\n", "assistant\n"]
    tokenizer.texts.clear()
    history = f"{system}{ask}<|im_start|>assistant\nyes<|im_end|>\n"
    encoder.encode(f"{history}<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.texts == ["assistant\nyes<|im_end|>\n", "user\nwhy?<|im_end|>\n"]
    tokenizer.texts.clear()
    encoder.encode(ask, "somebody else")
    assert tokenizer.texts == ["user\nhi<|im_end|>\n"]
    monkeypatch.setattr(turns, "MAX_REMEMBERED_BYTES", turns.PIECE_BYTES + 4 * 60)
    for _ in range(2):
        tokenizer.texts.clear()
        encoder.encode("<|im_start|>" + "x" * 30 + "<|im_start|>" + "y" * 30)
        assert len(tokenizer.texts) == 2
    encoder.encode("<|im_start|>" + "y" * 30)
    assert len(tokenizer.texts) == 2


UNSURE = BY_PLACE | BY_NEIGHBOUR


@pytest.mark.parametrize("name", UNSURE)
def test_a_tokenizer_that_may_differ_gets_the_whole_text(name: str) -> None:
    """No separator is found, and the ids are its own."""
    tokenizer = UNSURE[name]
    encoder = make_encoder(tokenizer)
    assert encoder.separator is None
    assert encoder.encode(SAMPLE) == tokenizer.encode(SAMPLE, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "change",
    [
        {"truncation": {"max_length": 8}},
        {"padding": {"strategy": "BatchLongest"}},
        {"model": {"type": "Unigram"}},
        {"model": {"type": "BPE", "dropout": 0.1}},
        {"normalizer": {"type": "Prepend", "prepend": "_"}},
        {"pre_tokenizer": {"type": "ByteLevel"}},
        {"added_tokens": [{"content": "<|im_start|>", "special": True, "normalized": True}]},
        {"added_tokens": []},
    ],
)
def test_what_the_configuration_may_say_against_it(change: dict[str, Any]) -> None:
    """Each of these makes a piece depend on more than itself, or the token on its surroundings."""
    config = config_of(TOKENIZERS["plain"])
    assert find_separator(config, SAMPLE) == "<|im_start|>"
    assert find_separator({**config, **change}, SAMPLE) is None
    assert find_separator(config, "a template without special tokens") is None


def test_a_token_that_another_may_cut_into_is_no_separator() -> None:
    """Where one ends as the other begins, the one on the left wins."""
    config = config_of(TOKENIZERS["plain"])
    for other in ("x<|im", "|>y", "<|im_start|>2", "im_st"):
        added = [*config["added_tokens"], {"content": other, "normalized": False}]
        assert find_separator({**config, "added_tokens": added}, SAMPLE) != "<|im_start|>"

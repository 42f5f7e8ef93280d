"""Chats tokenized turn by turn: the same ids as the whole text, and no turn twice."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from prompts import turns
from prompts.turns import TurnEncoder, find_separator

SPECIAL = ("<|bos|>", "<|im_start|>", "<|im_end|>")
SAMPLE = "<|bos|><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n<|im_start|>user\n"
CORPUS = ["the water of the sea is cold in the north, 12 345 degrees", "Größe, naïve café 北京 🎉", SAMPLE]
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)


def train(pre_tokenizer: Any = BYTE_LEVEL, normalizer: Any = None, **flags: bool) -> Tokenizer:
    """Train a BPE tokenizer with real merges; `flags` are those of its special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.normalizer = pre_tokenizer, normalizer
    special = [AddedToken(text, special=True, normalized=False, **flags) for text in SPECIAL]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("north", normalized=True)])
    return tokenizer


def config_of(tokenizer: Tokenizer) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(tokenizer.to_str())
    return config


DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL])
TOKENIZERS = {
    "plain": train(),
    "digits": train(DIGITS),
    "normalized": train(normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])),
}
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


@pytest.mark.parametrize("name", TOKENIZERS)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_turn_by_turn_is_the_same_as_at_once(name: str, texts: list[str]) -> None:
    """Whatever is between the special tokens, halves of them included, fresh or remembered."""
    tokenizer = TOKENIZERS[name]
    encoder = TurnEncoder(tokenizer, config_of(tokenizer), SAMPLE)
    assert encoder.separator == "<|im_start|>"
    for text in [*texts, *texts]:
        assert encoder.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids


class CountingTokenizer:
    """Passes texts on and keeps a list of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.texts: list[str] = []

    def encode(self, text: str, add_special_tokens: bool) -> Any:
        self.texts.append(text)
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        token_id: int | None = self.tokenizer.token_to_id(token)
        return token_id


def test_only_new_turns_are_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    """The history and a shared system prompt are remembered; the oldest go when it is too much."""
    tokenizer = CountingTokenizer(TOKENIZERS["plain"])
    encoder = TurnEncoder(tokenizer, config_of(tokenizer.tokenizer), SAMPLE)
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


UNSURE = {
    "marks the first piece": train(pre_tokenizers.Metaspace()),
    "puts a space before each piece": train(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "takes spaces after the token": train(rstrip=True),
    "takes spaces before the token": train(lstrip=True),
    "a token only beside spaces": train(single_word=True),
}


@pytest.mark.parametrize("name", UNSURE)
def test_a_tokenizer_that_may_differ_gets_the_whole_text(name: str) -> None:
    """No separator is found, and the ids are its own."""
    tokenizer = UNSURE[name]
    encoder = TurnEncoder(tokenizer, config_of(tokenizer), SAMPLE)
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

"""Which tokens end an answer, wherever a model's folder says so, and that their text never shows."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from distributed.engine.text_stream import TextStream
from prompts.tokenizer import PromptTokenizer, TokenizerUnusable
from tests.services.frontdoor_service import make_model_folder

START, END = 256, 257  # of the folder's tokenizer; <|start|> and <|end|> are special in tokenizer.json
TURN, PLAIN = 258, 259  # <turn> is so, too, and <plain> is an added token that is not


def make_folder(folder: Path, **files: Any) -> Path:
    """Write a folder whose configuration names no special token; `files` are JSON files by their stem."""
    make_model_folder(folder)
    described = json.loads((folder / "tokenizer.json").read_text())
    for token_id, text in ((TURN, "<turn>"), (PLAIN, "<plain>")):
        added = {**described["added_tokens"][0], "id": token_id, "content": text, "special": token_id == TURN}
        described["added_tokens"].append(added)
    (folder / "tokenizer.json").write_text(json.dumps(described))
    for name, content in {"tokenizer_config": {}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def text_of(tokenizer: PromptTokenizer, *token_ids: int) -> str:
    made = TextStream(tokenizer.detokenizer, ())
    return "".join(map(made.add, token_ids)) + made.finish()


@pytest.mark.parametrize("token_id", [END, TURN, PLAIN, 97])
@pytest.mark.parametrize(
    "place", ["generation_config", "listed there", "config", "text_config", "tokenizer_config", "map", "both"]
)
def test_the_text_of_an_end_token_never_shows(tmp_path: Path, place: str, token_id: int) -> None:
    """Wherever it was found, and whether tokenizer.json calls it special, added, or neither."""
    text = PromptTokenizer(make_folder(tmp_path)).detokenizer._tokenizer.id_to_token(token_id)
    cases: dict[str, dict[str, Any]] = {
        "generation_config": {"generation_config": {"eos_token_id": token_id}},
        "listed there": {"generation_config": {"eos_token_id": [5, token_id]}},
        "config": {"config": {"eos_token_id": token_id}, "generation_config": {"eos_token_id": None}},
        "text_config": {"config": {"text_config": {"eos_token_id": [token_id]}}},
        "tokenizer_config": {"tokenizer_config": {"eos_token": text}, "config": {"eos_token_id": 5}},
        "map": {"special_tokens_map": {"eos_token": {"content": text}}},
        "both": {"special_tokens_map": {"eos_token": text}, "generation_config": {"eos_token_id": [5]}},
    }
    tokenizer = PromptTokenizer(make_folder(tmp_path, **cases[place]))
    assert token_id in tokenizer.end_token_ids
    assert text_of(tokenizer, 72, token_id) == text_of(tokenizer, 72)


def test_the_generation_config_decides_what_ends_an_answer(tmp_path: Path) -> None:
    """config.json may be out of date: it counts where the generation config says nothing."""
    files = {"config": {"eos_token_id": 2}, "generation_config": {"eos_token_id": [TURN]}}
    assert PromptTokenizer(make_folder(tmp_path, **files)).end_token_ids == {TURN}


@pytest.mark.parametrize("value", ["2", [None, "x", -1, 1.5, True, [3]], {}, -1, False])
def test_a_malformed_end_token_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    """The model still starts, with the end tokens of the next source."""
    files = {"generation_config": {"eos_token_id": value}, "config": {"eos_token_id": [TURN, 100_000]}}
    with caplog.at_level(logging.WARNING):
        tokenizer = PromptTokenizer(make_folder(tmp_path, **files))
    assert tokenizer.end_token_ids == {TURN, 100_000}
    assert text_of(tokenizer, 72, 100_000, 73) == text_of(tokenizer, 72, 73)
    assert "generation_config.json: eos_token_id" in caplog.text


def test_a_broken_generation_config_is_named(tmp_path: Path) -> None:
    """It gives one sentence for the user."""
    make_folder(tmp_path, generation_config=[1])
    with pytest.raises(TokenizerUnusable, match=r"generation_config\.json is not a JSON object"):
        PromptTokenizer(tmp_path)


def test_tokens_that_the_configuration_names_are_silent(tmp_path: Path) -> None:
    """By a common name, a name of the model's own, or in a list; other added tokens show."""
    names = {
        "bos_token": "<|start|>",
        "image_token": "<turn>",
        "additional_special_tokens": [{"content": "i"}],
    }
    tokenizer = PromptTokenizer(make_folder(tmp_path, tokenizer_config=names))
    (letter,) = tokenizer.encode_rendered("i")
    assert text_of(tokenizer, START, TURN, letter, PLAIN, END) == "<plain><|end|>"


@pytest.mark.slow
def test_the_silent_tokens_are_those_that_transformers_calls_special(tmp_path: Path) -> None:
    """Where no end token is listed by id."""
    from transformers import AutoTokenizer

    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "x_token": "<turn>"}
    for extra in ({}, {"additional_special_tokens": ["<plain>"]}, {"extra_special_tokens": {"y": "<plain>"}}):
        folder = make_folder(tmp_path, tokenizer_config={**config, **extra})
        theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        assert PromptTokenizer(folder).detokenizer._silent == set(theirs.all_special_ids)

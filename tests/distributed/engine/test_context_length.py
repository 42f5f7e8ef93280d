"""The length of a context, from the model, the settings and the memory, and how users see it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from config import Settings, load_settings
from config.context_length import ContextLength, find_model_tokens, limit_context, read_model_tokens
from distributed.engine.engine_config import make_scheduler
from distributed.engine.status import RingStatus
from distributed.planning.kv_sizes import most_tokens, padded_tokens
from distributed.ring.handshake import RankInfo
from distributed.self_test.seeded_models import make_model_folder
from tests.fakes.checkpoints import make_checkpoint
from tests.fakes.family_configs import CONFIGS


def make_settings(folder: Path, length: str) -> Settings:
    return load_settings({"MAX_SEQUENCE_LENGTH": length}, root=folder, environ={})


YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, None),
        ({"max_position_embeddings": "many"}, None),
        ({"max_position_embeddings": 8192}, 8192),
        ({"max_position_embeddings": 8192, "rope_scaling": None}, 8192),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 2048}}, 2048),
        # yarn names what it stretches, whatever else is named (DeepSeek names the result, Qwen does not)
        ({"max_position_embeddings": 163840, "rope_scaling": YARN}, 163840),
        ({"max_position_embeddings": 4096, "rope_scaling": YARN}, 163840),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, 8192),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8}}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": {"type": "longrope"}}, 131072),
        ({"max_position_embeddings": 512, "rope_parameters": {"full_attention": {"factor": 8}}}, 512),
    ],
)
def test_the_models_own_length_is_found(config: dict[str, Any], wanted: int | None) -> None:
    """Under its usual names, in text_config too, stretched as the rope scaling says."""
    assert find_model_tokens(config) == wanted


def test_a_folder_without_a_readable_config_names_no_length(tmp_path: Path) -> None:
    """Loading the model reports missing and broken files."""
    assert read_model_tokens(tmp_path) is None
    (tmp_path / "config.json").write_text("{")
    assert read_model_tokens(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 77}))
    assert read_model_tokens(tmp_path) == 77


@pytest.mark.parametrize(
    ("setting", "model", "memory", "max_tokens", "bound"),
    [
        ("4096", 8192, 100_000, 4096, "setting"),
        ("4096", 8192, None, 4096, "setting"),
        ("16384", 8192, 100_000, 16384, "setting"),  # a number is taken as it is
        ("16384", 8192, 12_000, 12_000, "memory"),
        ("auto", 8192, 100_000, 8192, "model"),
        ("auto", 8192, None, 8192, "model"),
        ("auto", 163_840, 100_000, 32_768, "auto"),
        ("auto", 163_840, 20_480, 20_480, "memory"),
        ("auto", None, 100_000, 4096, "model"),
    ],
)
def test_the_smallest_bound_counts_and_is_named(
    tmp_path: Path, setting: str, model: int | None, memory: int | None, max_tokens: int, bound: str
) -> None:
    """A number is bounded by memory alone, auto by model, memory and 32768."""
    context = limit_context(make_settings(tmp_path, setting), model, memory)
    assert (context.max_tokens, context.bound) == (max_tokens, bound)
    assert ContextLength.from_json(json.loads(json.dumps(vars(context)))) == context


def test_what_is_no_published_length_is_none() -> None:
    """An older rank 0 publishes nothing of the kind."""
    for said in (None, 5, {}, {"max_tokens": 5}, {"max_tokens": "5", "bound": "model"}, {"bound": "model"}):
        assert ContextLength.from_json(said) is None


@pytest.mark.parametrize("num_rows", [1, 2])
@pytest.mark.parametrize("budget", [0, 63, 64, 127, 200, 512, 1000, 1024, 1025, 9000, 69_042])
def test_the_most_tokens_of_a_row_are_those_that_fit(num_rows: int, budget: int) -> None:
    """As many as fit with padding, and one more would not."""
    most = most_tokens(num_rows, budget)
    assert not most or padded_tokens(num_rows, most) <= budget
    assert padded_tokens(num_rows, most + 1) > budget


def test_the_refusal_has_the_words_that_clients_look_for() -> None:
    """The sentence of OpenAI, the numbers, and what to do about it."""
    said = ContextLength(4096).explain_too_long(5000)
    assert said.startswith(
        "This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens"
    )
    assert "Please reduce the length of the messages." in said
    assert re.search(r"maximum context length is \d+ tokens", said)
    for bound, word in (
        ("setting", "MAX_SEQUENCE_LENGTH=auto"),
        ("auto", "MAX_SEQUENCE_LENGTH"),
        ("memory", "KV_CACHE_RESERVED_MEMORY_MB"),
        ("model", "the model's own length"),
    ):
        assert word in ContextLength(9, bound).explain_too_long(9).replace("That", "that")  # type: ignore[arg-type]


def test_a_number_beyond_the_models_length_is_said() -> None:
    """It is accepted, with a warning where users look."""
    assert "beyond 8192, the model's own length" in ContextLength(16384, "setting", 8192).describe()
    assert "beyond" not in ContextLength(8192, "setting", 8192).describe()
    assert "auto" in ContextLength(8191, "setting", 8192).hint
    assert "auto" not in ContextLength(8192, "setting", 8192).hint, "it would give no more"


def test_rank_0_counts_by_the_rank_where_a_token_takes_most(tmp_path: Path) -> None:
    """1 KiB a token, and its one layer twice while a table grows: 2 MiB hold 1,024, 512 for each of two."""
    folder = make_checkpoint(tmp_path / "model", "llama", max_position_embeddings=2048)
    info = RankInfo(
        rank=0, host="a", pid=1, first_layer=2, num_layers=1, weights_bytes=1, kv_bytes_per_token=512,
        memory_bytes=1, load_s=0.0, device="cpu",
    )  # fmt: skip
    for length, kept, wanted, wanted_kept in (
        ("auto", "100", (512, "memory"), 1024),
        ("auto", "0", (512, "memory"), 0),
        ("900", "100", (900, "setting"), 100),
        ("4096", "8192", (1024, "memory"), 8192),
    ):
        overrides = {"MAX_SEQUENCE_LENGTH": length, "KV_CACHE_RESERVED_MEMORY_MB": "2"}
        overrides["KV_CACHE_MAX_SIZE"] = kept
        settings = load_settings({**overrides, "MODEL_REPO": str(folder)}, root=tmp_path, environ={})
        status = RingStatus(
            tmp_path / "ring.json", epoch=1, ring_size=2, model="m", settings=settings.public()
        )
        status.ranks = (info, replace(info, rank=1, kv_bytes_per_token=1024))
        scheduler = make_scheduler(settings, status, 512, 1.0)
        assert scheduler.limits.slots.max_kept_tokens == wanted_kept, "auto keeps two whole contexts"
        status.publish()
        context = ContextLength.from_json(json.loads((tmp_path / "ring.json").read_text())["context"])
        assert context == ContextLength(*wanted, model_tokens=2048)  # type: ignore[arg-type]


def test_states_of_rows_count_as_tokens(tmp_path: Path) -> None:
    """By the rank with most of each; one may have states alone."""
    folder = make_model_folder(tmp_path / "model", CONFIGS["qwen3_next"])
    settings = load_settings(
        {"MODEL_REPO": str(folder), "KV_CACHE_RESERVED_MEMORY_MB": "2"}, root=tmp_path, environ={}
    )
    status = RingStatus(tmp_path / "ring.json", epoch=1, ring_size=2, model="m", settings=settings.public())
    info = RankInfo(
        rank=0, host="a", pid=1, first_layer=1, num_layers=3, weights_bytes=1, kv_bytes_per_token=1024,
        memory_bytes=1, load_s=0.0, device="cpu", state_bytes_per_row=48 * 1024,
    )  # fmt: skip
    alone = replace(info, rank=1, first_layer=0, num_layers=1, kv_bytes_per_token=0)
    status.ranks = (info, alone)
    slots = make_scheduler(settings, status, 512, 1.0).limits.slots
    # A layer of each is in memory twice while a table grows: 1.5 KiB a token, 96 KiB a row.
    assert (slots.max_kv_tokens, slots.row_tokens) == (2048 * 2 // 3, 64)
    assert status.context is not None
    assert status.context.max_tokens == 1024

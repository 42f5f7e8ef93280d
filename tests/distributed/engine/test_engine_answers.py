"""What requests get from the engine in one process: laps, shared prefixes, seeds, ends and limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from distributed.engine.drafting import PromptLookup
from distributed.engine.prefix_cache import MIN_REUSED_TOKENS
from distributed.planning.kv_sizes import most_tokens
from tests.fakes.checkpoints import VOCAB_SIZE, reference_model, shared_checkpoint
from tests.services.engine_in_process import EngineInProcess, given_draws
from tests.services.stages import sure_tokens

PROMPTS = [[(7 * i + 13 * j) % 250 for j in range(5 + 9 * i)] for i in range(4)]


@pytest.fixture(scope="module")
def llama() -> Path:
    return shared_checkpoint("llama", num_hidden_layers=2)


def test_drafts_save_laps_and_change_no_token(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that quotes its prompt takes fewer laps than tokens; free text stays the same."""
    monkeypatch.setattr(
        PromptLookup, "note_cost", lambda *_: None
    )  # a wide step costs what a narrow one does
    quoted = [(17 * j) % 250 for j in range(40)]
    monkeypatch.setattr("distributed.engine.engine.Draws", given_draws({77: quoted}))
    results = {}
    for speculation in ("off", "prompt-lookup"):
        with EngineInProcess(
            tmp_path / speculation, llama, 2, speculation=speculation, prefill_chunk_tokens=64
        ) as service:
            quoting = service.request([*quoted, 3, 1, 4], max_tokens=40, seed=77)
            free = service.request(PROMPTS[3] * 3, max_tokens=40)
            results[speculation] = service.ask(quoting, free)
    num_laps = {}
    for speculation, (quote, free_answer) in results.items():
        assert quote.token_ids == tuple(quoted)
        assert free_answer.token_ids == results["off"][1].token_ids
        num_laps[speculation] = quote.performance["ranks"][1]["num_frames"]
    assert num_laps["off"] == 40
    assert num_laps["prompt-lookup"] <= 20


def test_shared_prefixes_change_no_token(tmp_path: Path) -> None:
    """Prompts with a long common prefix, at once or one after the other, get the answers of solo runs."""
    deepseek = shared_checkpoint("deepseek_v2", num_hidden_layers=2)
    opening = [(11 * j) % 250 for j in range(40)]
    prompts = [[*opening, *(17 * i + j for j in range(4 + i))] for i in range(8)]
    with EngineInProcess(tmp_path / "state", deepseek, 2, prefill_chunk_tokens=64) as service:
        results = service.ask(*(service.request(prompt, max_tokens=10) for prompt in prompts))
        (again,) = service.ask(service.request(prompts[3], max_tokens=10))
    assert sum(result.usage.cached_tokens >= 40 for result in results) >= 5
    assert again.usage.cached_tokens == len(prompts[3]) - 1
    assert again.token_ids == results[3].token_ids
    model = reference_model(deepseek)
    for prompt, result in zip(prompts, results, strict=True):
        sure = sure_tokens(model, prompt, 10)
        assert list(result.token_ids[: len(sure)]) == sure


@pytest.mark.parametrize(
    ("num_ranks", "num_tables", "num_rows", "max_tokens"),
    [(1, 1, 8, 8), (2, 2, 8, 8), (2, 3, 2, 8), (1, 1, 4, 120), (1, 1, 1, 120), (2, 2, 2, 120)],
)
def test_eight_answers_read_their_prompt_once(
    llama: Path, tmp_path: Path, num_ranks: int, num_tables: int, num_rows: int, max_tokens: int
) -> None:
    """In one table or several, at once or a few at a time; each of the others steps a few tokens at most."""
    prompt = [(11 * j) % 250 for j in range(100)]
    settings: dict[str, Any] = {
        "microbatches": num_tables,
        "max_rows_per_microbatch": num_rows,
        "prefill_chunk_tokens": 32,
    }
    params = {"temperature": 1.0, "seed": 3, "max_tokens": max_tokens, "ignore_eos": True}
    with EngineInProcess(tmp_path, llama, num_ranks, **settings) as service:
        results = service.ask(*(service.request(prompt, choice=i, **params) for i in range(8)))
    assert (
        sum(len(prompt) - result.usage.cached_tokens for result in results)
        <= len(prompt) + 7 * MIN_REUSED_TOKENS
    )
    assert len({result.token_ids for result in results}) == 8


def test_the_same_seed_gives_the_same_text_beside_others_and_alone(llama: Path, tmp_path: Path) -> None:
    """Sampling keys belong to requests: other requests change nothing, another seed does."""
    with EngineInProcess(tmp_path, llama, 2) as service:
        params = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 24}
        (alone,) = service.ask(service.request(PROMPTS[2], seed=11, **params))
        among = service.ask(*(service.request(PROMPTS[2], seed=seed, **params) for seed in (11, 12, 13, 14)))
    assert among[0].token_ids == alone.token_ids
    assert len({result.token_ids for result in among}) == 4


def test_a_stop_string_ends_the_answer_before_itself(llama: Path, tmp_path: Path) -> None:
    """The text before the stop string is the answer; tokens after it are not."""
    with EngineInProcess(tmp_path, llama, 2) as service:
        (full,) = service.ask(service.request(PROMPTS[1], max_tokens=24))
        stop = full.text[6:9]
        (cut,) = service.ask(service.request(PROMPTS[1], max_tokens=24, stop=(stop,)))
    assert cut.text == full.text[: full.text.index(stop)]
    assert cut.finish_reason == "stop"


def test_rank_0_says_how_long_a_context_is_and_holds_to_it(llama: Path, tmp_path: Path) -> None:
    """With auto that is what the KV reserve holds of two requests, where this is less than the model's.

    Ids beyond the vocabulary and prompts beyond the context end at once; the next request is served.
    """
    with EngineInProcess(
        tmp_path, llama, max_sequence_length="auto", default_max_tokens=16, kv_cache_reserved_memory_mb=1
    ) as service:
        said = service.status()
        num_tokens = said["context"]["max_tokens"]
        prompts = [[5 + i] * (num_tokens - 8) for i in range(2)]
        answers = service.ask(
            *(service.request(prompt, max_tokens=10**9, ignore_eos=True) for prompt in prompts)
        )
        wrong, long, good = service.ask(
            service.request([VOCAB_SIZE + 5]), service.request([5] * num_tokens), service.request(PROMPTS[0])
        )
    assert said["context"]["bound"] == "memory"
    assert num_tokens == most_tokens(2, said["kv"]["max_tokens"])
    assert [len(answer.token_ids) for answer in answers] == [8, 8]
    assert [answer.finish_reason for answer in answers] == ["length", "length"]
    assert wrong.error is not None
    assert wrong.error["code"] == "invalid_prompt"
    assert long.error is not None
    assert long.error["code"] == "context_length_exceeded"
    assert good.finish_reason == "length"


def test_a_drained_request_is_found_by_its_clients_id_in_the_log(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One search finds its lines of two epochs; they hold nothing of its text."""
    caplog.set_level("INFO")
    with EngineInProcess(tmp_path, llama, 2, shutdown_timeout=0) as service:
        request = replace(service.request(PROMPTS[0], max_tokens=60), client_id="job-7")
        service.submit(request)
        service.run_until(lambda: len(service.records(request)) == 10)
        service.stop()
        num_kept = len(service.records(request))
        service.start()
        service.results(request)
    messages = [record.getMessage() for record in caplog.records]
    assert any("1 answers stay in the spool" in message for message in messages)
    life = [message for message in messages if "job-7" in message]
    assert all(request.id in message for message in life)
    for message, part in zip(
        life,
        (
            f"begins: {len(PROMPTS[0])} prompt tokens, attempt 1",
            "is put back",
            f"attempt 1, continues after {num_kept} tokens",
            f"length, {len(PROMPTS[0])} + 60 tokens",
        ),
        strict=True,
    ):
        assert part in message

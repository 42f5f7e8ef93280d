"""Logprobs of answers and prompts are those of the model's own logits, whatever happens to the request."""

from __future__ import annotations

from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from msgspec.structs import replace

from distributed.engine.drafting import PromptLookup
from distributed.engine.engine import MAX_READ_ROWS
from distributed.engine.row_sampling import RowSampling
from distributed.engine.sampling import sample_known
from distributed.engine.token_writer import TokenWriter
from spool import Request, Result
from spool.messages import TokenLogprob
from tests.fakes.checkpoints import VOCAB_SIZE, reference_model, shared_checkpoint
from tests.services.engine_in_process import EngineInProcess
from tests.services.stages import reference_logits

PROMPT = [(7 * i + 5) % 250 for i in range(70)]
NUM_ALTERNATIVES = 5
PENALTIES = {"frequency_penalty": 0.6, "presence_penalty": 0.4, "repetition_penalty": 1.3}


@pytest.fixture(scope="module")
def llama() -> Path:
    return shared_checkpoint("llama", num_hidden_layers=2)


def reference(model: Any, token_ids: Items[int]) -> list[list[float]]:
    """The log-softmax of mlx-lm's own logits at every place, as mlx_lm 0.32.2 generate.py forms it."""
    logits = reference_logits(model, token_ids).astype(mx.float32)
    logprobs: list[list[float]] = (logits - mx.logsumexp(logits, axis=-1, keepdims=True)).tolist()
    return logprobs


def check(got: Items[TokenLogprob] | None, token_ids: Items[int], rows: Items[Items[float]]) -> None:
    """Each token's logprobs are those of its row."""
    assert got is not None
    assert [each.token_id for each in got] == list(token_ids)
    for each, row in zip(got, rows, strict=True):
        assert each.logprob == pytest.approx(row[each.token_id], abs=1e-4)
        values = [value for _, value in each.alternatives]
        assert values == pytest.approx(sorted(row, reverse=True)[:NUM_ALTERNATIVES], abs=1e-4)
        assert values == pytest.approx([row[token] for token, _ in each.alternatives], abs=1e-4)


def check_result(model: Any, request: Request, result: Result) -> None:
    """The prompt's and the answer's logprobs are the model's; the log has the answer's as well."""
    assert request.token_ids is not None
    rows = reference(model, [*request.token_ids, *result.token_ids])
    num = len(request.token_ids)
    check(result.logprobs, result.token_ids, rows[num - 1 : -1])
    if request.params.prompt_logprobs is not None:
        assert result.prompt_logprobs is not None
        assert result.prompt_logprobs[0] == TokenLogprob(request.token_ids[0], None)
        check(result.prompt_logprobs[1:], request.token_ids[1:], rows[: num - 1])


def ask_with_logprobs(service: EngineInProcess, prompt: Items[int], **params: Any) -> Request:
    nums = {"logprobs": NUM_ALTERNATIVES, "prompt_logprobs": NUM_ALTERNATIVES}
    return service.request(prompt, **{**nums, **params})


@pytest.mark.parametrize("variant", ["llama", "qwen3_moe", "deepseek_v2"])
def test_they_are_the_models(variant: str, tmp_path: Path) -> None:
    """Over 200 tokens, greedy, drawn and with penalties beside each other, prompts read in several steps."""
    folder = shared_checkpoint(variant, num_hidden_layers=2)
    rules: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 5}, {**PENALTIES, "logit_bias": {7: 3.0}}]
    with EngineInProcess(tmp_path, folder, 2, prefill_chunk_tokens=32) as service:
        requests = [
            ask_with_logprobs(service, PROMPT[i:], max_tokens=200, ignore_eos=True, **rule)
            for i, rule in enumerate(rules)
        ]
        results = service.ask(*requests)
        records = [service.records(request) for request in requests]
    model = reference_model(folder)
    for request, result, own_records in zip(requests, results, records, strict=True):
        assert len(result.token_ids) == 200
        check_result(model, request, result)
        assert [record.logprobs for record in own_records] == list(result.logprobs or ())
        assert result.usage.cached_tokens == 0


def test_drafts_change_nothing(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that repeat a token until its count is too high: drafts before a place count there."""
    monkeypatch.setattr(PromptLookup, "note_cost", lambda *_: None)  # all steps cost the same
    rules: list[dict[str, Any]] = [
        {"logit_bias": {7: 40.0}, "frequency_penalty": 2.0},
        {"logit_bias": {7: 40.0}, "frequency_penalty": 1.5, "temperature": 1.0, "seed": 4},
        PENALTIES,
    ]
    results: dict[str, list[Result]] = {}
    for speculation in ("off", "prompt-lookup"):
        with EngineInProcess(tmp_path / speculation, llama, 2, speculation=speculation) as service:
            asked = [ask_with_logprobs(service, PROMPT, max_tokens=40, **rule) for rule in rules]
            results[speculation] = service.ask(*asked)
    num_laps = [result.performance["ranks"][1]["num_frames"] for result in results["prompt-lookup"]]
    assert max(num_laps[:2]) < 40
    for plain, drafted in zip(results["off"], results["prompt-lookup"], strict=True):
        assert drafted.token_ids == plain.token_ids
        check_close(drafted, plain)


def check_close(one: Result, other: Result) -> None:
    """Both have the same tokens with logprobs that differ by rounding."""
    for mine, yours in ((one.logprobs, other.logprobs), (one.prompt_logprobs, other.prompt_logprobs)):
        assert mine is not None
        assert yours is not None
        assert [each.token_id for each in mine] == [each.token_id for each in yours]
        mine_flat = [each.logprob for each in mine if each.logprob is not None]
        assert mine_flat == pytest.approx(
            [each.logprob for each in yours if each.logprob is not None], abs=1e-4
        )


@pytest.mark.parametrize("num_logged", [1, 10, 39])
def test_a_resumed_answer_has_the_logprobs_of_one_that_was_not(
    llama: Path, tmp_path: Path, num_logged: int
) -> None:
    """The answer's come from the log, the prompt's are read again; penalties count the tokens before."""
    rules: list[dict[str, Any]] = [{}, {**PENALTIES, "temperature": 0.8, "seed": 3}]
    with EngineInProcess(tmp_path, llama, 2, prefill_chunk_tokens=32) as service:
        plain = service.ask(*(ask_with_logprobs(service, PROMPT, max_tokens=40, **rule) for rule in rules))
        requests = [ask_with_logprobs(service, PROMPT, max_tokens=40, **rule) for rule in rules]
        service.submit(*requests)
        service.run_until(lambda: all(len(service.records(each)) >= num_logged for each in requests))
        logged = [service.records(request) for request in requests]
        service.kill()
        service.start()
        results = service.results(*requests)
        for request, result, before, other in zip(requests, results, logged, plain, strict=True):
            assert service.records(request)[: len(before)] == before
            assert result.token_ids == other.token_ids
            check_close(result, other)


@pytest.mark.parametrize("num_tokens", [1, 6])
def test_a_crash_before_the_result_loses_no_logprobs(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_tokens: int
) -> None:
    """The log is complete: its last token stands, whatever is drawn now, and the prompt is read again."""
    rule: dict[str, Any] = {"max_tokens": num_tokens, "temperature": 1.0, "seed": 2}
    with EngineInProcess(tmp_path, llama, prefill_chunk_tokens=32) as service:
        (before,) = service.ask(ask_with_logprobs(service, PROMPT, **rule))
        request = ask_with_logprobs(service, PROMPT, **rule)
        with monkeypatch.context() as patch:
            patch.setattr(TokenWriter, "_write", lambda *_: None)
            service.submit(request)
            service.run_until(lambda: len(service.records(request)) == num_tokens)
            records = service.records(request)
            service.kill()
        monkeypatch.setattr(RowSampling, "is_greedy", True)
        service.start()
        (after,) = service.results(request)
        assert (after.token_ids, after.text) == (before.token_ids, before.text)
        assert after.finish_reason == "length"
        check_close(after, before)
        assert service.records(request) == records


def test_rows_that_wait_for_kv_keep_their_logprobs(tmp_path: Path) -> None:
    """Preempted answers read their prompts again; the result is that of an answer alone."""
    model = shared_checkpoint("llama", num_hidden_layers=2, head_dim=32)
    prompts = [[(7 * i + 13 * j) % 250 for i in range(30 + 20 * j)] for j in range(6)]
    rules: list[dict[str, Any]] = [{"temperature": 0.9, "seed": 3}, PENALTIES]
    settings: dict[str, Any] = {"kv_cache_reserved_memory_mb": 1, "kv_cache_max_size": 0}
    with EngineInProcess(tmp_path / "state", model, 2, **settings) as service:
        asked = [
            ask_with_logprobs(service, prompt, max_tokens=200, **rules[i % 2])
            for i, prompt in enumerate(prompts)
        ]
        crowd = service.ask(*asked)
        assert service.scheduler.num_preemptions > 0
        for i, request in enumerate(asked):
            (alone,) = service.ask(replace(request, id=f"{i:032x}"))
            assert crowd[i].token_ids == alone.token_ids
            check_close(crowd[i], alone)
    model_of_all = reference_model(model)
    for request, result in zip(asked, crowd, strict=True):
        check_result(model_of_all, request, result)


def test_a_stop_string_cuts_the_logprobs_as_well(llama: Path, tmp_path: Path) -> None:
    """There is one for each token of the result and of the log."""
    with EngineInProcess(tmp_path, llama, 2) as service:
        (full,) = service.ask(service.request(PROMPT, max_tokens=24))
        request = ask_with_logprobs(service, PROMPT, max_tokens=24, stop=(full.text[6:9],))
        (cut,) = service.ask(request)
        records = service.records(request)
    assert cut.finish_reason == "stop"
    assert cut.logprobs == tuple(record.logprobs for record in records)
    assert [each.token_id for each in cut.logprobs or ()] == list(cut.token_ids)


def test_a_prompt_with_logprobs_is_read_whole_and_others_reuse_it(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither kept KV nor a copy spares it a token; at most so many rows of logits are made at once."""
    seen: list[int] = []

    def count_rows(logits: mx.array, *args: Any) -> Any:
        seen.append(len(logits))
        return sample_known(logits, *args)

    monkeypatch.setattr("distributed.engine.engine.sample_known", count_rows)
    prompt = PROMPT * 3
    with EngineInProcess(tmp_path, llama, prefill_chunk_tokens=512) as service:
        (first,) = service.ask(service.request(prompt, max_tokens=4))
        results = service.ask(
            ask_with_logprobs(service, prompt, max_tokens=4), service.request(prompt, max_tokens=4)
        )
        (later,) = service.ask(service.request(prompt, max_tokens=4))
    assert (max(seen), sum(seen)) == (MAX_READ_ROWS, len(prompt) - 1)
    assert [result.usage.cached_tokens for result in results] == [0, len(prompt) - 1]
    assert later.usage.cached_tokens == len(prompt) - 1
    assert len({result.token_ids for result in (first, *results, later)}) == 1


def test_plain_answers_have_no_logprobs(llama: Path, tmp_path: Path) -> None:
    """Neither in the result nor in the log, also beside others; with 0 alternatives a token has its own."""
    with EngineInProcess(tmp_path, llama) as service:
        plain, own = service.request(PROMPT), service.request(PROMPT, logprobs=0, prompt_logprobs=0)
        results = service.ask(plain, own)
        assert all(record.logprobs is None for record in service.records(plain))
    assert (results[0].logprobs, results[0].prompt_logprobs) == (None, None)
    assert all(each.alternatives == () for each in results[1].logprobs or ())
    assert len(results[1].prompt_logprobs or ()) == len(PROMPT)
    assert results[0].token_ids == results[1].token_ids


def test_a_bias_outside_the_vocabulary_ends_the_request(llama: Path, tmp_path: Path) -> None:
    """With its reason; the next request is served, and a bias within it decides."""
    with EngineInProcess(tmp_path, llama) as service:
        wrong, forced = service.ask(
            service.request(PROMPT, logit_bias={VOCAB_SIZE: 1.0}),
            service.request(PROMPT, logit_bias={VOCAB_SIZE - 1: 100.0}, max_tokens=3),
        )
    assert wrong.error is not None
    assert (wrong.error["code"], wrong.error["status"]) == ("invalid_logit_bias", 400)
    assert forced.token_ids == (VOCAB_SIZE - 1,) * 3

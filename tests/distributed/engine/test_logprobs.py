"""Logprobs of answers and prompts are those of the model's own logits, whatever happens to the request."""

from __future__ import annotations

from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from spool import Request, Result
from spool.messages import TokenLogprob
from tests.fakes.checkpoints import reference_model, shared_checkpoint
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

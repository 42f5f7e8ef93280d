"""Stages against mlx-lm's own model in one process: the same logits and greedy tokens, however it is cut."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from distributed.backends.backend import StageRunner
from distributed.models import StageModel, check_model, open_stage
from distributed.planning.checkpoint import BadCheckpoint, read_config, read_tensors
from distributed.planning.kv_sizes import round_tokens
from tests.fakes.checkpoints import (
    VARIANTS,
    edit_config,
    make_checkpoint,
    read_weights,
    reference_model,
    shared_checkpoint,
    write_weights,
)
from tests.services.stages import (
    StageChain,
    greedy_tokens,
    load_chain,
    load_runners,
    load_whole,
    reference_logits,
    reference_tokens,
)

SPLITS = ((4,), (1, 2, 1))
PROMPT = [(7 * i + 3) % 250 for i in range(13)]
NUM_TOKENS = 10
# Logits have a standard deviation of about 5; float32 sums in another order differ by less than this.
TOLERANCE = 2e-4
LATENT_VARIANTS = [name for name in VARIANTS if name.startswith("deepseek")]
# Each kind of attention, mixture and packing; the other variants differ from these in numbers alone.
KINDS = ["llama", "llama-4bit-tied", "ministral3", "qwen2", "qwen3", "qwen3_moe", "qwen3_moe-8bit"]
KINDS += ["deepseek_v2", "deepseek_v2-q_lora-8bit"]


class Reference(NamedTuple):
    """mlx-lm's own model, and what it makes of the prompt: logits (T, V), greedy tokens and their leads."""

    model: Any
    logits: mx.array
    tokens: list[int]
    leads: list[float]


@cache
def reference_of(variant: str) -> Reference:
    model = reference_model(shared_checkpoint(variant))
    logits = reference_logits(model, PROMPT)
    return Reference(model, logits, *reference_tokens(model, PROMPT, NUM_TOKENS))


@cache
def stages_of(variant: str, counts: tuple[int, ...]) -> Sequence[StageRunner]:
    return load_runners(shared_checkpoint(variant), counts)


def chain_of(variant: str, counts: tuple[int, ...]) -> StageChain:
    """Stages that tests share, with tables of their own."""
    return StageChain(stages_of(variant, counts))


@pytest.mark.parametrize("variant", VARIANTS)
def test_stages_give_the_logits_and_tokens_of_the_whole_model(variant: str) -> None:
    """One stage and three uneven ones, prefill and decode as mlx-lm's own model does."""
    reference = reference_of(variant)
    assert min(reference.leads) > 10 * TOLERANCE, "the checkpoint is too close a call to compare tokens"
    for counts in SPLITS:
        chain = chain_of(variant, counts)
        assert mx.allclose(chain.prefill(PROMPT), reference.logits, rtol=0, atol=TOLERANCE), counts
        assert greedy_tokens(chain, PROMPT, NUM_TOKENS) == reference.tokens, counts


@pytest.mark.parametrize("variant", KINDS)
def test_a_prompt_in_chunks_gives_the_logits_of_the_whole_prompt(variant: str) -> None:
    """Chunks of any size, a single token too, continue where the last one ended."""
    for chunk in (1, 5):
        got = chain_of(variant, (1, 2, 1)).prefill(PROMPT, chunk=chunk)
        assert mx.allclose(got, reference_of(variant).logits, rtol=0, atol=TOLERANCE), chunk


@pytest.mark.parametrize("variant", KINDS)
def test_rows_of_unlike_length_decode_together_as_they_do_alone(variant: str) -> None:
    """Each row has its own offset; neighbours, padding and order of slots change nothing."""
    prompts = [PROMPT[:n] for n in (3, 7, 1)]
    model, num_tokens = reference_of(variant).model, 6
    alone = [reference_tokens(model, prompt, num_tokens)[0] for prompt in prompts]
    chain = chain_of(variant, (1, 2, 1))
    outputs = [[_best(chain.prefill(prompt, slot=slot)[-1])] for slot, prompt in enumerate(prompts)]
    order = [2, 0, 1]
    for i in range(num_tokens - 1):
        logits = chain.run([outputs[s][-1:] for s in order], order, [len(prompts[s]) + i for s in order])
        for row, slot in enumerate(order):
            outputs[slot].append(_best(logits[row, 0]))
    assert outputs == alone


@pytest.mark.parametrize("variant", ["llama", "deepseek_v2", "deepseek_v2-8bit"])
def test_chunks_of_unlike_rows_run_together(variant: str) -> None:
    """A microbatch may prefill rows at unlike offsets, with unlike numbers of tokens."""
    model, chain = reference_of(variant).model, chain_of(variant, (1, 2, 1))
    rows = [PROMPT, PROMPT[::-1][:9], PROMPT[2:8]]
    starts = [8, 0, 5]
    for slot, (row, start) in enumerate(zip(rows, starts, strict=True)):
        if start:
            chain.prefill(row[:start], slot=slot)
    logits = chain.run([row[start:] for row, start in zip(rows, starts, strict=True)], range(3), starts)
    for got, row, start in zip(logits, rows, starts, strict=True):
        wanted = reference_logits(model, row)[start:]
        assert mx.allclose(got[: len(row) - start], wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "bit" in name])
def test_dequantized_stages_give_the_packed_models_logits(variant: str) -> None:
    """Unpacking to float32 changes no result, only speed and memory."""
    logits = reference_of(variant).logits
    chain = load_chain(shared_checkpoint(variant), (1, 3), dequantize=True)
    models = [runner.model for runner in chain.stages]
    assert all(model.dtype == mx.float32 for model in models)
    assert not any("Quantized" in type(m).__name__ for model in models for m in model.inner.modules())
    assert mx.allclose(chain.prefill(PROMPT), logits, rtol=0, atol=TOLERANCE)


def test_layers_with_their_own_packing_keep_it(tmp_path: Path) -> None:
    """A checkpoint may name other bits for one module and leave another unpacked."""
    folder = make_checkpoint(tmp_path, "qwen3_moe-8bit")
    weights = read_weights(folder)
    narrow, plain = "model.layers.2.self_attn.o_proj", "model.layers.3.self_attn.q_proj"
    for path in (narrow, plain):
        packed = [weights.pop(f"{path}.{leaf}") for leaf in ("weight", "scales", "biases")]
        weights[f"{path}.weight"] = mx.dequantize(*packed, group_size=32, bits=8)
    parts = mx.quantize(weights[f"{narrow}.weight"], group_size=64, bits=4)
    weights |= {
        f"{narrow}.{leaf}": part for leaf, part in zip(("weight", "scales", "biases"), parts, strict=True)
    }
    quantization = read_config(folder)["quantization"]
    edit_config(folder, quantization=quantization | {narrow: {"group_size": 64, "bits": 4}, plain: False})
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    write_weights(folder, weights)
    logits = reference_logits(reference_model(folder), PROMPT)
    assert mx.allclose(load_chain(folder, (2, 2)).prefill(PROMPT), logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("variant", ["deepseek_v2", "qwen3_moe"])
def test_experts_stored_one_by_one_are_joined(tmp_path: Path, variant: str) -> None:
    """Checkpoints as first published keep each expert apart, under Hugging Face's names."""
    folder = shared_checkpoint(variant)
    weights: dict[str, mx.array] = {}
    for name, array in read_weights(folder).items():
        head, _, projection = name.partition(".switch_mlp.")
        if not projection:
            weights[name] = array
        for i in range(array.shape[0] if projection else 0):
            weights[f"{head}.experts.{i}.{projection}"] = array[i]
    write_weights(tmp_path, weights)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    logits = reference_of(variant).logits
    assert mx.allclose(load_chain(tmp_path, (1, 3)).prefill(PROMPT), logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("is_newer", [False, True])
def test_the_text_model_within_one_that_sees_gives_its_logits(tmp_path: Path, is_newer: bool) -> None:
    """Its tensors have a prefix, its config lies in text_config; what is for images is left alone."""
    folder = shared_checkpoint("ministral3")
    weights = {"vision_tower.patch_conv.weight": mx.zeros((4, 4))}
    for name, array in read_weights(folder).items():
        newer = name.replace("model.", "model.language_model.", 1)
        weights[newer if is_newer else f"language_model.{name}"] = array
    write_weights(tmp_path, weights)
    config = {"model_type": "mistral3", "text_config": json.loads((folder / "config.json").read_text())}
    (tmp_path / "config.json").write_text(json.dumps(config))
    logits = reference_of("ministral3").logits
    assert mx.allclose(load_chain(tmp_path, (1, 3)).prefill(PROMPT), logits, rtol=0, atol=TOLERANCE)
    check_model("folder", read_config(tmp_path), read_tensors(tmp_path))


def test_deepseek_caches_the_latent_alone() -> None:
    """A token takes kv_lora_rank + rope head values a layer, not keys and values of every head."""
    for variant in LATENT_VARIANTS:
        config = json.loads((shared_checkpoint(variant) / "config.json").read_text())
        chain = chain_of(variant, (1, 2, 1))
        chain.prefill(PROMPT)
        num_layers, capacity = 4, round_tokens(len(PROMPT))
        values = config["kv_lora_rank"] + config["qk_rope_head_dim"]
        assert sum(stage.kv_num_bytes for stage in chain.stages) == 4 * values * num_layers * capacity


def test_deepseek_without_rope_scaling_rotates_plainly(tmp_path: Path) -> None:
    """A checkpoint without yarn runs as one whose yarn stretches by 1."""
    folder = make_checkpoint(tmp_path, "deepseek_v2", rope_scaling={"type": "yarn", "factor": 1.0})
    stretched = load_chain(folder, (4,)).prefill(PROMPT)
    edit_config(folder, rope_scaling=None)
    assert mx.allclose(load_chain(folder, (4,)).prefill(PROMPT), stretched, rtol=0, atol=TOLERANCE)


def test_a_stage_holds_only_what_it_runs() -> None:
    """Embeddings are on the first stage (and the last where tied), norm and head on the last."""
    for variant, is_tied in (("llama", False), ("llama-tied", True)):
        first, middle, last = (runner.model for runner in stages_of(variant, (1, 2, 1)))
        assert [_parameter_roots(stage) for stage in (first, middle, last)] == [
            {"layers", "embed_tokens"},
            {"layers"},
            {"layers", "norm"},
        ]
        assert (first.head, middle.head) == (None, None)
        vocabulary_bytes = last.vocab_size * last.hidden_size * 4
        assert first.weights_bytes - middle.weights_bytes // 2 == vocabulary_bytes
        assert last.weights_bytes - middle.weights_bytes // 2 == vocabulary_bytes + last.hidden_size * 4
        whole = stages_of(variant, (4,))[0].model
        assert whole.weights_bytes == 2 * middle.weights_bytes + (2 - is_tied) * vocabulary_bytes + 256


def test_loading_reports_its_progress() -> None:
    """The share loaded only grows, and ends at 1."""
    shares: list[float] = []
    load_whole(shared_checkpoint("qwen3"), 4, on_progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_half_precision_is_kept_where_asked() -> None:
    """dtype overrides float32, for weights and hidden states."""
    chain = load_chain(shared_checkpoint("llama"), (2, 2), dtype="bfloat16")
    assert {stage.model.dtype for stage in chain.stages} == {mx.bfloat16}
    logits = chain.prefill(PROMPT)
    assert logits.dtype == mx.bfloat16
    assert mx.isfinite(logits).all()


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    """Nothing runs on random initial weights."""
    folder = make_checkpoint(tmp_path, "llama", num_files=1)
    weights = read_weights(folder)
    del weights["model.layers.1.mlp.up_proj.weight"]
    write_weights(folder, weights)
    with pytest.raises(BadCheckpoint, match=r"lacks 1 .*mlp\.up_proj\.weight"):
        open_stage(folder, range(4), is_first=True, is_last=True)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    """A download that stopped is seen before anything is read from it."""
    folder = make_checkpoint(tmp_path, "llama", num_files=1)
    (file,) = folder.glob("*.safetensors")
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)
    with pytest.raises(BadCheckpoint, match="cut short"):
        open_stage(folder, range(4), is_first=True, is_last=True)


def _best(logits: mx.array) -> int:
    return int(mx.argmax(logits).item())


def _parameter_roots(stage: StageModel) -> set[str]:
    return {name.partition(".")[0] for name, _ in tree_flatten(stage.inner.parameters())}

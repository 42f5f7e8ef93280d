"""DeepSeek's types and those built like them: forms of checkpoints, long chunks, the indexer's selection."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from distributed.backends.cpu.backend import CpuBackend
from distributed.models import check_model
from distributed.models.general import _above_zero
from distributed.planning.layer_plan import split_layers
from distributed.planning.model_shape import make_shape, read_model_files, read_shape
from distributed.planning.stage_files import needed_files
from distributed.planning.step import PrefixCopy
from distributed.self_test.seeded_models import make_model_folder, write_weights
from tests.fakes.checkpoints import read_weights, reference_model
from tests.fakes.family_configs import CONFIGS
from tests.services import stages
from tests.services.stages import load_chain

PROMPT = [(11 * i + 5) % 250 for i in range(60)]
TYPES = ("deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa")
TOLERANCE = 5e-4


def make_folder(root: Path, name: str, bits: int | None = None, **changes: Any) -> Path:
    return make_model_folder(root / f"{name}-{bits}", {**CONFIGS[name], **changes}, bits=bits)


def reference_logits(model: Any, ids: Sequence[int]) -> mx.array:
    """Return mlx-lm's logits, evaluated: tests write other weights into the file."""
    logits = stages.reference_logits(model, ids)
    mx.eval(logits)
    return logits


def near(logits: mx.array, wanted: mx.array) -> bool:
    return bool(mx.allclose(logits, wanted, rtol=0, atol=TOLERANCE))


@pytest.mark.parametrize("products", [None, "auto"])
@pytest.mark.parametrize("name", TYPES)
def test_chunks_on_both_sides_of_the_break_even(tmp_path: Path, name: str, products: str | None) -> None:
    """Absorbed and expanded give mlx-lm's numbers."""
    folder = make_folder(tmp_path, name)
    chain = load_chain(folder, (1, 3), CpuBackend(products))
    limit = chain.stages[0].model.own_layers[0].self_attn.max_absorbed_tokens
    assert 20 < limit < len(PROMPT)
    wanted = reference_logits(reference_model(folder), PROMPT)
    for chunk in (1, 20, len(PROMPT)):
        assert near(chain.prefill(PROMPT, chunk=chunk), wanted), chunk


@pytest.mark.parametrize("name", TYPES)
def test_each_row_is_as_it_is_alone(tmp_path: Path, name: str) -> None:
    """Rows shorter and longer than an indexer's selection: prompts together, then single tokens."""
    folder = make_folder(tmp_path, name)
    model, chain = reference_model(folder), load_chain(folder, (2, 2))
    rows = [PROMPT[:58], PROMPT[3:7], PROMPT[5:30], PROMPT[9:11]]
    logits = chain.run(rows, range(4), [0] * 4)
    for row, got in zip(rows, logits, strict=True):
        assert near(got[: len(row)], reference_logits(model, row)), len(row)
    for number in range(7):  # the second row grows beyond the selection
        token = 20 + number
        order = [2, 0, 3, 1] if number % 2 else [0, 1, 2, 3]
        logits = chain.run([[token]] * 4, order, [len(rows[slot]) for slot in order])
        for got, slot in zip(logits, order, strict=True):
            rows[slot] = [*rows[slot], token]
            assert near(got[0], reference_logits(model, rows[slot])[-1]), (number, slot)


@pytest.mark.parametrize("name", TYPES)
def test_a_copied_beginning_is_as_if_computed(tmp_path: Path, name: str) -> None:
    """What an indexer caches is copied with the rest, within a table and from one to another."""
    folder = make_folder(tmp_path, name)
    model, chain = reference_model(folder), load_chain(folder, (1, 3))
    chain.prefill(PROMPT[:40])
    for slot in (1, 5):  # the second makes the table grow
        copies = (PrefixCopy(0, 0, slot, 33),)
        logits = chain.run([PROMPT[33:50]], [slot], [33], copies)[0]
        assert near(logits, reference_logits(model, PROMPT[:50])[33:]), slot
    for stage in chain.stages:
        per_token = stage.kv_num_bytes // (8 * 64)  # rows and tokens of the table
        shape = read_shape(folder, float_bytes=4)
        assert per_token == shape.kv_bytes_per_token * len(stage.model.layers)


@pytest.mark.parametrize("name", ["deepseek_v32", "glm_moe_dsa"])
def test_an_indexer_selects(tmp_path: Path, name: str) -> None:
    """The other tests would notice if it did not."""
    few, all_ = make_folder(tmp_path / "few", name), make_folder(tmp_path / "all", name, index_topk=64)
    assert read_weights(few).keys() == read_weights(all_).keys()
    for chunk in (1, len(PROMPT)):
        one, other = (load_chain(folder, (4,)).prefill(PROMPT, chunk=chunk) for folder in (few, all_))
        assert near(one[:6], other[:6])
        assert not near(one[6:], other[6:])


def with_kv_b(folder: Path, config: dict[str, Any], *, is_packed: bool) -> Path:
    """Store the halves of kv_b_proj as published checkpoints do; rounded, where all is packed."""
    weights, heads = read_weights(folder), config["num_attention_heads"]
    packing = json.loads((folder / "config.json").read_text()).get("quantization")
    for name in [name for name in weights if name.endswith("embed_q.weight")]:
        layer = name.removesuffix("embed_q.weight")
        halves = []
        for half in ("embed_q", "unembed_out"):
            parts = [weights.pop(f"{layer}{half}.{leaf}", None) for leaf in ("weight", "scales", "biases")]
            plain = mx.dequantize(*parts, packing["group_size"], packing["bits"]) if packing else parts[0]
            halves.append(plain.swapaxes(-1, -2) if half == "embed_q" else plain)
        joined = mx.concatenate(halves, axis=1).reshape(-1, halves[0].shape[-1])
        assert len(joined) == heads * (config["qk_nope_head_dim"] + config["v_head_dim"])
        stored = mx.quantize(joined, packing["group_size"], packing["bits"]) if packing else (joined,)
        if packing and not is_packed:
            stored = (mx.dequantize(*stored, packing["group_size"], packing["bits"]),)
        for leaf, array in zip(("weight", "scales", "biases"), stored, strict=False):
            weights[f"{layer}kv_b_proj.{leaf}"] = array
    mx.eval(weights)
    write_weights(folder, weights)
    return folder


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v32"])
def test_both_forms_of_the_up_projections_are_read(tmp_path: Path, name: str, bits: int | None) -> None:
    """As published, and as mlx-lm's conversions hold them; the first is not packed anew."""
    halves = make_folder(tmp_path / "halves", name, bits)
    packed, plain = (
        with_kv_b(make_folder(tmp_path / str(is_packed), name, bits), CONFIGS[name], is_packed=is_packed)
        for is_packed in (True, False)
    )
    # mlx-lm packs halves of a packed tensor anew, which rounds once more
    for folder, reference in ((halves, halves), (plain, plain), (packed, plain)):
        wanted = reference_logits(reference_model(reference), PROMPT)
        for chunk in (20, len(PROMPT)):
            assert near(load_chain(folder, (1, 3)).prefill(PROMPT, chunk=chunk), wanted), chunk


def test_layers_that_predict_more_tokens_are_left_out(tmp_path: Path) -> None:
    """They take part in no check, plan, copy, hash or load; a file with nothing else is not needed."""
    folder = make_folder(tmp_path, "deepseek_v3", num_nextn_predict_layers=1)
    config, tensors = read_model_files(folder)
    shape = make_shape("tiny", config, tensors)
    wanted = reference_logits(reference_model(folder), PROMPT)
    weights = read_weights(folder)
    ahead = {name.replace("layers.3", "layers.4"): array for name, array in weights.items() if ".3." in name}
    ahead |= {f"model.layers.4.{name}.weight": mx.zeros((2, 2)) for name in ("eh_proj", "enorm", "hnorm")}
    ahead["model.layers.4.shared_head.head.weight"] = weights["lm_head.weight"]
    mx.save_safetensors(str(folder / "model-mtp.safetensors"), ahead)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] |= dict.fromkeys(ahead, "model-mtp.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config, tensors = read_model_files(folder)
    check_model("tiny", config, tensors)
    assert make_shape("tiny", config, tensors) == shape
    assert "model-mtp.safetensors" not in needed_files(folder, split_layers(4, (2, 2)), (0, 1))
    (folder / "model-mtp.safetensors").unlink()
    assert near(load_chain(folder, (2, 2)).prefill(PROMPT), wanted)


def test_a_model_with_more_than_61_layers(tmp_path: Path) -> None:
    """mlx-lm's class drops layer 61 of any model as one that predicts more tokens."""
    folder = make_folder(tmp_path, "deepseek_v3", num_hidden_layers=63)
    model = reference_model(folder, is_sanitized=False)
    assert near(load_chain(folder, (31, 32)).prefill(PROMPT[:9]), reference_logits(model, PROMPT[:9]))


def test_negative_corrections_choose_no_expert_of_another_group(tmp_path: Path) -> None:
    """A hidden expert's score is minus infinity; mlx-lm's 0 would be the best of these."""
    correction = mx.array([-1.5, -0.9, -2.0, -3.0], mx.bfloat16)
    raised = _above_zero(correction)
    assert raised.min().item() == 0
    assert (raised - correction).tolist() == [3.0] * 4
    assert _above_zero(mx.array([0.25, 0.5])).tolist() == [0.25, 0.5]


def test_tensors_of_single_experts_are_joined(tmp_path: Path) -> None:
    """As published checkpoints hold them; tables of angles are left out."""
    folder = make_folder(tmp_path, "deepseek_v3")
    wanted = reference_logits(reference_model(folder), PROMPT)
    weights = read_weights(folder)
    for name in [name for name in weights if ".switch_mlp." in name]:
        for number, array in enumerate(weights.pop(name)):
            weights[name.replace(".switch_mlp.", f".experts.{number}.")] = array
    weights["model.layers.1.self_attn.rotary_emb.inv_freq"] = mx.zeros((8,))
    mx.eval(weights)
    write_weights(folder, weights)
    config, tensors = read_model_files(folder)
    check_model("tiny", config, tensors)
    assert near(load_chain(folder, (1, 3)).prefill(PROMPT), wanted)


@pytest.mark.parametrize("wrapper", ["kimi_k25", "kimi_vl"])
def test_the_text_model_of_kimi_is_served(tmp_path: Path, wrapper: str) -> None:
    """Its names begin with language_model; what sees is left out."""
    inner = {**CONFIGS["deepseek_v3"], "model_type": "kimi_k2" if wrapper == "kimi_k25" else "deepseek_v3"}
    folder = make_model_folder(tmp_path / "kimi", inner)
    wanted = reference_logits(reference_model(folder), PROMPT)
    weights = {f"language_model.{name}": array for name, array in read_weights(folder).items()}
    for name in ("vision_tower.encoder.w", "mm_projector.linear", "multi_modal_projector.linear"):
        weights[f"{name}.weight"] = mx.zeros((4, 4))
    mx.eval(weights)
    write_weights(folder, weights)
    (folder / "config.json").write_text(
        json.dumps({"model_type": wrapper, "text_config": inner, "vision_config": {"hidden_size": 8}})
    )
    config, tensors = read_model_files(folder)
    check_model("tiny", config, tensors)
    assert near(load_chain(folder, (1, 3)).prefill(PROMPT), wanted)

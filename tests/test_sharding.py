"""Who gets which layers, as data in and data out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.checkpoint import BadCheckpoint
from distributed.sharding import (
    DoesNotFit,
    ModelShape,
    RankCapacity,
    plan_layers,
    read_shape,
    split_layers,
    weights_hash,
)
from tests.checkpoints import make_checkpoint
from tests.stages import load_chain


def make_shape(
    layer_bytes: tuple[int, ...], *, embed_bytes: int = 0, head_bytes: int = 0, tied: bool = False
) -> ModelShape:
    """Make a shape whose costs are its bytes."""
    return ModelShape(
        model_type="llama",
        num_layers=len(layer_bytes),
        layer_bytes=layer_bytes,
        embed_bytes=embed_bytes,
        head_bytes=head_bytes,
        tied=tied,
        kv_bytes_per_token=1,
        hidden_size=1,
        vocab_size=1,
        layer_costs=tuple(float(size) for size in layer_bytes),
        head_cost=float(head_bytes),
    )


def times_of(shape: ModelShape, plan: tuple[range, ...], ranks: list[RankCapacity]) -> list[float]:
    """Return each rank's time for a token."""
    return [shape.stage_cost(plan[c.rank], is_last=c.rank == 0) / c.speed for c in ranks]


shapes = st.builds(
    make_shape,
    st.lists(st.integers(1, 9), min_size=1, max_size=64).map(tuple),
    embed_bytes=st.integers(0, 20),
    head_bytes=st.integers(0, 20),
)
speeds = st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=1, max_size=8)


@settings(deadline=None, max_examples=150)
@given(shape=shapes, speeds=speeds, data=st.data())
def test_a_plan_covers_every_layer_once_within_memory(
    shape: ModelShape, speeds: list[float], data: st.DataObject
) -> None:
    """Ranges meet end to end, rank 0 last, none empty or over its memory; or it is refused."""
    limits = [data.draw(st.none() | st.integers(0, 200)) for _ in speeds]
    ranks = [RankCapacity(i, limits[i], speed) for i, speed in enumerate(speeds)]
    try:
        plan = plan_layers(shape, ranks)
    except DoesNotFit:
        assert len(ranks) > shape.num_layers or any(limit is not None for limit in limits)
        return
    along_the_model = [layer for part in reversed(plan) for layer in part]
    assert along_the_model == list(range(shape.num_layers))
    for rank, part in enumerate(plan):
        assert len(part) > 0
        limit = limits[rank]
        size = shape.stage_bytes(part, is_first=rank == len(plan) - 1, is_last=rank == 0)
        assert limit is None or size <= limit


@settings(deadline=None, max_examples=60)
@given(shape=shapes, speeds=speeds.filter(lambda speeds: len(speeds) > 1))
def test_no_shift_of_one_layer_shortens_the_longest_stage(shape: ModelShape, speeds: list[float]) -> None:
    """The slowest stage sets the pace of a ring; a plan cannot be bettered by moving one border."""
    ranks = [RankCapacity(i, None, speed) for i, speed in enumerate(speeds)]
    if len(ranks) > shape.num_layers:
        return
    plan = plan_layers(shape, ranks)
    counts = [len(part) for part in plan]
    longest = max(times_of(shape, plan, ranks))
    for giver, taker in [(r, r + 1) for r in range(len(ranks) - 1)] + [
        (r + 1, r) for r in range(len(ranks) - 1)
    ]:
        moved = [count + (r == taker) - (r == giver) for r, count in enumerate(counts)]
        if min(moved) > 0:
            assert max(times_of(shape, split_layers(shape, moved), ranks)) >= longest * (1 - 1e-9)


def test_equal_ranks_share_equal_layers_evenly() -> None:
    """Thirty layers over three ranks are ten each; what is left over goes where it is cheapest."""
    assert plan_layers(make_shape((1,) * 30), [RankCapacity(r) for r in range(3)]) == (
        range(20, 30),
        range(10, 20),
        range(10),
    )


def test_a_faster_rank_gets_more_layers() -> None:
    """A rank of three times the speed gets three times the layers."""
    ranks = [RankCapacity(0, speed=1.0), RankCapacity(1, speed=3.0)]
    assert plan_layers(make_shape((1,) * 32), ranks) == (range(24, 32), range(24))


def test_the_head_counts_against_rank_0() -> None:
    """A head as costly as four layers takes four layers from rank 0."""
    shape = make_shape((10,) * 20, head_bytes=40)
    assert plan_layers(shape, [RankCapacity(0), RankCapacity(1)]) == (range(12, 20), range(12))


def test_memory_moves_layers_to_where_there_is_room() -> None:
    """The embeddings count against the last rank, the head against rank 0."""
    shape = make_shape((10,) * 8, embed_bytes=25, head_bytes=5)
    ranks = [RankCapacity(0, memory_bytes=None), RankCapacity(1, memory_bytes=46)]
    assert plan_layers(shape, ranks) == (range(2, 8), range(2))


def test_tied_embeddings_count_once_on_a_ring_of_one() -> None:
    """One process holds one copy; two ends of a ring hold two."""
    shape = make_shape((10, 10), embed_bytes=30, head_bytes=31, tied=True)
    assert plan_layers(shape, [RankCapacity(0, memory_bytes=51)]) == (range(2),)
    with pytest.raises(DoesNotFit, match="rank 0"):
        plan_layers(shape, [RankCapacity(0, memory_bytes=50)])


def test_a_model_too_large_is_refused_with_the_numbers() -> None:
    """The sentence names what is needed and what is there."""
    shape = make_shape((4_000_000_000,) * 4, embed_bytes=1_000_000_000, head_bytes=1_000_000_000)
    ranks = [RankCapacity(0, 8_000_000_000), RankCapacity(1, 9_000_000_000)]
    with pytest.raises(DoesNotFit, match=r"18\.00 GB.*rank 0 8\.00 GB, rank 1 9\.00 GB"):
        plan_layers(shape, ranks)


def test_more_ranks_than_layers_are_refused() -> None:
    """A rank without a layer would only add a hop."""
    with pytest.raises(DoesNotFit, match="5 ranks"):
        plan_layers(make_shape((1,) * 4), [RankCapacity(r) for r in range(5)])


def test_layer_split_is_read_from_rank_0_on() -> None:
    """LAYER_SPLIT=3,1 gives rank 0 the last three layers."""
    assert split_layers(make_shape((1,) * 4), (3, 1)) == (range(1, 4), range(1))


@pytest.mark.parametrize("counts", [(3, 2), (4, 0), (5, -1), ()])
def test_a_layer_split_that_does_not_add_up_is_refused(counts: tuple[int, ...]) -> None:
    """Layers are never lost in silence."""
    with pytest.raises(DoesNotFit, match="LAYER_SPLIT"):
        split_layers(make_shape((1,) * 4), counts)


@pytest.mark.parametrize(
    "variant", ["llama", "llama-tied", "qwen3_moe", "deepseek_v2-8bit", "deepseek_v2-groups"]
)
@pytest.mark.parametrize("dequantize", [False, True])
def test_headers_predict_what_stages_hold(tmp_path: Path, variant: str, dequantize: bool) -> None:
    """The bytes a plan counts with are the bytes that loading takes."""
    folder = make_checkpoint(tmp_path, variant)
    shape = read_shape(folder, dequantize=dequantize, float_bytes=4)
    for stage in load_chain(folder, (1, 2, 1), dequantize=dequantize).stages:
        counted = shape.stage_bytes(stage.layers, is_first=stage.is_first, is_last=stage.is_last)
        assert counted == stage.weights_bytes


def test_only_active_experts_cost(tmp_path: Path) -> None:
    """A token touches 3 of 8 experts: the other five cost memory, not time."""
    shape = read_shape(make_checkpoint(tmp_path, "deepseek_v2"))
    expert_bytes = 8 * 3 * 64 * 64 * 4
    assert shape.layer_bytes[1] - shape.layer_costs[1] == pytest.approx(expert_bytes * 5 / 8)
    assert shape.layer_costs[0] == shape.layer_bytes[0]


def test_kv_bytes_are_the_latents_for_deepseek(tmp_path: Path) -> None:
    """Of a layer and a token: latent and rope head, or keys and values of the KV heads."""
    assert read_shape(make_checkpoint(tmp_path / "a", "deepseek_v2")).kv_bytes_per_token == 2 * (64 + 16)
    llama = read_shape(make_checkpoint(tmp_path / "b", "llama"), float_bytes=4)
    assert llama.kv_bytes_per_token == 4 * 2 * 2 * 16


def test_an_index_that_names_an_absent_file_is_refused(tmp_path: Path) -> None:
    """A download that stopped between files ends with the file's name."""
    folder = make_checkpoint(tmp_path, "llama", num_files=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match="model-00002-of-00002"):
        read_shape(folder)


def test_an_index_may_not_point_out_of_its_folder(tmp_path: Path) -> None:
    """Names with a path in them are not followed."""
    folder = make_checkpoint(tmp_path, "llama")
    index = {"weight_map": {"lm_head.weight": "../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadCheckpoint, match="model folder itself"):
        read_shape(folder)


def test_the_weights_hash_tells_models_apart(tmp_path: Path) -> None:
    """The same files give the same hash in another place; another config another one."""
    a, b = (make_checkpoint(tmp_path / name, "llama") for name in "ab")
    c = make_checkpoint(tmp_path / "c", "llama", rms_norm_eps=1e-5)
    assert weights_hash(a) == weights_hash(b)
    assert weights_hash(a) != weights_hash(c)


def test_planning_imports_no_mlx() -> None:
    """The command line plans before anything is loaded."""
    code = "import sys, distributed.sharding, distributed.blas; sys.exit('mlx.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

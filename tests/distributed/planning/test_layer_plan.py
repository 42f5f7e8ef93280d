"""The layers of each rank, as data in and data out."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.backends.stage import Stage
from distributed.planning.capacities import NO_KV, HostCapacity, KVReserve
from distributed.planning.checkpoint import BadCheckpoint
from distributed.planning.layer_plan import (
    DoesNotFit,
    check_fits,
    find_fitting_reserve,
    needs_of,
    plan_layers,
    split_layers,
    weights_hash,
)
from distributed.planning.model_shape import ModelShape, read_shape
from distributed.self_test.seeded_models import make_model_folder
from tests.fakes.checkpoints import make_checkpoint
from tests.fakes.family_configs import CONFIGS
from tests.fakes.model_shapes import make_model_shape
from tests.services.stages import load_runners

MIB = 1 << 20


def times_of(shape: ModelShape, plan: Sequence[range], hosts: Sequence[HostCapacity]) -> list[float]:
    """Return each rank's time for a token."""
    speeds = [host.speed for host in hosts for _ in range(host.num_ranks)]
    return [shape.stage_cost(part, is_last=r == 0) / speeds[r] for r, part in enumerate(plan)]


def alone(*memories: int | None, speeds: Sequence[float] = ()) -> list[HostCapacity]:
    """Make hosts of one rank each."""
    return [
        HostCapacity(f"mac{i + 1}", 1, memory, speeds[i] if speeds else 1.0)
        for i, memory in enumerate(memories)
    ]


def all_splits(num_layers: int, num_ranks: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to give each rank at least one layer."""
    for borders in combinations(range(1, num_layers), num_ranks - 1):
        ends = (0, *borders, num_layers)
        yield tuple(stop - start for start, stop in pairwise(ends))


def fits(
    shape: ModelShape, hosts: Sequence[HostCapacity], plan: Sequence[range], kv: KVReserve = NO_KV
) -> bool:
    """Say whether every host holds its part."""
    return all(need.fits for need in needs_of(shape, hosts, plan, kv))


def try_plan(
    shape: ModelShape, hosts: Sequence[HostCapacity], kv: KVReserve = NO_KV
) -> tuple[range, ...] | None:
    """Plan, or return None where it is refused."""
    try:
        return plan_layers(shape, hosts, kv)
    except DoesNotFit:
        return None


def shapes(max_layers: int) -> st.SearchStrategy[ModelShape]:
    """Draw shapes of uneven layers."""
    layer = st.tuples(st.integers(1, 9), st.booleans())

    def build(layers: list[tuple[int, bool]], kv_bytes: int, state_bytes: int, **ends: Any) -> ModelShape:
        """Where states take no bytes, all layers have KV."""
        return make_model_shape(
            tuple(size for size, _ in layers),
            layer_kv_bytes=tuple(0 if state_bytes and has_state else kv_bytes for _, has_state in layers),
            layer_state_bytes=tuple(state_bytes * has_state for _, has_state in layers),
            **ends,
        )

    return st.builds(
        build,
        st.lists(layer, min_size=1, max_size=max_layers),
        kv_bytes=st.integers(1, 3),
        state_bytes=st.sampled_from([0, 0, 5]),
        embed_bytes=st.integers(0, 20),
        head_bytes=st.integers(20, 30),
        tied=st.booleans(),
    )


def rings(max_ranks: int, max_memory: int) -> st.SearchStrategy[list[HostCapacity]]:
    """Draw hosts of one to three ranks, some without a limit, some without any memory."""
    host = st.builds(
        HostCapacity,
        name=st.just("a host"),
        num_ranks=st.integers(1, 3),
        memory_bytes=st.none() | st.integers(-5, max_memory),
        speed=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    )
    return st.lists(host, min_size=1, max_size=max_ranks).filter(
        lambda hosts: sum(host.num_ranks for host in hosts) <= max_ranks
    )


reserves = st.builds(
    KVReserve,
    reserve_bytes=st.sampled_from([0, 10, 40]),
    max_tokens=st.none() | st.integers(0, 9),
    max_rows=st.none() | st.integers(0, 4),
)


@settings(deadline=None, max_examples=250)
@given(shape=shapes(8), hosts=rings(4, 60), kv=reserves)
def test_a_plan_is_the_best_of_all_splits(
    shape: ModelShape, hosts: list[HostCapacity], kv: KVReserve
) -> None:
    """Compared with all splits: it fits if any split fits, and none that fits has a shorter longest stage."""
    num_ranks = sum(host.num_ranks for host in hosts)
    plans = [split_layers(shape.num_layers, counts) for counts in all_splits(shape.num_layers, num_ranks)]
    fitting = [plan for plan in plans if fits(shape, hosts, plan, kv)]
    found = try_plan(shape, hosts, kv)
    assert (found is not None) == bool(fitting)
    if found is not None:
        assert found in fitting
        longest = max(times_of(shape, found, hosts))
        assert longest == min(max(times_of(shape, plan, hosts)) for plan in fitting)


@settings(deadline=None, max_examples=60)
@given(shape=shapes(64), hosts=rings(8, 300), kv=reserves)
def test_a_plan_covers_every_layer_once_within_memory(
    shape: ModelShape, hosts: list[HostCapacity], kv: KVReserve
) -> None:
    """Ranges meet end to end, rank 0 last, none empty, no host over its memory; or it is refused."""
    plan = try_plan(shape, hosts, kv)
    if plan is None:
        num_ranks = sum(host.num_ranks for host in hosts)
        assert num_ranks > shape.num_layers or any(host.memory_bytes is not None for host in hosts)
        return
    assert [layer for part in reversed(plan) for layer in part] == list(range(shape.num_layers))
    assert all(len(part) > 0 for part in plan)
    assert fits(shape, hosts, plan, kv)


@settings(deadline=None, max_examples=60)
@given(shape=shapes(32), hosts=rings(5, 120), kv=reserves, data=st.data())
def test_more_memory_or_speed_never_hurts(
    shape: ModelShape, hosts: list[HostCapacity], kv: KVReserve, data: st.DataObject
) -> None:
    """With one host larger or faster, what fitted fits, and the longest stage is no longer."""
    before = try_plan(shape, hosts, kv)
    if before is None:
        return
    number = data.draw(st.integers(0, len(hosts) - 1))
    host = hosts[number]
    memory = None if host.memory_bytes is None else host.memory_bytes + data.draw(st.integers(0, 50))
    better = list(hosts)
    better[number] = replace(
        host, memory_bytes=memory, speed=host.speed * data.draw(st.sampled_from([1.0, 2.0]))
    )
    after = try_plan(shape, better, kv)
    assert after is not None
    assert max(times_of(shape, after, better)) <= max(times_of(shape, before, hosts))


@settings(deadline=None, max_examples=40)
@given(shape=shapes(32), hosts=rings(5, 120), kv=reserves)
def test_a_smaller_model_or_reserve_never_hurts(
    shape: ModelShape, hosts: list[HostCapacity], kv: KVReserve
) -> None:
    """What fits with a KV reserve fits with half of it, and is no slower."""
    before = try_plan(shape, hosts, kv)
    if before is None:
        return
    after = try_plan(shape, hosts, replace(kv, reserve_bytes=kv.reserve_bytes // 2))
    assert after is not None
    assert max(times_of(shape, after, hosts)) <= max(times_of(shape, before, hosts))


@pytest.mark.parametrize(
    ("shape", "hosts", "counts"),
    [
        pytest.param(make_model_shape((1,) * 30), alone(None, None, None), [10, 10, 10], id="equal"),
        pytest.param(
            make_model_shape((1,) * 32), alone(None, None, speeds=(1.0, 3.0)), [8, 24], id="a faster rank"
        ),
        pytest.param(
            make_model_shape((10,) * 20, head_bytes=40), alone(None, None), [8, 12], id="a dear head"
        ),
        pytest.param(
            make_model_shape((10,) * 8, embed_bytes=25, head_bytes=5), alone(None, 46), [6, 2], id="memory"
        ),
    ],
)
def test_layers_follow_speed_head_and_memory(
    shape: ModelShape, hosts: list[HostCapacity], counts: list[int]
) -> None:
    """A head costs rank 0 layers; embeddings count against the last rank's memory."""
    assert plan_layers(shape, hosts) == split_layers(shape.num_layers, counts)


def test_uneven_hosts_get_uneven_shares() -> None:
    """Of 80 GB of layers, 48 GB go where 48 are free, 32 where 32 are; KV of the larger part is larger."""
    shape = make_model_shape((1_000_000_000,) * 80, kv_bytes_per_token=1000)
    assert [len(part) for part in plan_layers(shape, alone(48 * 10**9, 32 * 10**9))] == [48, 32]
    kv = KVReserve(2_000_000_000)
    with pytest.raises(DoesNotFit):
        plan_layers(shape, alone(48 * 10**9, 33 * 10**9), kv)
    hosts = alone(50 * 10**9, 34 * 10**9)
    plan = plan_layers(shape, hosts, kv)
    assert [len(part) for part in plan] == [48, 32]
    kv_bytes = [need.kv_bytes for need in needs_of(shape, hosts, plan, kv)]
    assert kv_bytes == [pytest.approx(2e9, rel=1e-3), pytest.approx(2e9 * 32 / 48, rel=1e-3)]


def test_ranks_of_a_host_share_its_memory_in_any_proportion() -> None:
    """Two ranks, one with the head, fit into what their sum is, though not into halves of it."""
    shape = make_model_shape((10,) * 4, head_bytes=40)
    assert plan_layers(shape, [HostCapacity(num_ranks=2, memory_bytes=80)]) == (range(3, 4), range(3))
    with pytest.raises(DoesNotFit):
        plan_layers(shape, [HostCapacity(num_ranks=2, memory_bytes=79)])


def test_a_reserve_for_more_tokens_than_can_ever_run_is_not_counted() -> None:
    """KV is at most what all rows of all tables can hold."""
    kv = KVReserve(10 * MIB, max_tokens=100)
    assert kv.layer_bytes(make_model_shape((1, 1), kv_bytes_per_token=16), 2) == 1600


def test_ranks_with_states_may_each_use_the_whole_reserve() -> None:
    """Rows and tokens share it as they come; less is counted where all rows and tokens take less."""
    shape = make_model_shape((1,) * 4, layer_kv_bytes=(0, 0, 0, 10), layer_state_bytes=(50, 50, 50, 0))
    kv = KVReserve(1000, max_tokens=90, max_rows=4)
    needs = needs_of(
        shape, alone(None, None), split_layers(4, (2, 2)), kv
    )  # rank 0 has the layer that attends
    assert [need.kv_bytes for need in needs] == [1000, 400]


def test_a_rank_whose_layers_cache_more_than_others_has_room_for_its_kv() -> None:
    """As in Gemma 4: rank 0 holds what the reserve has, rank 1 never more than all tokens take."""
    shape = make_model_shape((1,) * 4, layer_kv_bytes=(2, 2, 2, 8))
    kv = KVReserve(1000, max_tokens=200, max_rows=4)
    needs = needs_of(shape, alone(None, None), split_layers(4, (2, 2)), kv)
    assert [need.kv_bytes for need in needs] == [1000, 800]


@pytest.mark.parametrize(
    ("window", "num_tokens", "row_bytes"),
    [
        (128, 4096, 4096 * 4),  # short enough
        (128, 8192, 2 * (8192 + 128)),
        (4096, 8192, 8192 * 4),  # too little to gain
        (4096, 32768, 2 * (32768 + 4096)),
    ],
)
def test_windows_are_kept_alone_where_that_saves_much(
    tmp_path: Path, window: int, num_tokens: int, row_bytes: int
) -> None:
    """A row of a longest context, in units of a layer's KV of a token; every second layer has a window."""
    config = CONFIGS["gpt_oss"] | {"sliding_window": window, "max_position_embeddings": 1 << 17}
    shape = read_shape(make_model_folder(tmp_path, config), float_bytes=4, num_tokens=num_tokens)
    of_a_token = 2 * config["num_key_value_heads"] * config["head_dim"] * 4
    assert shape.kv_bytes(range(4), num_tokens, 1) == row_bytes * of_a_token


def test_tied_embeddings_count_once_on_a_ring_of_one() -> None:
    """One process holds one copy; two ends of a ring hold two."""
    shape = make_model_shape((10, 10), embed_bytes=30, head_bytes=31, tied=True)
    assert plan_layers(shape, alone(51)) == (range(2),)
    with pytest.raises(DoesNotFit, match="mac1"):
        plan_layers(shape, alone(50))


def test_a_model_too_large_is_refused_with_the_numbers() -> None:
    """The message names the memory and need of every host in the nearest split, and the sums."""
    shape = make_model_shape((4_000_000_000,) * 4, embed_bytes=1_000_000_000, head_bytes=1_000_000_000)
    with pytest.raises(
        DoesNotFit,
        match=r"mac1 has 8\.00 GB and needs 9\.00 GB .*; mac2 has 9\.00 GB and needs 9\.00 GB .*; "
        r"in total there are 17\.00 GB and 18\.00 GB are needed .*largest layer has 4\.00 GB",
    ):
        plan_layers(shape, alone(8_000_000_000, 9_000_000_000))


def test_a_split_by_hand_is_refused_where_a_host_cannot_hold_it() -> None:
    """LAYER_SPLIT wins over the plan, not over the memory."""
    shape = make_model_shape((10,) * 8)
    check_fits(shape, alone(40, 40), split_layers(8, (4, 4)))
    with pytest.raises(DoesNotFit, match=r"mac1 has .* and needs"):
        check_fits(shape, alone(40, 40), split_layers(8, (5, 3)))


def test_the_reserve_that_would_fit_is_found() -> None:
    """The largest one, in MiB; none where the weights alone are too large."""
    shape = make_model_shape((10 * MIB,) * 4, kv_bytes_per_token=1024)
    kv = KVReserve(100 * MIB)
    assert find_fitting_reserve(shape, alone(50 * MIB), kv) == 10
    assert find_fitting_reserve(shape, alone(39 * MIB), kv) == 0
    assert find_fitting_reserve(shape, alone(None), kv) == 100


def test_more_ranks_than_layers_are_refused() -> None:
    """A rank without a layer would only add a hop."""
    with pytest.raises(DoesNotFit, match="5 ranks"):
        plan_layers(make_model_shape((1,) * 4), [HostCapacity(num_ranks=5)])


def test_layer_split_is_read_from_rank_0_on() -> None:
    """LAYER_SPLIT=3,1 gives rank 0 the last three layers."""
    assert split_layers(4, (3, 1)) == (range(1, 4), range(1))


@pytest.mark.parametrize("counts", [(3, 2), (4, 0), (5, -1), ()])
def test_a_layer_split_that_does_not_add_up_is_refused(counts: tuple[int, ...]) -> None:
    """Layers are never lost silently."""
    with pytest.raises(DoesNotFit, match="LAYER_SPLIT"):
        split_layers(4, counts)


@pytest.mark.parametrize(
    "variant", ["llama", "llama-tied", "qwen3_moe", "deepseek_v2-8bit", "deepseek_v2-groups"]
)
@pytest.mark.parametrize("dequantize", [False, True])
def test_headers_predict_what_stages_hold(tmp_path: Path, variant: str, dequantize: bool) -> None:
    """The bytes of weights and KV that a plan counts with are the bytes that a stage takes."""
    folder = make_checkpoint(tmp_path, variant)
    shape = read_shape(folder, dequantize=dequantize, float_bytes=4)
    for runner in load_runners(folder, (1, 2, 1), dequantize=dequantize):
        stage = runner.model
        counted = shape.stage_bytes(stage.layers, is_first=stage.is_first, is_last=stage.is_last)
        assert counted == stage.weights_bytes
        running = Stage(runner)
        running.measure_kv()
        assert running.kv_bytes_per_token == len(stage.layers) * shape.kv_bytes_per_token


def test_only_active_experts_cost(tmp_path: Path) -> None:
    """A token touches 3 of 8 experts: the other five cost memory, not time."""
    shape = read_shape(make_checkpoint(tmp_path, "deepseek_v2"))
    expert_bytes = 8 * 3 * 64 * 64 * 4
    assert shape.layer_bytes[1] - shape.layer_costs[1] == pytest.approx(expert_bytes * 5 / 8)
    assert shape.layer_costs[0] == shape.layer_bytes[0]


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
    modules = "distributed.planning.layer_plan, distributed.planning.stage_files, cluster.hosts.model_files"
    code = f"import sys, distributed.backends.cpu.blas, {modules}; sys.exit('mlx.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

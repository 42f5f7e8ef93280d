"""The plan of a cluster: what counts as a host's memory, what is kept, what is refused, what is shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from cluster.commands.command_line import main
from cluster.commands.doctor import model_plan as doctor_plan
from cluster.commands.plan import BadHosts, make_lines, read_hosts
from cluster.hosts import provisioning as placing
from cluster.hosts import ring_plan as plan
from cluster.hosts.host_rooms import HostRoom, PlanRefused, mac_gpu_bytes, make_room, measure_rooms
from cluster.hosts.hosts import Cluster, Host, read_cluster
from cluster.hosts.model_source import HubOutOfReach, ModelSource
from cluster.hosts.ring_plan import LAYOUT_NAME, RingLayout, choose_layout, plan_ring
from cluster.supervisor.service import read_service
from config import Settings, load_settings
from distributed.planning.capacities import RANK_BYTES, make_reserve
from distributed.planning.checkpoint import TensorInfo
from tests.cluster.hosts.pretended_hosts import GB, make_facts
from tests.fakes.checkpoints import make_checkpoint
from tests.fakes.fake_hub import FakeHub
from tests.services.cluster_service import find_free_port

MIB = 1 << 20
MakeSettings = Callable[..., Settings]


@pytest.fixture
def make_settings(tmp_path: Path) -> MakeSettings:
    """Make settings with a state folder of their own and a small KV reserve."""

    def make(**values: str) -> Settings:
        (tmp_path / "root").mkdir(exist_ok=True)
        mine = {"STATE_DIR": str(tmp_path / "state"), "KV_CACHE_RESERVED_MEMORY_MB": "1000"} | values
        return load_settings(mine, root=tmp_path / "root", environ={})

    return make


def make_source(num_layers: int = 40, layer_bytes: int = GB, *, packed_as: int = 1) -> ModelSource:
    """Make a model of equal layers, half-precision, or packed into an eighth of float32's size."""
    config = {
        "model_type": "llama",
        "num_hidden_layers": num_layers,
        "hidden_size": 4096,
        "vocab_size": 32_000,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "quantization": {"group_size": 64, "bits": 4},
    }
    values = layer_bytes // 2
    tensors = {
        name: TensorInfo("model.safetensors", "F16", (values,), layer_bytes)
        for name in (f"model.layers.{i}.mlp.up_proj.weight" for i in range(num_layers))
    }
    if packed_as > 1:
        for i in range(num_layers):
            name = f"model.layers.{i}.mlp.up_proj.scales"
            tensors[name] = TensorInfo("model.safetensors", "F16", (layer_bytes // 64,), layer_bytes // 32)
    return ModelSource("layered", config, tensors, None)


def make_default_source() -> ModelSource:
    """Make DeepSeek-Coder-V2-Lite in 8 bits: the parts of its 27 layers with their bytes."""
    config = {
        "model_type": "deepseek_v2",
        "num_hidden_layers": 27,
        "hidden_size": 2048,
        "vocab_size": 102_400,
        "num_attention_heads": 16,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
    }
    attention = 2048 * (16 * 192 + 576 + 16 * 128) + 512 * 16 * 256
    expert = 3 * 2048 * 1408
    parts = {"model.embed_tokens": 102_400 * 2048, "lm_head": 102_400 * 2048}
    for layer in range(27):
        parts[f"model.layers.{layer}.self_attn"] = attention
        if layer == 0:
            parts["model.layers.0.mlp"] = 3 * 2048 * 10_944
        else:
            parts[f"model.layers.{layer}.mlp.switch_mlp"] = 64 * expert
            parts[f"model.layers.{layer}.mlp.shared_experts"] = 2 * expert
    tensors = {
        f"{name}.weight": TensorInfo("model.safetensors", "U32", (num // 4,), num + num // 64 * 4)
        for name, num in parts.items()
    }
    return ModelSource("DeepSeek-Coder-V2-Lite-Instruct-8bit", config, tensors, None)


def make_cluster(*num_ranks: int) -> Cluster:
    """Make a cluster: this machine, mac2, mac3."""
    hosts = [Host("localhost", None, "10.0.0.1", num_ranks[0])]
    hosts += [Host(f"mac{i}", f"mac{i}", f"10.0.0.{i}", num) for i, num in enumerate(num_ranks[1:], start=2)]
    return Cluster(tuple(hosts))


def make_mac(total_bytes: int, **told: Any) -> dict[str, Any]:
    """What a Mac with a GPU says of itself, everything free."""
    usual = {"system": "Darwin", "machine": "arm64", "free_memory_bytes": total_bytes}
    return {"total_memory_bytes": total_bytes, **usual, **told}


def rooms_of(*told: dict[str, Any], num_ranks: tuple[int, ...] = (1, 1)) -> tuple[HostRoom, ...]:
    """Measure a cluster of two hosts."""
    cluster = make_cluster(*num_ranks)
    facts = [make_facts(host, **entry) for host, entry in zip(cluster.hosts, told, strict=True)]
    return measure_rooms(cluster, facts, {})


@pytest.mark.parametrize(
    ("told", "num_ranks", "gigabytes", "has_gpu"),
    [
        ({}, 1, 4, False),
        ({"free_memory_bytes": 3 * GB}, 2, 3, False),
        (make_mac(64 * GB), 1, 48, True),
        (make_mac(64 * GB, free_memory_bytes=20 * GB), 1, 48, True),
        (make_mac(64 * GB, gpu_wired_limit_bytes=60 * GB), 1, 60, True),
        (make_mac(64 * GB, machine="x86_64", free_memory_bytes=20 * GB), 1, 20, False),
    ],
)
def test_weights_and_kv_have_what_is_free_or_the_gpu_may_use_less_what_ranks_take(
    told: dict[str, Any], num_ranks: int, gigabytes: int, has_gpu: bool
) -> None:
    """A Mac's GPU counts with what it tells, else with 3/4 of the memory, whatever is free now; an Intel Mac
    has none of use.
    """
    room, _ = rooms_of(told, {}, num_ranks=(num_ranks, 1))
    assert (room.usable_bytes, room.has_gpu) == (gigabytes * GB - num_ranks * RANK_BYTES, has_gpu)


@pytest.mark.parametrize(("gib", "usable"), [(16, 16 * 2 / 3), (36, 24), (48, 36), (128, 96)])
def test_the_gpu_of_a_small_mac_may_use_two_thirds(gib: int, usable: float) -> None:
    """Up to 36 GB, and three quarters above."""
    assert mac_gpu_bytes(gib << 30) == int(usable * (1 << 30))


def test_doctor_and_start_warn_of_a_mac_in_use_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note and no failure from one, the same words in the plan's step of the other, and in the plan."""
    monkeypatch.setattr(doctor_plan, "read_source", lambda settings: make_default_source())
    monkeypatch.setattr(plan, "read_source", lambda settings: make_default_source())
    settings = load_settings({"STATE_DIR": str(tmp_path)}, root=tmp_path, environ={})
    cluster = make_cluster(1, 1)
    mac = make_mac(16 << 30, free_memory_bytes=7 << 30)
    told = [make_facts(host, **mac) for host in cluster.hosts]
    found = asyncio.run(doctor_plan.check_plan(settings, cluster, told, read_service(settings)))
    assert [finding.level for finding in found] == ["ok", "ok", "note", "note"]
    shown: list[str] = []
    steps = SimpleNamespace(done=lambda name, detail: shown.append(detail), say=None)
    asyncio.run(placing.plan_model(cluster, settings, told, steps))
    assert f"mac2: {found[-1].text}" in shown[0]
    assert "7.5 GB are free now" in found[-1].text
    layout = choose_layout(settings, make_default_source(), measure_rooms(cluster, told, {}))
    assert f"mac2: {found[-1].text}." in make_lines(layout, is_asked=True)


def test_more_than_the_gpus_may_use_is_refused_whatever_is_free(tmp_path: Path) -> None:
    """Two Macs of 8 GB cannot hold it with all of their memory; what helps is said."""
    settings = load_settings({}, root=tmp_path, environ={})
    rooms = rooms_of(make_mac(8 << 30), make_mac(8 << 30))
    with pytest.raises(PlanRefused, match=r"localhost has .*let the GPU use more \(sysctl iogpu"):
        choose_layout(settings, make_default_source(), rooms)


def test_macs_count_by_the_bandwidth_of_their_chips() -> None:
    """A Max reads memory four times as fast as a plain M1; an unknown chip makes all equal."""
    known = rooms_of(make_mac(GB, chip="Apple M1"), make_mac(GB, chip="Apple M1 Max"))
    assert known[1].speed / known[0].speed == pytest.approx(400 / 68)
    unknown = rooms_of(make_mac(GB, chip="Apple M1"), make_mac(GB, chip="Apple M99"))
    assert unknown[0].speed == unknown[1].speed


def test_this_machine_in_two_places_shares_its_memory() -> None:
    """`localhost` before and after another host: each place has its ranks' part."""
    hosts = (Host("localhost", None, "", 1), Host("mac2", "mac2", "", 1), Host("localhost", None, "", 3))
    rooms = measure_rooms(Cluster(hosts), [make_facts(host) for host in hosts], {})
    usable = 4 * GB - 4 * RANK_BYTES
    assert (rooms[0].usable_bytes, rooms[2].usable_bytes) == (usable // 4, usable * 3 // 4)
    assert rooms[0].speed == rooms[2].speed == rooms[1].speed / 4


def test_memory_of_our_own_old_ranks_counts_as_free() -> None:
    """A restart plans with what the ranks that it ends will give back."""
    cluster = make_cluster(1, 1)
    facts = [make_facts(host) for host in cluster.hosts]
    _, second = measure_rooms(cluster, facts, {"mac2": 2 * GB})
    assert second.free_bytes == 6 * GB


def test_a_host_that_does_not_tell_its_memory_is_named() -> None:
    """Nothing is guessed."""
    with pytest.raises(PlanRefused, match="mac2 does not report its memory"):
        rooms_of({}, {"free_memory_bytes": None})


def test_hosts_with_and_without_a_gpu_are_no_ring(make_settings: MakeSettings) -> None:
    """Their hidden states differ in type."""
    with pytest.raises(PlanRefused, match="localhost has no GPU and others have one"):
        choose_layout(make_settings(), make_source(), rooms_of({}, make_mac(64 * GB)))


def test_uneven_macs_get_uneven_shares(make_settings: MakeSettings) -> None:
    """Of 40 GB of layers a Mac of 64 GB takes what one of 16 GB cannot; each holds what it gets."""
    layout = choose_layout(make_settings(), make_source(), read_hosts("mac1:64GB,mac2:16GB"))
    assert sum(layout.counts) == 40
    assert layout.counts[0] > layout.counts[1]
    for room in layout.rooms:
        assert sum(s.weights_bytes + s.kv_bytes for s in layout.ranks_of(room.name)) <= room.usable_bytes
    assert layout.ranks[0].layers.stop == 40
    assert sum(share.work_share for share in layout.ranks) == pytest.approx(1)


def test_what_does_not_fit_is_refused_with_numbers_and_advice(make_settings: MakeSettings) -> None:
    """Per host what it has and needs; a smaller KV reserve that fits is named, and it does fit."""
    settings = make_settings(KV_CACHE_RESERVED_MEMORY_MB="4000", MAX_SEQUENCE_LENGTH="100000")
    rooms = read_hosts("mac1:32GB,mac2:32GB")
    with pytest.raises(PlanRefused, match=r"mac1 has .* GB and needs .*; mac2 has .*in total") as refused:
        choose_layout(settings, make_source(), rooms)
    words = str(refused.value).split("KV_CACHE_RESERVED_MEMORY_MB=")[1]
    fitting = make_settings(KV_CACHE_RESERVED_MEMORY_MB=words.split()[0], MAX_SEQUENCE_LENGTH="100000")
    assert sum(choose_layout(fitting, make_source(), rooms).counts) == 40
    with pytest.raises(PlanRefused, match="smaller model"):
        choose_layout(settings, make_source(), read_hosts("mac1:16GB,mac2:16GB"))


def test_a_split_by_hand_is_checked(make_settings: MakeSettings) -> None:
    """LAYER_SPLIT is taken as it is, or refused with the numbers."""
    rooms = read_hosts("mac1:64GB,mac2:32GB")
    by_hand = make_settings(LAYER_SPLIT="35,5", WORKER_HOSTS="mac2")
    assert choose_layout(by_hand, make_source(), rooms).counts == (35, 5)
    too_much = make_settings(LAYER_SPLIT="5,35", WORKER_HOSTS="mac2")
    with pytest.raises(PlanRefused, match="mac2 has"):
        choose_layout(too_much, make_source(), rooms)


def test_without_a_gpu_weights_are_unpacked_where_they_fit(make_settings: MakeSettings) -> None:
    """Float32 takes several times the room: packed weights stay packed on small hosts."""
    source = make_source(10, 100 * MIB, packed_as=8)
    large, small = read_hosts("a:64GB,b:64GB", has_gpu=False), read_hosts("a:3GB,b:3GB", has_gpu=False)
    assert choose_layout(make_settings(), source, large).dequantize
    assert not choose_layout(make_settings(), source, small).dequantize
    assert not choose_layout(make_settings(), source, read_hosts("a:64GB,b:64GB")).dequantize


def test_no_more_kv_is_counted_than_the_tables_can_hold(make_settings: MakeSettings) -> None:
    """Rows times the longest text, padded, for as many tables as microbatches."""
    settings = make_settings(MAX_ROWS_PER_MICROBATCH="4", MAX_SEQUENCE_LENGTH="1000", MICROBATCHES="3")
    assert make_reserve(settings, 2).max_tokens == 3 * 4 * 1024
    settings = make_settings(MAX_ROWS_PER_MICROBATCH="4", MAX_SEQUENCE_LENGTH="auto", MICROBATCHES="3")
    assert make_reserve(settings, 2).max_tokens == 3 * 4 * 32_768


def plan_with(settings: Settings, *free_bytes: int) -> RingLayout:
    """Plan a ring of Linux hosts with so much free memory."""
    cluster = make_cluster(*(1 for _ in free_bytes))
    facts = [
        make_facts(host, total_memory_bytes=64 * GB, free_memory_bytes=free)
        for host, free in zip(cluster.hosts, free_bytes, strict=True)
    ]
    return asyncio.run(plan_ring(settings, cluster, facts, {}))


def test_the_last_layout_is_kept_while_it_is_good(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A little less free memory moves no layer; much less does, and so does a split that got too slow."""
    source = make_source(40, GB // 4)
    monkeypatch.setattr("cluster.hosts.ring_plan.read_source", lambda settings: source)
    settings = make_settings(WORKER_HOSTS="mac2")
    first = plan_with(settings, 17 * GB, 9 * GB)
    assert first.counts[0] > first.counts[1]
    assert plan_with(settings, 17 * GB + 500 * MIB, 9 * GB + 500 * MIB).counts == first.counts
    tighter = plan_with(settings, 19 * GB, 8 * GB)
    assert tighter.counts[1] < first.counts[1]
    even = plan_with(settings, 40 * GB, 40 * GB)
    assert even.counts == (20, 20)
    assert (tmp_path / "state" / "run" / LAYOUT_NAME).is_file()


@pytest.mark.parametrize(
    ("text", "total"),
    [("a:64GB", 64 * 10**9), ("a:64GiB", 64 << 30), ("a:1.5TB", 1_500 * GB), ("a:512mb", 512 * 10**6)],
)
def test_gb_are_powers_of_ten_and_gib_of_two(text: str, total: int) -> None:
    """Units mean what they say."""
    (room,) = read_hosts(text)
    assert room.total_bytes == total


@pytest.mark.parametrize(
    "text", ["a", "a:", "a:64", "a:64XB", "a:64GB:0", "a:64GB,", "a:64GB,a:32GB", ":4GB"]
)
def test_hosts_that_cannot_be_read_are_named(text: str) -> None:
    """The entry and the form that is wanted; exit code 2."""
    with pytest.raises(BadHosts, match="--hosts") as refused:
        read_hosts(text)
    assert refused.value.exit_code == 2


def test_the_table_shows_what_was_asked(make_settings: MakeSettings) -> None:
    """A line for each rank: host, layers, weights, KV, memory, work; below, the assumptions."""
    layout = choose_layout(make_settings(), make_source(), read_hosts("mac1:64GB:2,mac2:16GB"))
    lines = make_lines(layout, is_asked=False)
    heading = next(number for number, line in enumerate(lines) if line.startswith("rank"))
    assert lines[heading].split("  ")[0] == "rank"
    rows = [line.split() for line in lines[heading + 1 : heading + 4]]
    assert [row[:2] for row in rows] == [["0", "mac1"], ["1", "mac1"], ["2", "mac2"]]
    assert rows[2][2].startswith("0-")
    assert rows[0][2].endswith("-39")
    assert any("3/4 above" in line and "not proven" in line for line in lines)
    assert any("were not asked" in line for line in lines)


class Commands:
    """`launch.sh` in this process, without its shell; `out` and `err` are of the last command."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self.cache = folder / "cache"
        self.patch, self._capture = patch, capture
        self.out = self.err = ""
        patch.setenv("STATE_DIR", str(folder / "state"))

    def run(self, *words: str) -> int:
        """Run a command to its end; the exit code."""
        code = main(words)
        self.out, self.err = self._capture.readouterr()
        return code

    def serve(self, hub: FakeHub) -> None:
        """Let this process and those that it starts ask this Hub."""
        hub.take_over(self.patch, self.cache)
        for name, value in hub.environment(self.cache).items():
            self.patch.setenv(name, value)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Commands:
    return Commands(tmp_path, monkeypatch, capfd)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model."""
    return make_checkpoint(tmp_path / "model", "llama")


def test_a_model_that_is_not_here_is_planned_from_the_hub(commands: Commands, folder: Path) -> None:
    """From config and headers: the plan is the one that the folder gives, no weights are fetched."""
    plans = []
    words = ("plan", "--hosts", "mac1:4GB,mac2:4GB", "--json")
    with FakeHub(folder) as served:
        commands.serve(served)
        assert commands.run(*words) == 0, commands.err
        plans.append(json.loads(commands.out))
    assert not list(commands.cache.rglob("*.safetensors"))
    commands.patch.setenv("MODEL_REPO", str(folder))
    assert commands.run(*words) == 0, commands.err
    plans.append(json.loads(commands.out))
    assert plans[0].pop("model") == "some-model"
    assert plans[1].pop("model") == "model"
    assert plans[0] == plans[1]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan --hosts a:8GB", "doctor", "start", "start --dry-run"])
def test_every_command_refuses_a_hub_model_that_is_not_served(
    commands: Commands, folder: Path, command: str
) -> None:
    """By its config.json, with the types that are; of the weights not even a header is asked for."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gemma3n"}))
    commands.patch.setenv("API_PORT", str(find_free_port()))
    with FakeHub(folder) as served:
        commands.serve(served)
        assert commands.run(*command.split()) == 1
    assert "model type 'gemma3n' is not served; served are " in commands.out + commands.err
    assert not [name for name in served.sent_bytes if name.endswith(".safetensors")]


def test_without_the_hub_it_is_said_why_nothing_can_be_planned(commands: Commands, folder: Path) -> None:
    """Nobody listens there: one sentence, at once."""
    with FakeHub(folder) as gone:
        commands.serve(gone)
    assert commands.run("plan", "--hosts", "a:8GB") == 1
    assert "someone/some-model is not on this machine, and the Hub cannot be asked" in commands.err


def test_this_machine_is_asked_without_hosts(commands: Commands, folder: Path) -> None:
    """Two ranks share its memory; the layers add up."""
    commands.patch.setenv("MODEL_REPO", str(folder))
    settings = "KV_CACHE_RESERVED_MEMORY_MB=1"
    assert commands.run("plan", "--ranks", "2", "--json", "--set", settings) == 0, commands.err
    plan = json.loads(commands.out)
    assert [rank["host"] for rank in plan["ranks"]] == ["localhost", "localhost"]
    assert sum(rank["num_layers"] for rank in plan["ranks"]) == 4
    assert make_room("a", 1, total_bytes=1, free_bytes=RANK_BYTES, gpu_limit_bytes=None).usable_bytes == 0


def test_a_hub_out_of_reach_is_a_trouble_of_the_doctors(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start could not fetch the model either."""

    def read_none(_: Settings) -> NoReturn:
        raise HubOutOfReach("it is not on this machine, and the Hub cannot be asked")

    monkeypatch.setattr(doctor_plan, "measure_rooms", lambda *_: ())
    monkeypatch.setattr(doctor_plan, "read_source", read_none)
    settings = make_settings()
    (finding,) = asyncio.run(
        doctor_plan.check_plan(settings, read_cluster(settings), (), read_service(settings))
    )
    assert (finding.level, finding.check) == ("failed", "plan")

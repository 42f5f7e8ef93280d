"""Simulated stages: what they wait, what they answer in any ring, and the ideal they are held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.simulated import Pipeline, split_by_speed
from bench.step_record import RECORD_NAME, REQUEST_NAME
from bench.timeline import Span, read_spans
from config import Settings, SettingsError, load_settings
from config.run_files import read_json, write_json
from config.simulated import SimulatedModel
from distributed.backends.choose import choose_backend
from distributed.backends.simulated import SimulatedRunner, sleep_until
from distributed.backends.stage import Stage
from distributed.models.simulated import first_made_up_id, make_simulated
from distributed.planning.step import PrefixCopy
from prompts.tokenizer import PromptTokenizer
from tests.services.ring_service import RingService
from tests.services.stages import StageChain, expected_ids

QUICK = "simulated:layers=6,layer_us=0,row_us=0,token_us=0,hidden=2,vocab=1024"
SHORT = "simulated:layers=6,layer_us=200,row_us=10,token_us=1,hidden=16"


def make_chain(model: SimulatedModel, counts: list[int]) -> StageChain:
    """Make stages of `counts` layers, first layers first."""
    ends = list(accumulate(counts))
    return StageChain(
        [
            SimulatedRunner(model, 0, range(end - count, end), is_first=end == count, is_last=end == ends[-1])
            for end, count in zip(ends, counts, strict=True)
        ]
    )


def draw(
    chain: StageChain,
    rows: list[list[int]],
    slots: list[int],
    offsets: list[int],
    copies: tuple[PrefixCopy, ...] = (),
) -> list[int]:
    """Run one microbatch; the greedy token of each row that has any."""
    ids = mx.argmax(chain.run(rows, slots, offsets, copies), axis=-1).tolist()
    return [row_ids[len(row) - 1] for row, row_ids in zip(rows, ids, strict=True) if row]


@settings(deadline=None, max_examples=30)
@given(
    ids=st.lists(st.integers(0, 1023), min_size=2, max_size=40),
    cut=st.integers(1, 39),
    counts=st.sampled_from([[6], [3, 3], [1, 5], [2, 1, 3]]),
    slot=st.integers(0, 5),
)
def test_an_answer_depends_on_all_ids_and_on_no_split(
    ids: list[int], cut: int, counts: list[int], slot: int
) -> None:
    """However layers and prompt are cut, wherever the row lies, the tokens are the same."""
    model = SimulatedModel.from_name(QUICK)
    chain, cut = make_chain(model, counts), min(cut, len(ids) - 1)
    draw(chain, [ids[:cut]], [slot], [0])
    answer = draw(chain, [ids[cut:]], [slot], [cut])
    for step in range(3):
        answer += draw(chain, [answer[-1:]], [slot], [len(ids) + step])
    assert answer == expected_ids(model, ids, 4)
    assert min(answer) >= first_made_up_id(model.vocab)
    other = [*ids[:-2], ids[-1], ids[-2]] if ids[-1] != ids[-2] else [*ids[:-1], ids[-1] ^ 1]
    assert expected_ids(model, other, 4) != answer


def test_rows_holes_padding_and_copies_keep_to_themselves() -> None:
    """Several rows give each its own answer; a copied prefix counts as if it were stepped."""
    model = SimulatedModel.from_name(QUICK)
    chain, one, two = make_chain(model, [3, 3]), [5, 6, 7, 8, 9], [100, 101, 102]
    first, third = draw(chain, [one, [], two], [0, 1, 2], [0, 0, 0])
    assert [first] == expected_ids(model, one, 1)
    assert [third] == expected_ids(model, two, 1)
    begun = [*one[:4], 77, 78]
    (copied,) = draw(chain, [begun[4:]], [1], [4], (PrefixCopy(0, 0, 1, 4),))
    assert [copied] == expected_ids(model, begun, 1)
    assert draw(chain, [[first]], [0], [5]) == expected_ids(model, one, 2)[1:]


def test_a_stage_takes_its_time_and_no_core() -> None:
    """At least what its description says, asleep."""
    model = SimulatedModel.from_name("simulated:layers=4,layer_us=50000,row_us=0,token_us=0")
    chain = make_chain(model, [4])
    start_s, cpu_s = time.monotonic(), time.process_time()
    draw(chain, [[1, 2, 3]], [0], [0])
    assert time.monotonic() - start_s >= 0.2
    assert time.process_time() - cpu_s < 0.1
    sleep_until(time.monotonic_ns() - 1)  # the past is no wait


def test_the_time_of_a_stage_is_the_sum_of_its_costs() -> None:
    """By step, hop, layer, row and token; a faster rank takes less."""
    model = SimulatedModel.from_name(
        "simulated:step_us=1,hop_us=2,layer_us=10,row_us=100,token_us=1000,head_us=5,speeds=1:2"
    )
    assert model.stage_us(rank=0, num_layers=3, num_rows=4, num_tokens=2) == 3 + 3 * (10 + 400 + 8000)
    assert model.stage_us(rank=1, num_layers=3, num_rows=4, num_tokens=2) == (3 + 3 * 8410) / 2
    assert model.draw_us(4) == 20
    assert model.speed_of(7) == 1.0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("simulated:", "no ''"),
        ("simulated:layer=3", "no 'layer=3'"),
        ("simulated:layers=none", "layers=none"),
        ("simulated:layers=0", "at least 1"),
        ("simulated:speeds=1:0", "at least 0.001"),
        ("simulated:layer_us=nan", "at least 0"),
        ("simulated:vocab=10", "at least 1024"),
    ],
)
def test_a_wrong_description_is_refused_with_its_key(name: str, reason: str) -> None:
    """At once, when settings are loaded."""
    with pytest.raises(ValueError, match=reason):
        SimulatedModel.from_name(name)
    with pytest.raises(SettingsError):
        load_settings({"MODEL_REPO": name})


def test_nothing_takes_a_simulated_model_for_a_real_one(tmp_path: Path) -> None:
    """Its name says what it is, wherever a model's name stands; its folder too."""
    values: Settings = load_settings({"MODEL_REPO": SHORT, "STATE_DIR": str(tmp_path)})
    assert values.model_name.startswith("simulated:")
    assert values.model_dir.name.startswith("simulated-")
    make_simulated(SHORT, values.model_dir)
    make_simulated(SHORT, values.model_dir)
    assert [path.name for path in values.model_dir.parent.iterdir()] == [values.model_dir.name]
    backend = choose_backend(values.model_dir, rank=1)
    stage = Stage(backend.load(values.model_dir, range(3), is_first=True, is_last=False))
    stage.measure_kv()
    assert (stage.model.is_first, stage.model.is_last, stage.kv_bytes_per_token) == (True, False, 8)


def test_its_tokenizer_reads_any_text(tmp_path: Path) -> None:
    """Common words are one token, everything else is bytes, and an answer's tokens are made-up words."""
    make_simulated(SHORT, tmp_path / "model")
    tokenizer = PromptTokenizer(tmp_path / "model")
    assert tokenizer.vocab_size == 4096
    assert len(tokenizer.encode_raw(" the water")) == 2
    assert max(tokenizer.encode_raw("Zürich, 北京 🙂 def f(x): return")) < first_made_up_id(4096)
    assert tokenizer.encode_rendered(tokenizer.render([{"role": "user", "content": "hello"}]).text)


@pytest.mark.slow
def test_a_ring_of_simulated_stages_answers_every_request_as_foreseen(tmp_path: Path) -> None:
    """Three uneven ranks, requests of many lengths at once, some that begin alike: every token is right."""
    model = SimulatedModel.from_name(SHORT)
    make_simulated(SHORT, tmp_path / "model")
    common = list(range(300, 340))
    prompts = [[number, *common[: 3 * number], *range(number + 9)] for number in range(1, 12)]
    prompts += [[*common, number] for number in range(5)]
    with RingService(tmp_path / "state", tmp_path / "model", 3, layer_split="1,2,3") as ring:
        run_dir = tmp_path / "state" / "run"
        write_json(run_dir / REQUEST_NAME, {"id": "first", "seconds": 600})
        wait_until(lambda: not (run_dir / REQUEST_NAME).exists())
        results = ring.ask(*(ring.request(ids, max_tokens=12) for ids in prompts))
        write_json(run_dir / REQUEST_NAME, {"id": "", "seconds": 0})
        wait_until((run_dir / RECORD_NAME).exists)
        assert ring.stop() == [0, 0, 0]
    for ids, result in zip(prompts, results, strict=True):
        assert list(result.token_ids) == expected_ids(model, ids, 12)
    record = read_json(run_dir / RECORD_NAME)
    assert record is not None
    check_spans(read_spans(record), model, (1, 2, 3))


def check_spans(spans: list[Span], model: SimulatedModel, layer_counts: tuple[int, ...]) -> None:
    """Every microbatch was at every stage, after the stage before it, and as long as its layers take."""
    assert {span.is_prefill for span in spans} == {True, False}
    for step in {span.step for span in spans}:
        lap = [span for span in spans if span.step == step]
        assert [span.rank for span in lap] == [2, 1, 0]
        assert all(before.end_us <= after.start_us for before, after in pairwise(lap))
        assert all(span.busy_us >= layer_counts[span.rank] * model.layer_us for span in lap)


def wait_until(is_true: Callable[[], bool]) -> None:
    """Wait for a file that rank 0 makes or takes; it tells nobody."""
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_ideal_of_one_stage_is_its_own_time() -> None:
    """And of more stages as many times that, where a step costs nothing but its rows."""
    by_row = SimulatedModel.from_name("simulated:layers=8,layer_us=0,row_us=1000,token_us=0")
    assert Pipeline(by_row, (8,)).decode_rate(16) == pytest.approx(1e6 / 8000)
    assert Pipeline(by_row, (4, 4)).decode_rate(16) == pytest.approx(2e6 / 8000)
    assert Pipeline(by_row, (2, 2, 2, 2)).decode_rate(16) == pytest.approx(4e6 / 8000)
    assert Pipeline(by_row, (2, 6)).decode_rate(16) == pytest.approx(1e6 / 6000)


def test_the_ideal_splits_as_often_as_there_are_stages_where_a_step_has_a_price() -> None:
    """More microbatches would pay it more often; one stream has to go the whole way round each time."""
    model = SimulatedModel.from_name("simulated:layers=8,layer_us=1000,row_us=10,token_us=0")
    pipeline = Pipeline(model, (2, 2, 2, 2))
    assert pipeline.decode_rate(64) == pytest.approx(64 / (4 * 2 * 1160e-6))
    assert pipeline.decode_rate(1) == pytest.approx(1 / (8 * 1010e-6))


@given(speeds=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=1, max_size=8))
def test_layers_follow_speed(speeds: list[float]) -> None:
    """All layers are given out, one at least to each rank, and no move of one would help."""
    model = SimulatedModel(layers=32, speeds=tuple(speeds))
    counts = split_by_speed(model, len(speeds))
    assert sum(counts) == 32
    assert min(counts) >= 1
    times = [count / speed for count, speed in zip(counts, speeds, strict=True)]
    slowest = times.index(max(times))
    for rank, speed in enumerate(speeds):
        if counts[slowest] > 1 and rank != slowest:
            assert (counts[rank] + 1) / speed >= max(times) - 1e-9

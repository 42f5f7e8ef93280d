"""The self-test's parts: every family is compared, and what fails is a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distributed.planning.families.served import FAMILIES
from distributed.self_test import parity, steps
from distributed.self_test.parity import Answer
from distributed.self_test.reporting import Report, Task
from distributed.self_test.seeded_models import FAMILY_CONFIGS
from distributed.self_test.sizes import SIZES
from tests.fakes.stand_in_gpu import StandInGpu


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    """What a report wrote."""
    return []


@pytest.fixture
def report(lines: list[dict[str, Any]]) -> Report:
    """A report into `lines`."""
    return Report(lines.append)


def test_the_compared_families_are_served() -> None:
    """Each has a record of its own name."""
    assert FAMILY_CONFIGS.keys() <= FAMILIES.keys()


def test_a_line_that_fails_ends_no_part(report: Report, lines: list[dict[str, Any]]) -> None:
    """The reason is one line."""

    def break_down() -> None:
        raise TimeoutError("no ring\ncame back")

    with report.attempt("doorbell"):
        break_down()
    report.spread("fsync", [0.001] * 18 + [0.25, 0.004])
    failed, good = lines
    assert failed == {
        "name": "doorbell",
        "text": "failed: TimeoutError: no ring came back",
        "failed": True,
        "figures": {},
    }
    assert good["text"] == "median 1.00 ms, p95 250 ms"
    assert good["figures"] == {"median_ms": 1.0, "p95_ms": 250.0}


def test_a_task_survives_the_way_to_its_process(tmp_path: Path) -> None:
    """As an argument of the program."""
    task = Task(tmp_path, tmp_path / "model", "tiny", ("127.0.0.1:1", "127.0.0.1:2"))
    assert Task.from_json(task.to_json()) == task


def test_a_first_difference_has_its_margin() -> None:
    """The distance of the two best logits where the other answer begins."""
    answer = Answer([5, 6, 7], [3.0, 0.25, 2.0])
    assert answer.first_difference([5, 6, 7]) is None
    assert answer.first_difference([5, 9, 9]) == (1, 0.25)
    texts = parity.describe({"mlx-lm": None, "CPU float32": (1, 0.25)}, 3)
    assert texts == "token 2 of 3 differs from CPU float32 (margin 0.25)"
    assert parity.describe({"mlx-lm": None}, 3) == "3 tokens equal"


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("bits", [None, 8])
def test_half_precision_is_compared_in_its_own_type(tmp_path: Path, family: str, bits: int | None) -> None:
    """On a stand-in for a GPU, where weights stay packed: equal to mlx-lm, near float32 on the CPU."""
    task = Task(tmp_path, tmp_path / "model", "tiny")
    found = parity.compare(parity.make_tiny(tmp_path, family, bits), task, StandInGpu())
    assert found["mlx-lm"] is None
    exact = found["CPU float32"]
    assert exact is None or exact[1] < parity.MAX_MARGIN


def test_a_wrong_token_fails_its_family_alone(
    tmp_path: Path, report: Report, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding explains a small margin only; an error is a line, too."""
    found = {"llama": {"mlx-lm": (3, 5.0)}, "qwen2": {"mlx-lm": (3, 0.01)}}

    def compare(folder: Path, *_: object) -> dict[str, tuple[int, float]]:
        return found[folder.name]

    monkeypatch.setattr(parity, "compare", compare)
    monkeypatch.setattr(parity, "make_tiny", lambda folder, family, bits: folder / family)
    parity.run(Task(tmp_path, tmp_path / "model", "tiny"), report)
    failed = {line["name"]: line["failed"] for line in lines}
    assert len(failed) == len(FAMILY_CONFIGS)
    assert failed["parity-llama"]
    assert not failed["parity-qwen2"]
    assert failed["parity-qwen3"]


def test_the_parts_of_a_step_are_measured(
    tmp_path: Path, report: Report, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half precision with packed weights, as a GPU runs it."""
    task = Task(tmp_path, parity.make_tiny(tmp_path, "qwen3", 8), "tiny")
    monkeypatch.setattr(steps, "backend_of", lambda _: StandInGpu())
    steps.make_model(task, report)
    steps.run(task, report)
    by_name = {line["name"]: line for line in lines}
    assert not [line for line in lines if line["failed"]]
    assert by_name["model"]["text"].startswith("qwen3, 4 layers, 0.3 MB in bfloat16 on the gpu")
    assert all(value >= 0 for value in by_name["step"]["figures"].values())
    assert by_name["latents"]["text"] == "only models of type deepseek_v2 have them"
    assert len(SIZES["tiny"].chunks) == sum("chunk" in name for name in by_name)

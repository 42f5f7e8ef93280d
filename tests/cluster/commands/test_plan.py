"""`plan` without a model's files, and what it says of context and speed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from cluster.commands.command_line import main
from cluster.commands.plan import BadHosts, read_hosts
from cluster.hosts import model_source
from cluster.hosts.host_rooms import PlanRefused
from cluster.hosts.model_source import HubOutOfReach, ModelSource
from cluster.hosts.plan_figures import PlanFigures, compute_figures
from cluster.hosts.ring_plan import RingLayout, choose_layout
from config import REPOSITORY_ROOT, Settings, load_settings
from distributed.planning.published import list_published, read_published
from tests.cluster.hosts.pretended_hosts import GB
from tests.cluster.hosts.test_ring_plan import make_source

LITE, GLM = "DeepSeek-Coder-V2-Lite-Instruct-8bit", "GLM-4.6-4bit"
TWO_MACS = "mac1:192GB@800GB/s,mac2:192GB@400GB/s"
FROM_CLASS = "sizes from the model's class, not from published files"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command with a Hub that is out of reach: exit code, stdout, stderr."""

    def read_none(settings: Settings) -> NoReturn:
        raise HubOutOfReach(f"{settings.model_repo} is not on this machine, and the Hub cannot be asked")

    monkeypatch.setattr(model_source, "read_source", read_none)
    monkeypatch.setenv("STATE_DIR", str(tmp_path))

    def run_it(*words: str) -> tuple[int, str, str]:
        code = main(words)
        return code, *capfd.readouterr()

    return run_it


def plan_json(run: Run, model: str, hosts: str, **settings: str) -> dict[str, Any]:
    """Return the plan that is printed as JSON."""
    flags = [flag for key, value in settings.items() for flag in ("--set", f"{key}={value}")]
    code, out, err = run("plan", "--model", model, "--hosts", hosts, "--json", *flags)
    assert code == 0, err
    plan: dict[str, Any] = json.loads(out)
    return plan


@pytest.mark.parametrize("owner", ["mlx-community/", ""])
def test_without_files_and_hub_the_sizes_of_the_class_are_planned_and_said_to_be_so(
    run: Run, owner: str
) -> None:
    """In the text and in JSON; nothing else differs."""
    code, out, err = run("plan", "--model", f"{owner}{GLM}", "--hosts", TWO_MACS)
    assert (code, err) == (0, "")
    assert out.rstrip().endswith(f"{GLM}: {FROM_CLASS}.")
    assert plan_json(run, f"{owner}{GLM}", TWO_MACS)["is_from_class"]


def test_a_model_whose_sizes_are_unknown_is_refused_with_those_that_are_known(run: Run) -> None:
    """One sentence more than elsewhere."""
    code, out, err = run("plan", "--model", "someone/some-model", "--hosts", TWO_MACS)
    assert (code, out) == (1, "")
    assert "the Hub cannot be asked. Planned without either: " in err
    assert f"{LITE}, " in err


def test_a_name_without_an_owner_asks_nobody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a plan can be repeated on a machine with a network."""
    monkeypatch.delattr(model_source, "read_source")
    assert plan_json(run, LITE.lower(), "a:64GB")["model"] == LITE


def test_the_hub_goes_before_the_class(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its files say counts, and nothing is said of the class."""
    monkeypatch.setattr(model_source, "read_source", lambda _: make_source())
    code, out, _ = run("plan", "--model", f"mlx-community/{LITE}", "--hosts", TWO_MACS)
    assert code == 0
    assert out.startswith("layered: 40 layers")
    assert FROM_CLASS not in out
    assert not plan_json(run, f"mlx-community/{LITE}", TWO_MACS)["is_from_class"]


def figures_of(settings: Settings, hosts: str, source: ModelSource | None = None) -> PlanFigures:
    """Return the figures of a plan; the model is of 40 equal layers of 1 GB."""
    source = source or make_source()
    return compute_figures(settings, source, choose_layout(settings, source, read_hosts(hosts)))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"STATE_DIR": str(tmp_path)}, root=tmp_path, environ={})


def test_speed_is_what_the_bandwidths_allow(settings: Settings) -> None:
    """One request waits for all stages, many for the slowest host; ranks of one host share its bandwidth."""
    alike = figures_of(settings, "a:64GB@400GB/s,b:64GB@400GB/s")
    assert alike.token_bytes == 40 * GB
    assert alike.alone_per_second == pytest.approx(10)
    assert alike.together_per_second == pytest.approx(20)
    shared = figures_of(settings, "a:64GB@400GB/s:2")
    assert shared.alone_per_second == shared.together_per_second == pytest.approx(10)
    unlike = figures_of(settings, "a:64GB@300gb/s,b:64GB@100GB/s")
    assert unlike.together_per_second == pytest.approx(10)  # 30 and 10 layers
    unknown = figures_of(settings, "a:64GB,b:64GB")
    assert (unknown.alone_per_second, unknown.together_per_second) == (None, None)


def test_speed_is_printed_where_all_bandwidths_are_known(run: Run) -> None:
    """Of one request, and of several where there are several ranks."""
    _, out, _ = run("plan", "--model", GLM, "--hosts", TWO_MACS)
    assert "of weights: at most about " in out
    assert " for 2 together, one in each stage" in out
    _, out, _ = run("plan", "--model", LITE, "--hosts", "a:64GB@400GB/s")
    assert " tokens/s for one request. Time" in out
    _, out, _ = run("plan", "--model", LITE, "--hosts", "a:64GB")
    assert "tokens/s" not in out


@pytest.mark.parametrize("text", ["a:64GB@4", "a:64GB@0GB/s", "a:64GB@4GB/s,b:64GB", "a:64GB:2@4GB/s"])
def test_a_bandwidth_is_of_all_hosts_or_of_none(text: str) -> None:
    """Else the entry or the rule is named."""
    with pytest.raises(BadHosts, match="--hosts"):
        read_hosts(text)


@pytest.mark.parametrize(
    ("model", "hosts"),
    [
        (LITE, "a:512GB,b:512GB"),
        (LITE, "a:32GB:2"),
        (LITE, "a:16GB,b:24GB"),
        (GLM, "a:160GB,b:192GB"),
        (GLM, "a:512GB@819GB/s"),
        ("gpt-oss-120b-MXFP4-Q8", "a:64GB,b:64GB"),
        ("gpt-oss-120b-MXFP4-Q8", "a:94GB"),
    ],
)
def test_the_longest_context_fits_with_the_settings_that_are_named_and_no_longer_one_does(
    tmp_path: Path, model: str, hosts: str
) -> None:
    """Planned anew with them, one request may be so long; a step further the model or the memory ends."""
    source, rooms = ModelSource(model, *read_published(model), None), read_hosts(hosts)

    def plan(**values: Any) -> tuple[PlanFigures, RingLayout]:
        texts = {key: str(value) for key, value in values.items()}
        settings = load_settings({"STATE_DIR": str(tmp_path), **texts}, root=tmp_path, environ={})
        layout = choose_layout(settings, source, rooms)
        return compute_figures(settings, source, layout), layout

    first, layout = plan(KV_CACHE_RESERVED_MEMORY_MB=1)
    longest, reserve = first.longest_context, first.longest_reserve_mib
    again, _ = plan(KV_CACHE_RESERVED_MEMORY_MB=reserve, MAX_SEQUENCE_LENGTH=longest)
    assert again.context_tokens == longest <= again.reserve_tokens
    if longest != first.model_tokens:
        more = {
            "KV_CACHE_RESERVED_MEMORY_MB": reserve + reserve * 512 // longest + 1,
            "MAX_SEQUENCE_LENGTH": longest + 512,
            "LAYER_SPLIT": ",".join(map(str, layout.counts)),
            "LOCAL_RANKS": len(layout.counts),
        }
        with pytest.raises(PlanRefused):
            plan(**more)


def read_table() -> list[list[str]]:
    """Return the rows of docs/plans.md."""
    lines = (REPOSITORY_ROOT / "docs" / "plans.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "GiB@" in line]
    return [row for row in rows if len(row) == 8]


@pytest.mark.parametrize("row", read_table(), ids=lambda row: f"{row[0]} on {row[1]}")
def test_the_table_in_the_docs_is_what_the_command_prints(run: Run, row: list[str]) -> None:
    """Row by row, of the types that are served."""
    model, macs = row[:2]
    if model not in list_published():
        pytest.skip("its type is not served")
    memories = [text for num, text in re.findall(r"(\d+) × (\S+)", macs) for _ in range(int(num))]
    plan = plan_json(run, model, ",".join(f"mac{i}:{text}" for i, text in enumerate(memories, start=1)))
    figures = plan["figures"]
    assert row[2:] == [
        plan["layer_split"].replace(",", ", "),
        *(f"{figures[key]:,}" for key in ("kv_bytes_per_token", "longest_context", "longest_reserve_mib")),
        *(f"{figures[key]:.3g}" for key in ("alone_per_second", "together_per_second")),
    ]

"""Requests that name no sampling parameter: they get the model's own, on all routes but /generate."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from frontdoor.sampling_defaults import NEUTRAL, read_sampling_defaults
from spool import SamplingParams
from tests.services.frontdoor_service import Service, make_settings, running_service

MODEL = {
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
    "min_p": 0.05,
    "repetition_penalty": 1.05,
}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
}


def write_generation_config(folder: Path, config: Any) -> None:
    (folder / "tiny").mkdir(exist_ok=True)
    (folder / "tiny" / "generation_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose model has values of its own."""
    folder = tmp_path_factory.mktemp("sampled")
    write_generation_config(folder, MODEL)
    with running_service(folder) as service:
        yield service


def asked(service: Service, path: str, **fields: Any) -> dict[str, float]:
    answer = service.http.post(path, json={**ROUTES.get(path, {"prompt": "hi"}), "max_tokens": 2, **fields})
    assert answer.status_code == 200, answer.text
    return sampling_of(service.engine.claimed[-1].params)


def sampling_of(params: SamplingParams) -> dict[str, float]:
    return {name: getattr(params, name) for name in NEUTRAL}


OWN = {name: MODEL[name] for name in NEUTRAL}


@pytest.mark.parametrize("path", ROUTES)
def test_fields_that_a_request_leaves_out_are_the_models_own(sampled: Service, path: str) -> None:
    """Null counts as missing; a value that the request names wins, a neutral one too."""
    assert asked(sampled, path) == OWN
    assert asked(sampled, path, temperature=None) == OWN
    assert asked(sampled, path, temperature=0.9) == {**OWN, "temperature": 0.9}
    neutral = {"top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1}
    assert asked(sampled, path, **neutral) == {**NEUTRAL, "temperature": 0.6}


@pytest.mark.parametrize("greedy", [{"temperature": 0}, {"top_p": 0}])
def test_a_greedy_request_stays_greedy(sampled: Service, greedy: dict[str, float]) -> None:
    """Whatever the model's own temperature is."""
    assert asked(sampled, "/v1/completions", **greedy)["temperature"] == 0


def test_generate_stays_greedy(sampled: Service) -> None:
    """Our own route does not depend on the model."""
    assert asked(sampled, "/generate") == NEUTRAL
    assert asked(sampled, "/generate", temperature=0.5) == {**NEUTRAL, "temperature": 0.5}


def test_health_shows_the_values(sampled: Service) -> None:
    """Those in force."""
    assert sampled.http.get("/health").json()["sampling_defaults"] == OWN


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"do_sample": None, "top_p": None}, {}),
        ({"do_sample": True, "top_k": 64}, {"temperature": 1, "top_k": 64}),
        ({"do_sample": False, "temperature": 0.7, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"top_k": 50.0, "temperature": 1}, {"top_k": 50, "temperature": 1}),
    ],
)
def test_do_sample_decides_where_the_config_names_no_temperature(
    tmp_path: Path, config: dict[str, Any], expected: dict[str, float]
) -> None:
    """As in transformers; without both, answers are greedy."""
    write_generation_config(tmp_path, config)
    assert read_sampling_defaults(make_settings(tmp_path)) == {**NEUTRAL, **expected}


@pytest.mark.parametrize("value", ["0.6", 7, -1, True, [0.6], {}, float("nan"), float("inf")])
def test_a_wrong_value_is_ignored_with_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    """It stops no model, and the other values count."""
    write_generation_config(tmp_path, {"temperature": value, "top_p": 0.9})
    with caplog.at_level(logging.WARNING):
        assert read_sampling_defaults(make_settings(tmp_path)) == {**NEUTRAL, "top_p": 0.9}
    assert [record.message for record in caplog.records] == [
        "generation_config.json: temperature is ignored: it must be a number from 0 to 2"
    ]


def test_the_setting_switches_the_models_values_off(tmp_path: Path) -> None:
    """Then all routes are greedy unless asked."""
    write_generation_config(tmp_path, MODEL)
    assert read_sampling_defaults(make_settings(tmp_path, {"SAMPLING_DEFAULTS": "neutral"})) == NEUTRAL

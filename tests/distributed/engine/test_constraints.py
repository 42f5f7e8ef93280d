"""Answers keep to their grammar, whatever else runs and whenever the ring ends; a bad grammar fails alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher

from tests.fakes.checkpoints import shared_checkpoint
from tests.services.engine_in_process import EngineInProcess

MODEL = "llama"
PROMPT = [72, 101, 108, 108, 111]
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["circle", "square", "triangle"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 4},
        "name": {"type": "string", "maxLength": 8},
        "is_filled": {"type": "boolean"},
    },
    "required": ["kind", "sizes", "name", "is_filled"],
    "additionalProperties": False,
}


def schema_grammar(schema: dict[str, Any] = SCHEMA) -> str:
    return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})


def regex_grammar(regex: str) -> str:
    return LLMatcher.grammar_from_regex(regex)


class Held(Executor):
    """Keeps jobs until `run`."""

    def __init__(self) -> None:
        self._jobs: list[Callable[[], None]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._jobs.append(lambda: future.set_result(fn(*args, **kwargs)))
        return future

    def run(self) -> None:
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job()


@pytest.fixture(scope="module")
def model() -> Path:
    return shared_checkpoint(MODEL)


@pytest.fixture
def service(tmp_path: Path, model: Path) -> Any:
    with EngineInProcess(tmp_path, model, 2) as made:
        yield made


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_match_their_json_schema(service: EngineInProcess, temperature: float) -> None:
    """Random weights give JSON that validates, and end by themselves."""
    asked = [
        service.request(
            [*PROMPT, i], max_tokens=300, temperature=temperature, seed=i, grammar=schema_grammar()
        )
        for i in range(4)
    ]
    for result in service.ask(*asked):
        assert result.finish_reason == "stop"
        jsonschema.validate(json.loads(result.text), SCHEMA)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_match_a_regex_and_a_lark_grammar(service: EngineInProcess, temperature: float) -> None:
    """Whatever the model would rather say."""
    regex, lark = r"[a-f]{3}-[0-9]{2,5}", 'start: word (" " word){2}\nword: "red" | "green" | "blue"\n'
    asked = [
        service.request(PROMPT, max_tokens=100, temperature=temperature, seed=3, grammar=grammar)
        for grammar in (regex_grammar(regex), lark)
    ]
    by_regex, by_lark = service.ask(*asked)
    assert re.fullmatch(regex, by_regex.text), by_regex.text
    assert re.fullmatch("(red|green|blue)( (red|green|blue)){2}", by_lark.text), by_lark.text

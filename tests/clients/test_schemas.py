"""JSON schemas of real clients and libraries, answered by the built-in model: what ends by itself validates.

schemas.json has the schemas, named by where they come from: `cline`, `cn` (Continue), `opencode` and
`qwen-code` are parameters of these agents' tools; `pydantic` is a model's own schema; `openai-strict` what
the openai package makes of such a model; `zod` what zod's converters write.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from config import load_settings
from distributed.prepare import prepare
from tests.services.frontdoor_service import serving
from tests.services.ring_service import RingService

pytestmark = pytest.mark.long

CORPUS = json.loads((Path(__file__).parent / "schemas.json").read_text())
OF_AGENTS = [
    entry for entry in CORPUS if entry["name"].split(":")[0] not in ("pydantic", "openai-strict", "zod")
]
UNSUPPORTED = 3  # two keywords and a look-ahead; tests/prompts/test_json_schemas.py names them
MIN_ENDED = 150
NUM_AT_ONCE = 32
MAX_SHOWN = 1500  # characters of a schema in the prompt

Ask = Callable[[dict[str, Any]], str]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """The official client of a service with two ranks and the built-in model."""
    folder = tmp_path_factory.mktemp("schemas")
    values = {
        "MODEL_REPO": "builtin:smollm2-135m",
        "STATE_DIR": str(folder / "state"),
        "MAX_SEQUENCE_LENGTH": "8192",
        "SPOOL_DURABILITY": "process",
    }
    settings = load_settings(values, root=folder, environ={})
    with (
        RingService(folder / "state", prepare(settings), 2, **values),
        serving(settings) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", timeout=300, max_retries=0) as client,
    ):
        yield client


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0, "frequency_penalty": 0.4}, {"temperature": 1, "seed": 7}]
)
def test_answers_match_their_schema(client: openai.OpenAI, sampling: dict[str, Any]) -> None:
    """Most end by themselves, and these all validate; only unsupported keywords are refused.

    Greedy answers of a small model repeat themselves without end, so those requests have a penalty.
    """

    def ask(entry: dict[str, Any]) -> str:
        prompt = f"Answer only with a short JSON value that matches this JSON schema: {shown(entry)}"
        described = {"name": "answer", "schema": entry["schema"], "strict": True}
        try:
            choice = create(
                client,
                prompt,
                response_format={"type": "json_schema", "json_schema": described},
                **sampling,
            )
        except openai.BadRequestError:
            return "refused"
        if choice.finish_reason == "stop":
            validate(entry, choice.message.content)
        return str(choice.finish_reason)

    endings = ask_all(ask, CORPUS)
    assert endings["refused"] == UNSUPPORTED, endings
    assert endings["stop"] >= MIN_ENDED, endings


def test_demanded_calls_match_their_schema(client: openai.OpenAI) -> None:
    """The agents' tools, each alone; arguments of calls that are not cut validate."""

    def ask(entry: dict[str, Any]) -> str:
        name = entry["name"].split(":")[1]
        choice = create(
            client,
            f"Call {name} with short arguments.",
            tools=[{"type": "function", "function": {"name": name, "parameters": entry["schema"]}}],
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=1,
            seed=7,
        )
        if choice.finish_reason == "tool_calls":
            (call,) = choice.message.tool_calls
            assert call.function.name == name
            validate(entry, call.function.arguments)
        return str(choice.finish_reason)

    endings = ask_all(ask, OF_AGENTS)
    assert endings["tool_calls"] >= len(OF_AGENTS) * MIN_ENDED // len(CORPUS), endings


def ask_all(ask: Ask, entries: list[dict[str, Any]]) -> Counter[str]:
    with ThreadPoolExecutor(NUM_AT_ONCE) as threads:
        endings = Counter(threads.map(ask, entries))
    print(dict(endings))
    return endings


def create(client: openai.OpenAI, prompt: str, **fields: Any) -> Any:
    messages: Any = [{"role": "user", "content": prompt}]
    return client.chat.completions.create(
        model="smollm2-135m", messages=messages, max_tokens=400, **fields
    ).choices[0]


def shown(entry: dict[str, Any]) -> str:
    return json.dumps(entry["schema"])[:MAX_SHOWN]


def validate(entry: dict[str, Any], text: str) -> None:
    """Check an answer in the dialect that its schema names."""
    dialect = jsonschema.validators.validator_for(entry["schema"], default=jsonschema.Draft202012Validator)
    errors = list(dialect(entry["schema"]).iter_errors(json.loads(text)))
    assert not errors, (entry["name"], text, errors[0].message)

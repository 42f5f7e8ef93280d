"""How long prompts and answers may be on each route, before and after rank 0 has said what fits."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.services.frontdoor_service import NUM_TEMPLATE_TOKENS, Service, make_model_folder, running_service

USER = [{"role": "user", "content": "hi"}]
NUM_USER_TOKENS = NUM_TEMPLATE_TOKENS + len("user") + len("hi")


def ask(service: Service, path: str, body: dict[str, Any]) -> None:
    answer = service.http.post(path, json=body)
    assert answer.status_code in (200, 202), answer.text


def asked_for(service: Service, path: str, body: dict[str, Any]) -> int:
    """The answer's length as it reaches the queue."""
    ask(service, path, body)
    return service.engine.claimed[-1].params.max_tokens


ROUTES = [
    ("/generate", {"prompt": "x" * 200, "raw": True}, 200),
    ("/v1/completions", {"prompt": "x" * 200}, 200),
    ("/v1/completions", {"prompt": [5] * 200}, 200),
    ("/v1/chat/completions", {"messages": USER}, NUM_USER_TOKENS),
]


@pytest.mark.parametrize(("path", "prompt", "num_tokens"), ROUTES)
@pytest.mark.parametrize("max_tokens", [256, 4096, 64_000, 10**12, 2**63 - 1, 32000.0])
def test_an_answer_longer_than_the_room_is_cut_to_it(
    service: Service, path: str, prompt: dict[str, Any], num_tokens: int, max_tokens: float
) -> None:
    """Clients ask for more than fits as a matter of course."""
    assert asked_for(service, path, {**prompt, "max_tokens": max_tokens}) == 256 - num_tokens


@pytest.mark.parametrize(("path", "prompt", "num_tokens"), ROUTES)
def test_the_newer_name_wins_and_is_cut_as_well(
    service: Service, path: str, prompt: dict[str, Any], num_tokens: int
) -> None:
    """max_completion_tokens beyond the room is the room; some clients send both names to every route."""
    body = {**prompt, "max_completion_tokens": 10**12, "max_tokens": 1}
    assert asked_for(service, path, body) == 256 - num_tokens
    assert asked_for(service, path, {**body, "max_completion_tokens": None}) == 1


@pytest.mark.parametrize(("path", "prompt", "num_tokens"), ROUTES[1:])
@pytest.mark.parametrize("body", [{}, {"max_tokens": None}])
def test_without_a_length_the_rest_of_the_context_is_asked_for(
    service: Service, path: str, prompt: dict[str, Any], num_tokens: int, body: dict[str, Any]
) -> None:
    """On /v1 nothing is cut at DEFAULT_MAX_TOKENS, which is /generate's."""
    assert asked_for(service, path, {**prompt, **body}) == 256 - num_tokens


def test_generate_has_its_default_length(service: Service) -> None:
    """DEFAULT_MAX_TOKENS, or what is left."""
    assert asked_for(service, "/generate", {"prompt": "hi", "raw": True}) == 6
    assert asked_for(service, "/generate", {"prompt": "x" * 253, "raw": True}) == 3


def test_only_generate_is_limited_in_bytes(tmp_path: Path) -> None:
    """A prompt of an agent passes, and one that fills the context but for a token."""
    with running_service(tmp_path, {"MAX_SEQUENCE_LENGTH": "20000", "MAX_PROMPT_LEN_BYTES": "50"}) as service:
        for path, body in (
            ("/v1/completions", {"prompt": "x" * 19_999}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 19_000}]}),
        ):
            ask(service, path, body)
        refused = service.http.post("/generate", json={"prompt": "x" * 51})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")


def test_the_length_that_rank_0_publishes_counts_once_it_is_there(tmp_path: Path) -> None:
    """With auto the model's own length is assumed until rank 0 knows what memory holds."""
    model = make_model_folder(tmp_path / "tiny")
    (model / "config.json").write_text(json.dumps({"max_position_embeddings": 600}))
    with running_service(tmp_path, {"MAX_SEQUENCE_LENGTH": "auto"}) as service:
        assert served_length(service) == 600
        settings = service.settings.public()
        context = {"max_tokens": 300, "bound": "memory", "model_tokens": 600}
        service.engine.say("ready", settings=settings, context=context)
        assert served_length(service) == 300
        assert service.http.get("/health").json()["context"] == context
        assert asked_for(service, "/v1/completions", {"prompt": "x" * 299, "max_tokens": 50}) == 1
        refused = service.http.post("/v1/completions", json={"prompt": "x" * 300}).json()["error"]
        assert "maximum context length is 300 tokens" in refused["message"]
        assert "KV_CACHE_RESERVED_MEMORY_MB" in refused["message"]
        # what an earlier life with other settings has left behind
        service.engine.say("stopped", settings={**settings, "MAX_SEQUENCE_LENGTH": 4096}, context=context)
        assert served_length(service) == 600


def served_length(service: Service) -> int:
    (model,) = service.http.get("/v1/models").json()["data"]
    length: int = model["max_model_len"]
    return length


def test_a_refusal_by_rank_0_looks_the_same(service: Service) -> None:
    """Its error reaches the client with code, type and status of the front door's own."""
    with (
        openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        client.completions.create(model="tiny", prompt="[too long]")
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.type == "invalid_request_error"
    assert "This model's maximum context length is 99 tokens" in caught.value.message

"""The official openai client against /v1: chat, completions, models, streams, errors."""

import openai
import pytest

from tests.services.frontdoor_service import Service

TEXT = "Grüße, wörld! 🎉 n0 n1 "


def test_chat(client: openai.OpenAI) -> None:
    """A chat completion has the text, the reason and the usage."""
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=6
    )
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


def test_chat_stream(client: openai.OpenAI) -> None:
    """Chunks share their head; the role comes first, the finish reason alone, the usage last and alone."""
    with client.chat.completions.create(
        model="tiny",
        messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": "hi"}],
        stream=True,
        max_tokens=6,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        "length"
    ]
    assert chunks[-2].choices[0].delta.content is None
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_chat_stream_without_usage_has_no_usage_member(service: Service) -> None:
    """Without include_usage no chunk mentions usage, and the stream ends with [DONE]."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    text = service.http.post("/v1/chat/completions", json=body).text
    assert "usage" not in text
    assert text.endswith("data: [DONE]\n\n")


def test_completions(client: openai.OpenAI, service: Service) -> None:
    """Text and token ids are continued as they are, without a chat template, for the full name, too."""
    answer = client.completions.create(model=service.settings.model_repo, prompt="hi", stop=["n1"])
    assert answer.id.startswith("cmpl-")
    assert answer.choices[0].text == "Grüße, wörld! 🎉 n0 "
    assert answer.choices[0].finish_reason == "stop"
    assert service.engine.claimed[-1].text == "hi"
    client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=2)
    assert service.engine.claimed[-1].token_ids == (5, 6, 7)
    client.completions.create(model="tiny", prompt=["one"])
    assert service.engine.claimed[-1].text == "one"


def test_models(client: openai.OpenAI, service: Service) -> None:
    """The one model is listed and found under its short and its full name; others are not."""
    listed = client.models.list().data
    assert [model.id for model in listed] == ["tiny"]
    assert listed[0].model_dump()["max_model_len"] == 256
    assert client.models.retrieve("tiny").id == "tiny"
    assert service.http.get(f"/v1/models/{service.settings.model_repo}").json()["id"] == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_fields_that_change_nothing_are_accepted(client: openai.OpenAI) -> None:
    """What asks for nothing, or changes no output, is no error; an empty list of tools is none."""
    answer = client.chat.completions.create(
        model="tiny",
        messages=[
            {
                "role": "system",
                "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}],
            },
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello", "refusal": None},
            {"role": "user", "content": "again"},
        ],
        n=1,
        max_tokens=6,
        frequency_penalty=0,
        presence_penalty=0.0,
        logprobs=False,
        logit_bias={},
        response_format={"type": "text"},
        user="me",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        extra_body={"tools": [], "top_k": 5, "min_p": 0.1, "safety_identifier": "x", "verbosity": "low"},
    )
    assert answer.choices[0].message.content == TEXT


def test_an_error_in_a_stream_reaches_the_client(client: openai.OpenAI, service: Service) -> None:
    """After the 200 the error is an event, and no [DONE] follows."""
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "[fail]"}]
    with pytest.raises(openai.APIError, match="it went wrong"):
        for _ in client.chat.completions.create(model="tiny", messages=messages, stream=True):
            pass
    body = {"model": "tiny", "messages": [{"role": "user", "content": "[fail]"}], "stream": True}
    assert "[DONE]" not in service.http.post("/v1/chat/completions", json=body).text

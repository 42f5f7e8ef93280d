"""litellm as a library. Its proxy is a driver of its own."""

import asyncio
import json

import litellm
from things import (
    ADA,
    ASK_PERSON,
    ASK_WEATHER,
    CAPITAL,
    CAPITAL_ANSWER,
    MODEL,
    PERSON_SCHEMA,
    TOOL,
    URL,
    USER,
    WEATHER_ANSWER,
    get_weather,
)

SERVICE = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": "any"}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def completion():
    assert litellm.completion(messages=USER, **SERVICE).choices[0].message.content == CAPITAL_ANSWER


def stream():
    chunks = list(
        litellm.completion(messages=USER, stream=True, stream_options={"include_usage": True}, **SERVICE)
    )
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == CAPITAL_ANSWER
    )
    assert litellm.stream_chunk_builder(chunks).usage.completion_tokens > 0


def tools():
    messages = list(ASK_WEATHER)
    answer = litellm.completion(messages=messages, tools=[TOOL], **SERVICE).choices[0].message
    (call,) = answer.tool_calls
    result = get_weather(**json.loads(call.function.arguments))
    messages += [answer, {"role": "tool", "tool_call_id": call.id, "content": result}]
    last = litellm.completion(messages=messages, tools=[TOOL], **SERVICE)
    assert last.choices[0].message.content == WEATHER_ANSWER


def stream_tools():
    chunks = list(
        litellm.completion(messages=ASK_WEATHER, tools=[TOOL], tool_choice=NAMED, stream=True, **SERVICE)
    )
    (call,) = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def json_schema():
    wanted = {
        "type": "json_schema",
        "json_schema": {"name": "person", "schema": PERSON_SCHEMA, "strict": True},
    }
    answer = litellm.completion(messages=ASK_PERSON, response_format=wanted, **SERVICE)
    assert json.loads(answer.choices[0].message.content) == ADA


def provider_hosted_vllm():
    service = {**SERVICE, "model": f"hosted_vllm/{MODEL}"}
    assert litellm.completion(messages=USER, **service).choices[0].message.content == CAPITAL_ANSWER


def anthropic_bridge():
    """To Anthropic's route, and from litellm's own one of that form."""
    service = {"api_base": URL.removesuffix("/v1"), "api_key": "any", "model": f"anthropic/{MODEL}"}
    assert litellm.completion(messages=USER, **service).choices[0].message.content == CAPITAL_ANSWER
    chunks = list(litellm.completion(messages=ASK_WEATHER, tools=[TOOL], stream=True, **service))
    (call,) = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    message = asyncio.run(litellm.anthropic.messages.acreate(messages=USER, max_tokens=99, **service))
    assert message["content"][0]["text"] == CAPITAL_ANSWER


def text_completion():
    service = {**SERVICE, "model": f"text-completion-openai/{MODEL}"}
    assert litellm.text_completion(prompt="The capital of France is", max_tokens=4, **service).choices[0].text


def provider_ollama_chat():
    """By Ollama's API: whole, streamed, a schema, and a tool with its result."""
    service = {"model": f"ollama_chat/{MODEL}", "api_base": URL.removesuffix("/v1"), "max_tokens": 200}
    assert litellm.completion(messages=USER, **service).choices[0].message.content == CAPITAL_ANSWER
    chunks = litellm.completion(messages=USER, stream=True, **service)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == CAPITAL_ANSWER
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON_SCHEMA}}
    answer = litellm.completion(messages=ASK_PERSON, response_format=wanted, **service)
    assert json.loads(answer.choices[0].message.content) == ADA
    answer = litellm.completion(messages=ASK_WEATHER, tools=[TOOL], **service).choices[0]
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls"
    result = get_weather(**json.loads(call.function.arguments))
    turns = [answer.message, {"role": "tool", "tool_call_id": call.id, "content": result}]
    last = litellm.completion(messages=[*ASK_WEATHER, *turns], tools=[TOOL], **service)
    assert last.choices[0].message.content == WEATHER_ANSWER


def provider_ollama():
    """By /api/generate."""
    service = {"model": f"ollama/{MODEL}", "api_base": URL.removesuffix("/v1")}
    assert litellm.completion(messages=USER, **service).choices[0].message.content.strip()


def too_long():
    """The error has the class that makes a router take another model."""
    try:
        litellm.completion(messages=[{"role": "user", "content": "a " * 40000}], **SERVICE)
    except litellm.ContextWindowExceededError:
        return
    raise AssertionError("no error")


def responses():
    assert litellm.responses(input=CAPITAL, **SERVICE).output_text == CAPITAL_ANSWER


def responses_stream():
    events = list(litellm.responses(input=CAPITAL, stream=True, **SERVICE))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == CAPITAL_ANSWER


def responses_bridge():
    """A chat that litellm sends to the Responses API."""
    service = {**SERVICE, "model": f"openai/responses/{MODEL}"}
    messages = list(ASK_WEATHER)
    answer = litellm.completion(messages=messages, tools=[TOOL], **service).choices[0].message
    (call,) = answer.tool_calls
    result = get_weather(**json.loads(call.function.arguments))
    messages += [answer, {"role": "tool", "tool_call_id": call.id, "content": result}]
    last = litellm.completion(messages=messages, tools=[TOOL], **service)
    assert last.choices[0].message.content == WEATHER_ANSWER

"""ollama, the official client of Ollama for Python."""

import asyncio
import json

import ollama
from things import (
    ADA,
    ASK_PERSON,
    ASK_WEATHER,
    CAPITAL,
    CAPITAL_ANSWER,
    MODEL,
    PERSON_SCHEMA,
    URL,
    USER,
    WEATHER_ANSWER,
    get_weather,
)

HOST = URL.removesuffix("/v1")
client = ollama.Client(host=HOST)


def models():
    assert MODEL in [model.model for model in client.list().models]
    shown = client.show(f"{MODEL}:latest")
    assert "tools" in shown.capabilities
    (running,) = client.ps().models
    assert running.context_length == shown.modelinfo[f"{shown.details.family}.context_length"]


def chat():
    answer = client.chat(model=MODEL, messages=USER, options={"num_ctx": 4096, "temperature": 0})
    assert answer.message.content == CAPITAL_ANSWER
    assert (answer.done_reason, answer.model) == ("stop", MODEL)
    assert answer.eval_count > 0
    assert answer.total_duration >= answer.eval_duration > 0


def stream():
    parts = list(client.chat(model=MODEL, messages=USER, stream=True, keep_alive="5m"))
    assert "".join(part.message.content for part in parts) == CAPITAL_ANSWER
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def generate():
    assert client.generate(model=MODEL, prompt=CAPITAL).response == CAPITAL_ANSWER
    parts = client.generate(model=MODEL, prompt=CAPITAL, system="Be brief.", stream=True)
    assert "".join(part.response for part in parts) == CAPITAL_ANSWER
    raw = client.generate(model=MODEL, prompt=CAPITAL, raw=True, options={"num_predict": 3})
    assert raw.done and 0 < raw.eval_count <= 3


def load():
    assert client.generate(model=MODEL).done_reason == "load"
    assert client.chat(model=MODEL).done_reason == "load"


def json_format():
    for form in ("json", PERSON_SCHEMA):
        answer = client.chat(model=MODEL, messages=ASK_PERSON, format=form)
        assert json.loads(answer.message.content) == ADA


def tools():
    """A function as a tool; its result comes back by its name, without an id."""
    messages = list(ASK_WEATHER)
    answer = client.chat(model=MODEL, messages=messages, tools=[get_weather])
    (call,) = answer.message.tool_calls
    result = get_weather(**call.function.arguments)
    messages += [answer.message, {"role": "tool", "tool_name": call.function.name, "content": result}]
    last = client.chat(model=MODEL, messages=messages, tools=[get_weather])
    assert last.message.content == WEATHER_ANSWER


def stream_tools():
    parts = client.chat(model=MODEL, messages=ASK_WEATHER, tools=[get_weather], stream=True)
    (call,) = [call for part in parts for call in part.message.tool_calls or ()]
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Paris"})


def asynchronous():
    async def ask():
        client = ollama.AsyncClient(host=HOST)
        parts = await client.chat(model=MODEL, messages=USER, stream=True)
        streamed = "".join([part.message.content async for part in parts])
        asked = [client.chat(model=MODEL, messages=USER) for _ in range(3)]
        return {streamed, *[answer.message.content for answer in await asyncio.gather(*asked)]}

    assert asyncio.run(ask()) == {CAPITAL_ANSWER}


def logprobs():
    answer = client.chat(model=MODEL, messages=USER, logprobs=True, top_logprobs=2)
    assert answer.logprobs
    assert {len(entry.top_logprobs) for entry in answer.logprobs} == {2}


def errors():
    """Each has its status and its sentence."""
    found = {}
    for name, ask in {
        "model": lambda: client.chat(model="other", messages=USER),
        "pull": lambda: client.pull(MODEL),
        "embed": lambda: client.embed(MODEL, "text"),
        "stream": lambda: list(
            client.chat(model=MODEL, messages=[{"role": "user", "content": "a " * 40000}], stream=True)
        ),
    }.items():
        try:
            ask()
        except ollama.ResponseError as error:
            found[name] = error.status_code, error.error
    assert {name: status for name, (status, _) in found.items()} == {
        "model": 404,
        "pull": 501,
        "embed": 501,
        "stream": 400,
    }
    assert "maximum context length is" in found["stream"][1]

"""Anthropic's official client for Python."""

import asyncio

import anthropic
from anthropic import beta_tool
from pydantic import BaseModel
from things import (
    ADA,
    ASK_PERSON,
    ASK_WEATHER,
    CAPITAL_ANSWER,
    MODEL,
    TOOL,
    USER,
    WEATHER_ANSWER,
)
from things import get_weather as weather_of

client = anthropic.Anthropic(max_retries=0)
ASKED = {"model": MODEL, "max_tokens": 300}
TOOLS = [
    {
        "name": "get_weather",
        "description": "Return the weather of a city.",
        "input_schema": TOOL["function"]["parameters"],
    }
]


class Person(BaseModel):
    name: str
    age: int


@beta_tool
def _get_weather(city: str) -> str:
    """Return the weather of a city.

    Args:
        city: the name of the city.
    """
    return weather_of(city)


_get_weather.name = "get_weather"


def create():
    message = client.messages.create(messages=USER, **ASKED)
    assert [block.text for block in message.content] == [CAPITAL_ANSWER]
    assert (message.model, message.stop_reason) == (MODEL, "end_turn")
    assert message.usage.output_tokens > 0


def asynchronous():
    async def ask():
        async with anthropic.AsyncAnthropic(max_retries=0) as client:
            asked = (client.messages.create(messages=USER, **ASKED) for _ in range(4))
            return await asyncio.gather(*asked)

    assert {message.content[0].text for message in asyncio.run(ask())} == {CAPITAL_ANSWER}


def events():
    kinds = [event.type for event in client.messages.create(messages=USER, stream=True, **ASKED)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def stream():
    with client.messages.stream(messages=USER, system="Be brief.", **ASKED) as stream:
        assert "".join(stream.text_stream) == CAPITAL_ANSWER
        assert stream.get_final_message().usage.input_tokens > 0


def stop_sequence():
    message = client.messages.create(messages=USER, stop_sequences=["nothing", " is"], **ASKED)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " is")
    assert message.content[0].text == CAPITAL_ANSWER.partition(" is")[0]


def max_tokens():
    message = client.messages.create(model=MODEL, max_tokens=2, messages=USER)
    assert message.stop_reason == "max_tokens"


def tools():
    messages = list(ASK_WEATHER)
    message = client.messages.create(messages=messages, tools=TOOLS, **ASKED)
    assert message.stop_reason == "tool_use"
    (call,) = [block for block in message.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": weather_of(**call.input)}
    messages += [{"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    last = client.messages.create(messages=messages, tools=TOOLS, **ASKED)
    assert last.content[0].text == WEATHER_ANSWER
    assert last.usage.cache_read_input_tokens > last.usage.input_tokens


def stream_tools():
    choice = {"type": "tool", "name": "get_weather"}
    with client.messages.stream(messages=ASK_WEATHER, tools=TOOLS, tool_choice=choice, **ASKED) as stream:
        kinds = {event.type for event in stream}
        (call,) = stream.get_final_message().content
    assert "input_json" in kinds
    assert call.input == {"city": "Paris"}


def tool_runner():
    ran = client.beta.messages.tool_runner(messages=ASK_WEATHER, tools=[_get_weather], **ASKED)
    assert ran.until_done().content[0].text == WEATHER_ANSWER


def tool_runner_streamed():
    ran = client.beta.messages.tool_runner(messages=ASK_WEATHER, tools=[_get_weather], stream=True, **ASKED)
    last = [stream.get_final_message() for stream in ran][-1]
    assert last.content[0].text == WEATHER_ANSWER


def parse():
    message = client.messages.parse(messages=ASK_PERSON, output_format=Person, **ASKED)
    assert message.parsed_output == Person(**ADA)


def count_tokens():
    counted = client.messages.count_tokens(model=MODEL, messages=ASK_WEATHER, tools=TOOLS).input_tokens
    assert counted > client.messages.count_tokens(model=MODEL, messages=ASK_WEATHER).input_tokens > 0
    usage = client.messages.create(messages=ASK_WEATHER, tools=TOOLS, **ASKED).usage
    assert usage.input_tokens + usage.cache_read_input_tokens == counted


def models():
    assert client.models.retrieve(MODEL).id in {model.id for model in client.models.list()}


def errors():
    """An error has the class that the client has for it, and the words that callers look for."""
    failed = None
    try:
        client.messages.create(messages=[{"role": "user", "content": "a " * 40000}], **ASKED)
    except anthropic.BadRequestError as error:
        failed = error
    assert failed is not None and "prompt is too long: " in failed.message and failed.request_id
    try:
        client.messages.create(model="another", max_tokens=5, messages=USER)
    except anthropic.NotFoundError:
        return
    raise AssertionError("no error")

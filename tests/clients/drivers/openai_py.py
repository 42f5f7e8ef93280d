"""The official client for Python."""

import asyncio
import json

import openai
from pydantic import BaseModel
from things import (
    ADA,
    ASK_PERSON,
    ASK_WEATHER,
    CAPITAL,
    CAPITAL_ANSWER,
    MODEL,
    PERSON,
    TOOL,
    USER,
    WEATHER,
    WEATHER_ANSWER,
    get_weather,
)

client = openai.OpenAI(max_retries=0)


class Person(BaseModel):
    name: str
    age: int


def chat():
    answer = client.chat.completions.create(model=MODEL, messages=USER)
    assert answer.choices[0].message.content == CAPITAL_ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens > 0


def stream():
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=USER, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == CAPITAL_ANSWER
    assert chunks[-1].usage.total_tokens > 0


def asynchronous():
    async def ask():
        async with openai.AsyncOpenAI(max_retries=0) as client:
            asked = (client.chat.completions.create(model=MODEL, messages=USER) for _ in range(4))
            return await asyncio.gather(*asked)

    assert {answer.choices[0].message.content for answer in asyncio.run(ask())} == {CAPITAL_ANSWER}


def parse():
    answer = client.chat.completions.parse(model=MODEL, messages=ASK_PERSON, response_format=Person)
    assert answer.choices[0].message.parsed == Person(**ADA)


def json_object():
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK_PERSON, response_format={"type": "json_object"}
    )
    assert json.loads(answer.choices[0].message.content) == ADA


def tools():
    messages = list(ASK_WEATHER)
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL])
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    result = get_weather(**json.loads(call.function.arguments))
    messages += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": result}]
    last = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL])
    assert last.choices[0].message.content == WEATHER_ANSWER


def many_tools():
    """A chat page's request: tools by the dozen, a stream, and a turn of the history that has only a call."""
    tools = [TOOL, *({**TOOL, "function": {**TOOL["function"], "name": f"other_{i}"}} for i in range(27))]
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    }
    history = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": get_weather("Paris")},
    ]
    chunks = client.chat.completions.create(
        model=MODEL, messages=ASK_WEATHER + history, tools=tools, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == WEATHER_ANSWER


def stream_helper():
    with client.chat.completions.stream(model=MODEL, messages=ASK_PERSON, response_format=Person) as events:
        kinds = {event.type for event in events}
        assert events.get_final_completion().choices[0].message.parsed == Person(**ADA)
    assert {"chunk", "content.delta", "content.done"} <= kinds


def stream_helper_with_tools():
    strict = {**TOOL, "function": {**TOOL["function"], "strict": True}}
    with client.chat.completions.stream(model=MODEL, messages=ASK_WEATHER, tools=[strict]) as events:
        kinds = {event.type for event in events}
        (call,) = events.get_final_completion().choices[0].message.tool_calls
    assert call.function.parsed_arguments == {"city": "Paris"}
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds


def logprobs():
    answer = client.chat.completions.create(
        model=MODEL, messages=USER, logprobs=True, top_logprobs=3, max_tokens=3
    )
    assert [len(token.top_logprobs) for token in answer.choices[0].logprobs.content] == [3, 3, 3]


def several_answers():
    answer = client.chat.completions.create(model=MODEL, messages=USER, n=2)
    assert [choice.message.content for choice in answer.choices] == [CAPITAL_ANSWER] * 2


def completions():
    answer = client.completions.create(model=MODEL, prompt=["The capital of France is", "Ada"], max_tokens=4)
    assert len(answer.choices) == 2


def responses():
    answer = client.responses.create(model=MODEL, input=CAPITAL, instructions="Be brief.")
    assert (answer.output_text, answer.status) == (CAPITAL_ANSWER, "completed")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def responses_stream():
    events = list(client.responses.create(model=MODEL, input=CAPITAL, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == CAPITAL_ANSWER
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")


def responses_stream_helper():
    with client.responses.stream(model=MODEL, input=PERSON, text_format=Person) as events:
        kinds = {event.type for event in events}
        assert events.get_final_response().output_parsed == Person(**ADA)
    assert {"response.output_text.delta", "response.output_text.done"} <= kinds


def responses_parse():
    answer = client.responses.parse(model=MODEL, input=PERSON, text_format=Person)
    assert answer.output_parsed == Person(**ADA)


def responses_tools():
    """The answer's items go back as they came."""
    tools = [{"type": "function", **TOOL["function"]}]
    items = [{"role": "user", "content": WEATHER}]
    answer = client.responses.create(model=MODEL, input=items, tools=tools)
    (call,) = answer.output
    result = get_weather(**json.loads(call.arguments))
    items += [*answer.output, {"type": "function_call_output", "call_id": call.call_id, "output": result}]
    assert client.responses.create(model=MODEL, input=items, tools=tools).output_text == WEATHER_ANSWER


def responses_errors():
    failed = None
    try:
        client.responses.create(model=MODEL, input=CAPITAL, previous_response_id="resp_1")
    except openai.BadRequestError as error:
        failed = error
    assert failed is not None and failed.code == "previous_response_not_found"


def models():
    assert client.models.retrieve(MODEL).id in {model.id for model in client.models.list()}


def errors():
    """An error has the class that the client has for it, and the code that callers look for."""
    failed = None
    try:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a " * 40000}])
    except openai.BadRequestError as error:
        failed = error
    assert failed is not None and failed.code == "context_length_exceeded"

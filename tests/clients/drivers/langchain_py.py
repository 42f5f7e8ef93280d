"""langchain-openai, and an agent of langchain, which langgraph runs."""

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from things import ADA, CAPITAL, CAPITAL_ANSWER, MODEL, PERSON, WEATHER, WEATHER_ANSWER, get_weather

llm = ChatOpenAI(model=MODEL, max_retries=0)
by_responses = ChatOpenAI(model=MODEL, max_retries=0, use_responses_api=True)


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def invoke():
    answer = llm.invoke(CAPITAL)
    assert answer.content == CAPITAL_ANSWER
    assert answer.usage_metadata["output_tokens"] > 0


def stream():
    chunks = list(llm.stream(CAPITAL, stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == CAPITAL_ANSWER
    assert any(chunk.usage_metadata for chunk in chunks)


def batch():
    assert [answer.content for answer in llm.batch([CAPITAL] * 3)] == [CAPITAL_ANSWER] * 3


def structured_output():
    assert llm.with_structured_output(Person).invoke(PERSON) == Person(**ADA)


def structured_output_by_tool():
    assert llm.with_structured_output(Person, method="function_calling").invoke(PERSON) == Person(**ADA)


def structured_output_json_mode():
    assert llm.with_structured_output(Person, method="json_mode").invoke(PERSON + " As JSON.") == Person(
        **ADA
    )


def bind_tools():
    (call,) = llm.bind_tools([get_weather]).invoke(WEATHER).tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})


def stream_tools():
    whole = None
    for chunk in llm.bind_tools([get_weather]).stream(WEATHER):
        whole = chunk if whole is None else whole + chunk
    (call,) = whole.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})


def agent():
    ended = create_agent(llm, [get_weather]).invoke({"messages": [("user", WEATHER)]})
    assert ended["messages"][-1].content == WEATHER_ANSWER


def agent_streamed():
    steps = list(
        create_agent(llm, [get_weather]).stream({"messages": [("user", WEATHER)]}, stream_mode="messages")
    )
    text = "".join(chunk.content for chunk, _ in steps if chunk.type == "AIMessageChunk")
    assert text.endswith(WEATHER_ANSWER)


def responses():
    assert by_responses.invoke(CAPITAL).text == CAPITAL_ANSWER


def responses_structured_output():
    assert by_responses.with_structured_output(Person).invoke(PERSON) == Person(**ADA)


def responses_agent():
    ended = create_agent(by_responses, [get_weather]).invoke({"messages": [("user", WEATHER)]})
    assert ended["messages"][-1].text == WEATHER_ANSWER


def responses_agent_streamed():
    steps = create_agent(by_responses, [get_weather]).stream(
        {"messages": [("user", WEATHER)]}, stream_mode="messages"
    )
    text = "".join(chunk.text for chunk, _ in steps if chunk.type == "AIMessageChunk")
    assert text.endswith(WEATHER_ANSWER)

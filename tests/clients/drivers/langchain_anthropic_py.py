"""langchain-anthropic, and an agent of langchain."""

from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from pydantic import BaseModel
from things import ADA, CAPITAL, CAPITAL_ANSWER, MODEL, PERSON, WEATHER, WEATHER_ANSWER, get_weather

llm = ChatAnthropic(model=MODEL, max_tokens=300, max_retries=0)


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def invoke():
    answer = llm.invoke(CAPITAL)
    assert answer.content == CAPITAL_ANSWER
    assert answer.usage_metadata["output_tokens"] > 0


def stream():
    chunks = list(llm.stream(CAPITAL))
    assert "".join(chunk.text for chunk in chunks) == CAPITAL_ANSWER
    assert any(chunk.usage_metadata for chunk in chunks)


def structured_output():
    assert llm.with_structured_output(Person).invoke(PERSON) == Person(**ADA)


def structured_output_by_schema():
    assert llm.with_structured_output(Person, method="json_schema").invoke(PERSON) == Person(**ADA)


def bind_tools():
    (call,) = llm.bind_tools([get_weather]).invoke(WEATHER).tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})


def agent():
    ended = create_agent(llm, [get_weather]).invoke({"messages": [("user", WEATHER)]})
    assert ended["messages"][-1].text == WEATHER_ANSWER


def agent_streamed():
    steps = list(
        create_agent(llm, [get_weather]).stream({"messages": [("user", WEATHER)]}, stream_mode="messages")
    )
    text = "".join(chunk.text for chunk, _ in steps if chunk.type == "AIMessageChunk")
    assert text.endswith(WEATHER_ANSWER)

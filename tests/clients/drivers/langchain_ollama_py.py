"""langchain-ollama, and an agent of langchain."""

from langchain.agents import create_agent
from langchain_ollama import ChatOllama, OllamaLLM
from pydantic import BaseModel
from things import ADA, CAPITAL, CAPITAL_ANSWER, MODEL, PERSON, URL, WEATHER, WEATHER_ANSWER, get_weather

SERVICE = {"model": MODEL, "base_url": URL.removesuffix("/v1"), "validate_model_on_init": True}
llm = ChatOllama(temperature=0, num_ctx=4096, **SERVICE)


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def invoke():
    answer = llm.invoke(CAPITAL)
    assert answer.content == CAPITAL_ANSWER
    assert answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["done_reason"] == "stop"


def stream():
    assert "".join(chunk.content for chunk in llm.stream(CAPITAL)) == CAPITAL_ANSWER


def batch():
    assert [answer.content for answer in llm.batch([CAPITAL] * 3)] == [CAPITAL_ANSWER] * 3


def completion():
    assert OllamaLLM(**SERVICE).invoke(CAPITAL) == CAPITAL_ANSWER


def structured_output():
    for method in ("json_schema", "function_calling", "json_mode"):
        asked = llm.with_structured_output(Person, method=method)
        assert asked.invoke(PERSON) == Person(**ADA), method


def stream_tools():
    whole = None
    for chunk in llm.bind_tools([get_weather]).stream(WEATHER):
        whole = chunk if whole is None else whole + chunk
    (call,) = whole.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})


def agent():
    ended = create_agent(llm, [get_weather]).invoke({"messages": [("user", WEATHER)]})
    assert ended["messages"][-1].content == WEATHER_ANSWER

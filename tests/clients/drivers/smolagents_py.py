"""smolagents: an agent that calls tools, and one that writes code."""

from smolagents import CodeAgent, OpenAIServerModel, ToolCallingAgent, tool
from things import MODEL, URL, WEATHER, WEATHER_ANSWER, get_weather

model = OpenAIServerModel(MODEL, api_base=URL, api_key="any")


def tool_calling():
    assert ToolCallingAgent([tool(get_weather)], model, max_steps=4).run(WEATHER) == WEATHER_ANSWER


def tool_calling_streamed():
    agent = ToolCallingAgent([tool(get_weather)], model, max_steps=4, stream_outputs=True)
    assert agent.run(WEATHER) == WEATHER_ANSWER


def code():
    assert CodeAgent([tool(get_weather)], model, max_steps=4).run(WEATHER) == WEATHER_ANSWER


def code_structured():
    agent = CodeAgent([tool(get_weather)], model, max_steps=4, use_structured_outputs_internally=True)
    assert agent.run(WEATHER) == WEATHER_ANSWER

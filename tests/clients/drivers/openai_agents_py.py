"""openai-agents over chat completions, and over the Responses API, which is its default."""

import asyncio

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel
from things import ADA, CAPITAL, CAPITAL_ANSWER, MODEL, PERSON, WEATHER, WEATHER_ANSWER, get_weather

set_tracing_disabled(True)


class Person(BaseModel):
    name: str
    age: int


def _agent(kind=OpenAIChatCompletionsModel, **options):
    model = kind(model=MODEL, openai_client=AsyncOpenAI(max_retries=0))
    return Agent(name="helper", instructions="You help.", model=model, **options)


def _stream(agent, task):
    async def ask():
        running = Runner.run_streamed(agent, task)
        async for _ in running.stream_events():
            pass
        return running.final_output

    return asyncio.run(ask())


def text():
    assert Runner.run_sync(_agent(), CAPITAL).final_output == CAPITAL_ANSWER


def agent():
    tool = function_tool(get_weather)
    assert Runner.run_sync(_agent(tools=[tool]), WEATHER).final_output == WEATHER_ANSWER


def agent_streamed():
    assert _stream(_agent(tools=[function_tool(get_weather)]), WEATHER) == WEATHER_ANSWER


def typed():
    assert Runner.run_sync(_agent(output_type=Person), PERSON).final_output == Person(**ADA)


def handoff():
    other = _agent(handoffs=[_agent()])
    assert Runner.run_sync(other, CAPITAL).final_output == CAPITAL_ANSWER


def responses_agent():
    agent = _agent(OpenAIResponsesModel, tools=[function_tool(get_weather)])
    assert Runner.run_sync(agent, WEATHER).final_output == WEATHER_ANSWER


def responses_agent_streamed():
    agent = _agent(OpenAIResponsesModel, tools=[function_tool(get_weather)])
    assert _stream(agent, WEATHER) == WEATHER_ANSWER


def responses_typed():
    agent = _agent(OpenAIResponsesModel, output_type=Person)
    assert Runner.run_sync(agent, PERSON).final_output == Person(**ADA)


def responses_by_default():
    """An agent that names only its model."""
    agent = Agent(name="helper", instructions="You help.", model=MODEL, tools=[function_tool(get_weather)])
    assert Runner.run_sync(agent, WEATHER).final_output == WEATHER_ANSWER

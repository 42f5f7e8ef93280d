"""openai-agents over chat completions."""

import asyncio

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI
from pydantic import BaseModel
from things import ADA, CAPITAL, CAPITAL_ANSWER, MODEL, PERSON, WEATHER, WEATHER_ANSWER, get_weather

set_tracing_disabled(True)


class Person(BaseModel):
    name: str
    age: int


def _agent(**options):
    model = OpenAIChatCompletionsModel(model=MODEL, openai_client=AsyncOpenAI(max_retries=0))
    return Agent(name="helper", instructions="You help.", model=model, **options)


def text():
    assert Runner.run_sync(_agent(), CAPITAL).final_output == CAPITAL_ANSWER


def agent():
    tool = function_tool(get_weather)
    assert Runner.run_sync(_agent(tools=[tool]), WEATHER).final_output == WEATHER_ANSWER


def agent_streamed():
    async def ask():
        running = Runner.run_streamed(_agent(tools=[function_tool(get_weather)]), WEATHER)
        async for _ in running.stream_events():
            pass
        return running.final_output

    assert asyncio.run(ask()) == WEATHER_ANSWER


def typed():
    assert Runner.run_sync(_agent(output_type=Person), PERSON).final_output == Person(**ADA)


def handoff():
    other = _agent(handoffs=[_agent()])
    assert Runner.run_sync(other, CAPITAL).final_output == CAPITAL_ANSWER

"""pydantic-ai: an agent with a tool, and typed output in its three ways."""

import asyncio

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from things import ADA, CAPITAL, CAPITAL_ANSWER, MODEL, PERSON, URL, WEATHER, WEATHER_ANSWER, get_weather

provider = OpenAIProvider(base_url=URL, api_key="any")
model = OpenAIChatModel(MODEL, provider=provider)
by_responses = OpenAIResponsesModel(MODEL, provider=provider)


class Person(BaseModel):
    name: str
    age: int


def _stream(agent):
    async def ask():
        async with agent.run_stream(WEATHER) as answer:
            return await answer.get_output()

    return asyncio.run(ask())


def text():
    assert Agent(model).run_sync(CAPITAL).output == CAPITAL_ANSWER


def agent():
    assert Agent(model, tools=[get_weather]).run_sync(WEATHER).output == WEATHER_ANSWER


def agent_streamed():
    assert _stream(Agent(model, tools=[get_weather])) == WEATHER_ANSWER


def typed():
    assert Agent(model, output_type=Person).run_sync(PERSON).output == Person(**ADA)


def typed_native():
    assert Agent(model, output_type=NativeOutput(Person)).run_sync(PERSON).output == Person(**ADA)


def typed_prompted():
    assert Agent(model, output_type=PromptedOutput(Person)).run_sync(PERSON).output == Person(**ADA)


def responses_agent():
    assert Agent(by_responses, tools=[get_weather]).run_sync(WEATHER).output == WEATHER_ANSWER


def responses_agent_streamed():
    assert _stream(Agent(by_responses, tools=[get_weather])) == WEATHER_ANSWER


def responses_typed():
    assert Agent(by_responses, output_type=Person).run_sync(PERSON).output == Person(**ADA)


def responses_typed_native():
    assert Agent(by_responses, output_type=NativeOutput(Person)).run_sync(PERSON).output == Person(**ADA)

"""llama-index with its model for services like OpenAI's."""

import asyncio

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from things import ADA, CAPITAL, CAPITAL_ANSWER, MODEL, PERSON, URL, WEATHER, WEATHER_ANSWER, get_weather

llm = OpenAILike(
    MODEL,
    api_base=URL,
    api_key="any",
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=32768,
    max_retries=0,
)


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def complete():
    assert llm.complete(CAPITAL).text == CAPITAL_ANSWER


def chat():
    assert llm.chat([ChatMessage(CAPITAL)]).message.content == CAPITAL_ANSWER


def stream():
    assert "".join(part.delta for part in llm.stream_chat([ChatMessage(CAPITAL)])) == CAPITAL_ANSWER


def tools():
    tool = FunctionTool.from_defaults(get_weather)
    answer = llm.chat_with_tools([tool], WEATHER, tool_required=True)
    (call,) = llm.get_tool_calls_from_response(answer)
    assert call.tool_kwargs == {"city": "Paris"}


def typed():
    assert llm.as_structured_llm(Person).complete(PERSON).raw == Person(**ADA)


def agent():
    async def ask():
        return str(await FunctionAgent(tools=[get_weather], llm=llm).run(WEATHER))

    assert asyncio.run(ask()) == WEATHER_ANSWER

"""instructor, in its default mode and in its modes of JSON."""

import instructor
import openai
from pydantic import BaseModel
from things import ADA, ASK_PERSON, MODEL


class Person(BaseModel):
    name: str
    age: int


def _ask(mode):
    client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=mode)
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK_PERSON, response_model=Person, max_retries=0
    )
    assert (answer.name, answer.age) == tuple(ADA.values())


def tools():
    _ask(instructor.Mode.TOOLS)


def tools_strict():
    _ask(instructor.Mode.TOOLS_STRICT)


def json_schema():
    _ask(instructor.Mode.JSON_SCHEMA)


def json_mode():
    _ask(instructor.Mode.JSON)


def markdown_json():
    _ask(instructor.Mode.MD_JSON)


def partial_stream():
    client = instructor.from_openai(openai.OpenAI(max_retries=0))
    parts = list(
        client.chat.completions.create_partial(model=MODEL, messages=ASK_PERSON, response_model=Person)
    )
    assert (parts[-1].name, parts[-1].age) == tuple(ADA.values())

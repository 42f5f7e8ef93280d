"""guidance against a chat API."""

import json

from guidance import assistant, gen, system, user
from guidance import json as gen_json
from guidance.models import OpenAI
from pydantic import BaseModel
from things import ADA, CAPITAL, CAPITAL_ANSWER, MODEL, PERSON, URL


class Person(BaseModel):
    name: str
    age: int


def _model():
    return OpenAI(MODEL, api_key="any", base_url=URL)


def chat():
    answer = _model()
    with system():
        answer += "You answer."
    with user():
        answer += CAPITAL
    with assistant():
        answer += gen(name="said")
    assert answer["said"] == CAPITAL_ANSWER


def typed():
    answer = _model()
    with user():
        answer += PERSON
    with assistant():
        answer += gen_json(name="person", schema=Person)
    assert json.loads(answer["person"]) == ADA

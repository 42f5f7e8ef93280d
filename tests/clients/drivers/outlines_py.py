"""outlines: types, JSON, choices."""

from typing import Literal

import openai
import outlines
from pydantic import BaseModel
from things import ADA, CAPITAL, CAPITAL_ANSWER, MODEL, PERSON, PERSON_SCHEMA

model = outlines.from_openai(openai.OpenAI(max_retries=0), MODEL)
vllm_like = outlines.from_vllm(openai.OpenAI(max_retries=0), MODEL)


class Person(BaseModel):
    name: str
    age: int


def text():
    assert model(CAPITAL) == CAPITAL_ANSWER


def stream():
    assert "".join(model.stream(CAPITAL)) == CAPITAL_ANSWER


def typed():
    assert Person.model_validate_json(model(PERSON, Person)) == Person(**ADA)


def schema():
    assert Person.model_validate_json(model(PERSON, outlines.json_schema(PERSON_SCHEMA))) == Person(**ADA)


def typed_by_vllm():
    assert Person.model_validate_json(vllm_like(PERSON, Person)) == Person(**ADA)


def choice_by_vllm():
    assert vllm_like(CAPITAL, Literal["Rome", "Paris"]) in ("Rome", "Paris")


def regex_by_vllm():
    assert vllm_like(CAPITAL, outlines.regex("[0-9]{3}")).isdigit()

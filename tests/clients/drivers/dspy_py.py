"""dspy: a prediction, a typed one, and ReAct."""

import dspy
from pydantic import BaseModel
from things import ADA, CAPITAL, MODEL, PERSON, URL

lm = dspy.LM(f"openai/{MODEL}", api_base=URL, api_key="any", cache=False)
dspy.configure(lm=lm)


class Person(BaseModel):
    name: str
    age: int


class Extract(dspy.Signature):
    """Extract the person."""

    text: str = dspy.InputField()
    person: Person = dspy.OutputField()


def predict():
    assert dspy.Predict("question -> answer")(question=CAPITAL).answer == "Paris"


def typed():
    assert dspy.Predict(Extract)(text=PERSON).person == Person(**ADA)


def typed_by_schema():
    with dspy.context(adapter=dspy.JSONAdapter()):
        assert dspy.Predict(Extract)(text=PERSON).person == Person(**ADA)

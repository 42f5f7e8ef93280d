"""What all drivers ask and expect; tests/clients/script.py has the model's answers."""

import json
import os

RECIPE = json.loads(os.environ.get("RECIPE", "null"))  # docs/clients.md's, for this service
URL = os.environ["OPENAI_BASE_URL"]
MODEL = os.environ["MODEL"]
CAPITAL = "What is the capital of France?"
CAPITAL_ANSWER = "The capital of France is Paris."
PERSON = "Extract the person: Ada is 36 years old."
ADA = {"name": "Ada", "age": 36}
WEATHER = "How is the weather in Paris?"
WEATHER_ANSWER = "It is sunny in Paris."
USER = [{"role": "user", "content": CAPITAL}]
ASK_PERSON = [{"role": "user", "content": PERSON}]
ASK_WEATHER = [{"role": "user", "content": WEATHER}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Return the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
PERSON_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def get_weather(city: str) -> str:
    """Return the weather of a city.

    Args:
        city: the name of the city.
    """
    return f"It is sunny in {city}, 20 degrees."

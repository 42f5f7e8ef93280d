"""The scripted model's answers to what the drivers ask. The first rule that matches counts."""

import json
from typing import Any

ADA = {"name": "Ada", "age": 36}
SUNNY = "It is sunny in Paris."
WEATHER = "weather in Paris"


def call(name: str, arguments: dict[str, Any]) -> str:
    """Write a call in the form that a model without tools of its own is asked for."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def code(text: str) -> str:
    """Write code as smolagents asks for it."""
    return f"Thought: run it.\n<code>\n{text}\n</code>"


def tool(name: str) -> str:
    """Return a text that a prompt holds if it offers the tool."""
    return f'"name": "{name}"'


ASK, ANSWER = 'print(get_weather(city="Paris"))', f'final_answer("{SUNNY}")'
LOOK = call("get_weather", {"city": "Paris"})
STRUCTURED = '"thought": "I will proceed'  # an example in smolagents' prompt
RULES: list[dict[str, Any]] = [
    # Typed output by a tool: of pydantic-ai, of instructor (and its partial one), langchain and llama-index,
    # and of the AI SDK before Anthropic's API.
    *(
        {"anywhere": tool(name), "when": "Ada", "say": call(name, ADA)}
        for name in ("final_result", "PartialPerson", "Person", "json")
    ),
    # smolagents: its tool for the answer; code within JSON; code.
    {"anywhere": tool("final_answer"), "when": "sunny", "say": call("final_answer", {"answer": SUNNY})},
    {"anywhere": STRUCTURED, "when": WEATHER, "say": json.dumps({"thought": "Run it.", "code": ASK})},
    {"anywhere": STRUCTURED, "when": "sunny", "say": json.dumps({"thought": "Done.", "code": ANSWER})},
    {"anywhere": "final_answer(", "when": WEATHER, "say": code(ASK)},
    {"anywhere": "final_answer(", "when": "sunny", "say": code(ANSWER)},
    {"anywhere": "Open Interpreter", "when": "six times seven", "say": "```python\nprint(6 * 7)\n```"},
    {"anywhere": "Open Interpreter", "when": "42", "say": "The result is 42."},
    # dspy, in JSON and in its own form.
    {"anywhere": "Outputs will be a JSON object", "when": "Ada", "say": json.dumps({"person": ADA})},
    {"anywhere": "Your input fields", "when": "Ada", "say": f"[[ ## person ## ]]\n{json.dumps(ADA)}\n"},
    {"anywhere": "Your input fields", "when": "capital of France", "say": "[[ ## answer ## ]]\nParis\n"},
    # All others.
    {"when": "sunny", "say": SUNNY},
    {"anywhere": tool("get_weather"), "when": "Speak first", "say": f"I look.\n{LOOK}"},
    {"anywhere": tool("get_weather"), "when": WEATHER, "say": LOOK},
    {"when": "Ada", "say": json.dumps(ADA)},
    {"when": "capital of France", "say": "The capital of France is Paris."},
]

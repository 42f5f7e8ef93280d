"""llm, the command: chats, a schema, a tool, and a chat continued."""

import json
import os
import subprocess
import sys
from pathlib import Path

from things import ADA, CAPITAL, CAPITAL_ANSWER, PERSON, RECIPE, WEATHER, WEATHER_ANSWER

home = Path(os.environ["LLM_USER_PATH"])
home.mkdir(exist_ok=True)
for name, text in RECIPE["files"].items():
    (home / name).write_text(text)
WEATHER_TOOL = 'def get_weather(city: str) -> str:\n    return f"It is sunny in {city}."'


def _ask(*words):
    llm = Path(sys.executable).with_name("llm")
    command = [llm, "-m", "ring", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def chat():
    assert _ask(CAPITAL) == CAPITAL_ANSWER
    assert _ask("--continue", CAPITAL) == CAPITAL_ANSWER


def chat_not_streamed():
    assert _ask("--no-stream", CAPITAL) == CAPITAL_ANSWER


def schema():
    assert json.loads(_ask("--schema", "name, age int", PERSON)) == ADA


def tool():
    assert _ask("--functions", WEATHER_TOOL, WEATHER) == WEATHER_ANSWER

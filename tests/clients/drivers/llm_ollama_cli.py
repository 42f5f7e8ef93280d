"""llm, the command, with its plugin for Ollama."""

import json
import os
import subprocess
import sys
from pathlib import Path

from things import ADA, CAPITAL, CAPITAL_ANSWER, MODEL, PERSON, URL, WEATHER, WEATHER_ANSWER

WEATHER_TOOL = 'def get_weather(city: str) -> str:\n    return f"It is sunny in {city}."'


def _run(*words):
    llm = Path(sys.executable).with_name("llm")
    environment = {**os.environ, "OLLAMA_HOST": URL.removesuffix("/v1")}
    ended = subprocess.run(
        [llm, *words], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def models():
    assert MODEL in _run("ollama", "models")


def chat():
    assert _run("-m", f"ollama/{MODEL}", CAPITAL) == CAPITAL_ANSWER
    assert _run("-m", f"ollama/{MODEL}", "--no-stream", CAPITAL) == CAPITAL_ANSWER


def schema():
    assert json.loads(_run("-m", f"ollama/{MODEL}", "--schema", "name, age int", PERSON)) == ADA


def tool():
    assert _run("-m", f"ollama/{MODEL}", "--functions", WEATHER_TOOL, WEATHER) == WEATHER_ANSWER

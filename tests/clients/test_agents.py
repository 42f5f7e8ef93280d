"""Real coding agents before the service: each reads a file, edits it, and answers, as the script has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from config import load_settings
from distributed.prepare import prepare
from tests.clients.agents import AGENTS, Agent, make_rules
from tests.services.frontdoor_service import serving
from tests.services.ring_service import RingService

pytestmark = pytest.mark.long

TASK = "Read hello.py, then change it so that it prints hello."
FINAL = "It prints hello now."


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)
def test_an_agent_reads_a_file_edits_it_and_answers(agent: Agent, tmp_path: Path) -> None:
    """With its own prompts of thousands of tokens, its tools, and its history of calls and results."""
    agent.install()
    file = tmp_path / "work" / "hello.py"
    file.parent.mkdir()
    file.write_text("def greet():\n    print('hi')\n")
    script = tmp_path / "agent.json"
    script.write_text(json.dumps(make_rules(agent, file, TASK, FINAL)))
    values = {
        "MODEL_REPO": f"scripted:{script}",
        "STATE_DIR": str(tmp_path / "state"),
        "MAX_SEQUENCE_LENGTH": "auto",
        "SPOOL_DURABILITY": "process",
    }
    settings = load_settings(values, root=tmp_path, environ={})
    model = prepare(settings)
    with RingService(tmp_path / "state", model, 2, **values), serving(settings) as url:
        printed = agent.run(url, settings.model_name, file, tmp_path / "home", TASK)
    assert file.read_text() == "def greet():\n    print('hello')\n", printed
    assert (FINAL if agent.reads else "Applied edit to hello.py") in printed

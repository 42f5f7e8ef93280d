"""Real coding agents before the service: each reads a file, edits it, and answers, as the script has it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from config import load_settings
from distributed.prepare import prepare
from tests.clients.agents import (
    AGENTS,
    CLAUDE_CODE,
    CODEX,
    CONTINUE,
    KEY,
    RECIPES,
    Agent,
    make_rules,
)
from tests.services.frontdoor_service import serving
from tests.services.ring_service import RingService

pytestmark = pytest.mark.long

TASK = "Read hello.py, then change it so that it prints hello."
FINAL = "It prints hello now."
EDITED = "def greet():\n    print('hello')\n"


@dataclass(frozen=True)
class Workplace:
    """An agent's file, and the service that it asks."""

    agent: Agent
    folder: Path
    file: Path
    ring: RingService
    url: str
    model: str

    def work(self) -> str:
        """Give the agent its task; return what it printed."""
        return self.agent.run(self.url, self.model, self.file, self.folder / "home", TASK)


@contextmanager
def make_workplace(agent: Agent, folder: Path, pause_us: int = 0) -> Iterator[Workplace]:
    """Serve an agent's script by a ring of two processes."""
    agent.install()
    file = folder / "work" / "hello.py"
    file.parent.mkdir()
    file.write_text("def greet():\n    print('hi')\n")
    script = folder / "agent.json"
    rules = [{**rule, "pause_us": pause_us} for rule in make_rules(agent, file, TASK, FINAL)]
    script.write_text(json.dumps(rules))
    (folder / "keys").write_text(f"{KEY}\n")
    values = {
        "API_KEYS_FILE": str(folder / "keys"),
        "MODEL_REPO": f"scripted:{script}",
        "STATE_DIR": str(folder / "state"),
        "MAX_SEQUENCE_LENGTH": "auto",
        "SPOOL_DURABILITY": "process",
    }
    settings = load_settings(values, root=folder, environ={})
    model = prepare(settings)
    with RingService(folder / "state", model, 2, **values) as ring, serving(settings) as url:
        yield Workplace(agent, folder, file, ring, url, settings.model_name)


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)
def test_an_agent_reads_a_file_edits_it_and_answers(agent: Agent, tmp_path: Path) -> None:
    """With its own prompts of thousands of tokens, its tools, and its history of calls and results.

    Each turn's KV is that of the turn before: the service computes little more than the first prompt.
    """
    with make_workplace(agent, tmp_path) as place:
        printed = place.work()
        place.ring.stop()
    assert place.file.read_text() == EDITED, printed
    assert (FINAL if agent.reads else "Applied edit to hello.py") in printed
    totals = json.loads((tmp_path / "state" / "run" / "ring.json").read_text())["totals"]
    if agent.reads is not None:
        assert totals["cached_tokens"] > totals["prompt_tokens"] / 2, totals
    assert first_prompt(agent, tmp_path / "state") <= RECIPES[agent.recipe].first_prompt


def first_prompt(agent: Agent, state: Path) -> int:
    """The tokens of the agent's first prompt of the task; those of its asides are shorter."""
    results = (json.loads(path.read_text())["body"] for path in (state / "spool" / "done").iterdir())
    lengths = sorted(result["usage"]["prompt_tokens"] for result in results)
    return int(lengths[-1 if agent.reads is None else -3])


@pytest.mark.parametrize("agent", [CONTINUE, CLAUDE_CODE, CODEX], ids=lambda agent: agent.name)
def test_an_agent_does_not_notice_that_all_ranks_die(agent: Agent, tmp_path: Path) -> None:
    """Killed in the middle of an answer, the ring comes back and continues it on the same stream."""
    with make_workplace(agent, tmp_path, pause_us=50_000) as place, ThreadPoolExecutor(1) as threads:
        work = threads.submit(place.work)
        spool, pause, deadline = place.ring.spool(), threading.Event(), time.monotonic() + 60
        logs = tmp_path / "state" / "spool" / "stream"
        while not any(len(spool.open_log(path.name).read_new()) > 5 for path in logs.iterdir()):
            assert not work.done() and time.monotonic() < deadline
            pause.wait(0.05)
        place.ring.kill()
        assert spool.depth().num_active == 1
        place.ring.start()
        printed = work.result()
    assert place.file.read_text() == EDITED, printed
    assert FINAL in printed

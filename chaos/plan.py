"""The plan of a run, the settings of its service, and the questions of its clients."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.forms import FORMS
from chaos.journal import Question
from cluster import ports
from config import REPOSITORY_ROOT

SHORTEST_ANSWER_TOKENS = 4
WORDS = ("ring", "sea", "lamp", "river", "stone", "wind", "clock", "bread", "letter", "bridge", "garden")


@dataclass(frozen=True)
class Plan:
    """The plan; `folder` has all files of the run."""

    folder: Path
    seconds: float
    max_kills: int
    seed: int
    model: str
    num_ranks: int
    num_clients: int
    max_tokens: int
    pause_s: tuple[float, float]


def make_overrides(plan: Plan) -> dict[str, str]:
    """The settings of the service, with a free port; makes the tiny model in the folder."""
    with ports.listen("127.0.0.1", 0) as listening:
        port = int(listening.getsockname()[1])
    return {
        "STATE_DIR": str(plan.folder / "state"),
        "API_HOST": "127.0.0.1",
        "API_PORT": str(port),
        "API_KEYS_FILE": "",
        "LOCAL_RANKS": str(plan.num_ranks),
        "MODEL_REPO": str(make_tiny_model(plan.folder / "tiny")) if plan.model == "tiny" else plan.model,
        "REQUEST_TIMEOUT": "600",
        "DISCONNECT_GRACE_SECONDS": "300",
        "SHUTDOWN_TIMEOUT": "10",
    }


def make_tiny_model(folder: Path) -> Path:
    """Make seeded random weights and a byte-level tokenizer, in a process of its own, which imports MLX."""
    if not (folder / "config.json").exists():
        code = (
            "import sys; from pathlib import Path; from tests.fakes.checkpoints import make_checkpoint; "
            "make_checkpoint(Path(sys.argv[1]), 'llama')"
        )
        subprocess.run([sys.executable, "-c", code, str(folder)], cwd=REPOSITORY_ROOT, check=True)
    return folder


def make_question(number: int, generator: random.Random, max_tokens: int) -> Question:
    """Two of three answers are short, the others up to the longest; one of four is sampled with a seed.

    Another one of four has a form of chaos/forms.py.
    """
    prompt = "Tell of " + ", ".join(generator.sample(WORDS, generator.randint(2, 8))) + "."
    shortest = min(SHORTEST_ANSWER_TOKENS, max_tokens)
    longest = max_tokens if number % 3 == 2 else max(shortest, max_tokens // 6)
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": generator.randint(shortest, longest)}
    body |= {"temperature": 0.8, "seed": number} if number % 4 == 3 else {"temperature": 0}
    if number % 4 != 1:
        return Question(number, body)
    form = FORMS[number // 4 % len(FORMS)]
    if "tools" in form.fields:
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    return Question(number, {**body, "max_tokens": max_tokens, **form.fields}, form=form.name)

"""Row 37 of the faults: a batch of 1,000 lines on two real ranks, kills of all processes, and a restart with
another split of the layers. Each line has exactly one line of output.
"""

import io
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from chaos.killer import Killer
from chaos.plan import make_tiny_model
from cluster.commands.stop import stop
from cluster.terminal import Terminal
from config import Settings, load_settings
from spool import Spool
from spool.batches import BatchStore, BatchView
from tests.services.cluster_service import find_free_port

pytestmark = pytest.mark.long

NUM_LINES, NUM_PROMPTS, NUM_KILLS, MAX_TOKENS = 1000, 20, 30, 250
WRONG = {17: "temperature", 400: "n", 999: "messages"}
LIMIT_S = 600.0
SPLITS = ("1,3", "3,1")


def make_line(number: int) -> dict[str, Any]:
    """Every tenth line has two answers; the lines of WRONG are refused when they run."""
    content = f"Tell of the river and of stone {number % NUM_PROMPTS}."
    body: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "max_tokens": MAX_TOKENS}
    body |= {"temperature": 0, "ignore_eos": True, "n": 2 if number % 10 == 0 else 1}
    if number in WRONG:
        body[WRONG[number]] = 99
    return {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


class Run:
    """A service of the test's own, and its batch."""

    def __init__(self, folder: Path) -> None:
        self.values = {
            "STATE_DIR": str(folder / "state"),
            "API_PORT": str(find_free_port()),
            "LOCAL_RANKS": "2",
            "MODEL_REPO": str(make_tiny_model(folder / "tiny")),
            "SHUTDOWN_TIMEOUT": "5",
        }
        self.killers: list[Killer] = []

    def settings(self, split: str) -> Settings:
        return load_settings({**self.values, "LAYER_SPLIT": split})

    def start(self, split: str) -> Killer:
        """Start the service with this split, and wait until it is ready."""
        settings = self.settings(split)
        values = {**self.values, "LAYER_SPLIT": split}
        flags = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
        killer = Killer(settings, flags, len(self.killers), (0.2, 1.0), uuid.uuid4().hex)
        self.killers.append(killer)
        killer.revive()
        return killer

    def stop(self) -> None:
        self.killers[-1].end_start()
        stop(self.settings(SPLITS[0]), Terminal(io.StringIO()), is_quiet=True)

    @property
    def num_kills(self) -> int:
        return sum(len(killer.kills) for killer in self.killers)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    made.stop()


def begin_batch(run: Run) -> str:
    """Begin the batch as a client does; return its id."""
    text = "".join(json.dumps(make_line(number)) + "\n" for number in range(NUM_LINES))
    url = f"http://127.0.0.1:{run.values['API_PORT']}/v1"
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        file = client.files.create(file=("lines.jsonl", text.encode()), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        client.files.delete(file.id)
    return batch.id


def wait_for_end(store: BatchStore, batch_id: str) -> BatchView:
    deadline, pause = time.monotonic() + LIMIT_S, threading.Event()
    while True:
        view = store.find(batch_id)
        assert view is not None
        if view.state.has_ended:
            return view
        assert time.monotonic() < deadline, view.state
        pause.wait(0.2)


def read_lines(store: BatchStore, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in store.files.path(file_id).read_text("utf-8").splitlines()]


def test_each_line_of_a_batch_ends_once_over_kills_and_another_split(run: Run) -> None:
    """No line is lost, doubled or contradicted; the counts are those of the files."""
    killer = run.start(SPLITS[0])
    batch_id = begin_batch(run)
    never = threading.Event()
    killer.run(never, time.monotonic() + LIMIT_S, NUM_KILLS // 2)
    killer.revive()
    run.stop()
    killer = run.start(SPLITS[1])
    killer.run(never, time.monotonic() + LIMIT_S, NUM_KILLS - NUM_KILLS // 2)
    store = BatchStore(Spool.open(run.settings(SPLITS[1]).spool_dir, durability="process"))
    view = store.find(batch_id)
    assert view is not None
    assert not view.state.has_ended, "the batch ended before the last kill"
    killer.revive()
    state = wait_for_end(store, batch_id).state
    outputs, errors = read_lines(store, state.output_file_id), read_lines(store, state.error_file_id)
    found = Counter(line["custom_id"] for line in (*outputs, *errors))
    assert found == Counter({f"line-{number}": 1 for number in range(NUM_LINES)})
    assert {line["custom_id"] for line in errors} == {f"line-{number}" for number in WRONG}
    assert {line["response"]["status_code"] for line in errors} == {400}
    assert (state.num_total, state.num_completed, state.num_failed) == (NUM_LINES, len(outputs), len(errors))
    texts: dict[int, set[str]] = {}
    for line in outputs:
        number = int(line["custom_id"].removeprefix("line-"))
        choices = line["response"]["body"]["choices"]
        assert len(choices) == (2 if number % 10 == 0 else 1)
        texts.setdefault(number % NUM_PROMPTS, set()).update(each["message"]["content"] for each in choices)
    assert [len(texts[number]) for number in range(NUM_PROMPTS)] == [1] * NUM_PROMPTS
    assert run.num_kills == NUM_KILLS
    print(Counter(kill.victim for killer in run.killers for kill in killer.kills))

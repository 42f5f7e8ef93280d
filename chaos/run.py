"""One run: start a service, learn the right answers, ask and kill, wait, judge, write the journal.

Leaves the folder with journal, logs and spool behind, and no process.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from chaos.client import Client
from chaos.journal import Entry, Question
from chaos.killer import ROOT, Killer
from chaos.oracle import VERDICTS, Verdict, judge
from cluster import ports
from cluster.service import read_service
from cluster.stop import stop
from cluster.terminal import Terminal
from config import Settings, load_settings
from spool import Spool

NUM_QUESTIONS = 24
PATIENCE_S = 300.0
KINDS = ("stream", "stream", "wait", "background")
WORDS = ("ring", "sea", "lamp", "river", "stone", "wind", "clock", "bread", "letter", "bridge", "garden")


@dataclass(frozen=True)
class Plan:
    """What to do; everything of the run is in `folder`."""

    folder: Path
    seconds: float
    seed: int
    model: str
    num_ranks: int
    num_clients: int
    max_tokens: int
    pause_s: tuple[float, float]


def run(plan: Plan) -> int:
    """Run the plan; 0 if nothing was lost, doubled, contradicted or condemned."""
    shutil.rmtree(plan.folder / "state", ignore_errors=True)
    plan.folder.mkdir(parents=True, exist_ok=True)
    overrides = make_overrides(plan)
    settings = load_settings(overrides)
    flags = [word for key, value in overrides.items() for word in ("--set", f"{key}={value}")]
    killer = Killer(settings, flags, plan.seed, plan.pause_s)
    started_at = time.monotonic()
    try:
        killer.start()
        questions = learn_answers(plan, settings)
        print(
            f"{len(questions)} answers learnt in {time.monotonic() - started_at:.0f} s; killing", flush=True
        )
        entries = ask_and_kill(plan, settings, questions, killer)
        revive(settings, killer)
        verdict = judge_all(settings, entries, questions)
    finally:
        stop(settings, Terminal(), is_quiet=True)
    return report(plan, killer, entries, verdict)


def make_overrides(plan: Plan) -> dict[str, str]:
    """The settings of the service, with a free port; tiny is made in the folder."""
    with ports.listen("127.0.0.1", 0) as listening:
        port = int(listening.getsockname()[1])
    return {
        "STATE_DIR": str(plan.folder / "state"),
        "API_HOST": "127.0.0.1",
        "API_PORT": str(port),
        "LOCAL_RANKS": str(plan.num_ranks),
        "MODEL_REPO": str(make_tiny_model(plan.folder / "tiny")) if plan.model == "tiny" else plan.model,
        "REQUEST_TIMEOUT": "600",
        "DISCONNECT_GRACE_SECONDS": "300",
    }


def make_tiny_model(folder: Path) -> Path:
    """Seeded random weights and a byte-level tokenizer, in a process of its own, which imports MLX."""
    if not (folder / "config.json").exists():
        code = (
            "import sys; from pathlib import Path; from tests.checkpoints import make_checkpoint; "
            "make_checkpoint(Path(sys.argv[1]), 'llama')"
        )
        subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True)
    return folder


def learn_answers(plan: Plan, settings: Settings) -> dict[int, Question]:
    """Ask each question once, alone, of a calm service."""
    generator = random.Random(plan.seed)
    client = Client(settings.api_port, PATIENCE_S)
    spool = open_spool(settings)
    questions = {}
    for number in range(NUM_QUESTIONS):
        prompt = "Tell of " + ", ".join(generator.sample(WORDS, generator.randint(2, 8))) + "."
        body = {"prompt": prompt, "max_tokens": generator.randint(plan.max_tokens // 8, plan.max_tokens)}
        body |= {"temperature": 0.8, "seed": number} if number % 4 == 3 else {"temperature": 0}
        question = Question(number, body)
        entry = Entry(number, "wait", uuid.uuid4().hex, time.time())
        client.ask(question, entry)
        result = spool.read_result(entry.ids[-1]) if entry.ids else None
        if result is None or result.error is not None:
            raise SystemExit(f"the calm service does not answer: {entry.trouble}")
        questions[number] = replace(question, answer=result.token_ids, text=result.text)
    return questions


def ask_and_kill(
    plan: Plan, settings: Settings, questions: dict[int, Question], killer: Killer
) -> list[Entry]:
    """Clients ask until the time is over, then finish what they asked; meanwhile the killer kills."""
    deadline, stopping = time.monotonic() + plan.seconds, threading.Event()
    entries: list[Entry] = []

    def ask(number: int) -> None:
        generator = random.Random(plan.seed * 1000 + number)
        client = Client(settings.api_port, PATIENCE_S)
        while not stopping.is_set():
            question = questions[generator.randrange(NUM_QUESTIONS)]
            entry = Entry(question.number, generator.choice(KINDS), uuid.uuid4().hex, time.time())
            entries.append(entry)
            client.ask(question, entry)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(plan.num_clients)]
    for thread in threads:
        thread.start()
    try:
        killer.run(stopping, deadline)
    finally:
        stopping.set()
    revive(settings, killer)
    for thread in threads:
        thread.join()
    return entries


def revive(settings: Settings, killer: Killer) -> None:
    """See to it that the service runs: what was accepted is to be answered now."""
    if read_service(settings).holder is None:
        killer.start()


def open_spool(settings: Settings) -> Spool:
    """The service's spool, to read results."""
    return Spool.open(settings.spool_dir, durability="process")


def judge_all(settings: Settings, entries: list[Entry], questions: dict[int, Question]) -> Verdict:
    """Ask the oracle, and look for what is left in the queue."""
    spool = open_spool(settings)
    deadline = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while (depth := spool.depth()).num_waiting + depth.num_active and time.monotonic() < deadline:
        pause.wait(0.2)
    verdict = judge(entries, questions, spool.read_result)
    verdict.counts["left_in_queue"] = depth.num_waiting + depth.num_active
    return verdict


def report(plan: Plan, killer: Killer, entries: list[Entry], verdict: Verdict) -> int:
    """Write the journal, print the sum; the exit code."""
    path = plan.folder / "journal.json"
    found = {
        "plan": {**asdict(plan), "folder": str(plan.folder)},
        "kills": killer.to_json(),
        "failed_starts": killer.num_failed_starts,
        "accepted": verdict.num_accepted,
        "counts": verdict.counts,
        "cases": verdict.cases,
        "requests": [asdict(entry) for entry in entries],
    }
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    by_victim = {kill.victim: 0 for kill in killer.kills}
    for kill in killer.kills:
        by_victim[kill.victim] += 1
    pauses = sorted(entry.longest_pause_s for entry in entries if entry.longest_pause_s > 0.5)
    print(f"{len(killer.kills)} kills {by_victim}, {killer.num_failed_starts} failed starts")
    print(f"{verdict.num_accepted} requests accepted; journal {path}")
    if pauses:
        print(f"pauses in one connection: median {statistics.median(pauses):.1f} s, worst {pauses[-1]:.1f} s")
    print(", ".join(f"{what} {number}" for what, number in verdict.counts.items()))
    for case in verdict.cases[:10]:
        print(f"  {case}")
    is_good = verdict.is_good and not verdict.counts["left_in_queue"] and bool(killer.kills)
    print("good" if is_good else f"NOT GOOD: {', '.join(VERDICTS)} must be 0")
    return 0 if is_good else 1

"""One run: start a service, learn the right answers, ask and kill, wait, judge, write the journal.

Leaves the folder with journal, logs and spool behind, and no process.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from chaos.client import KINDS, Client
from chaos.doctored import blind_spots
from chaos.flatness import Sampler, compare_thirds, marked_processes
from chaos.found import read_spool
from chaos.journal import Entry, Question
from chaos.killer import ROOT, Killer, ServiceTrouble
from chaos.oracle import judge
from chaos.report import Outcome, recovery_times, report
from cluster import ports
from cluster.stop import stop
from cluster.terminal import Terminal
from config import Settings, load_settings
from spool import Result, Spool

NUM_QUESTIONS = 24
SHORTEST_ANSWER_TOKENS = 4
PATIENCE_S = 300.0
KIND_WEIGHTS = (4, 3, 2, 2, 1, 1)  # of client.KINDS
WORDS = ("ring", "sea", "lamp", "river", "stone", "wind", "clock", "bread", "letter", "bridge", "garden")


@dataclass(frozen=True)
class Plan:
    """What to do; everything of the run is in `folder`."""

    folder: Path
    seconds: float
    max_kills: int
    seed: int
    model: str
    num_ranks: int
    num_clients: int
    max_tokens: int
    pause_s: tuple[float, float]


class Run:
    """A plan being carried out."""

    def __init__(self, plan: Plan) -> None:
        shutil.rmtree(plan.folder / "state", ignore_errors=True)
        plan.folder.mkdir(parents=True, exist_ok=True)
        overrides = make_overrides(plan)
        flags = [word for key, value in overrides.items() for word in ("--set", f"{key}={value}")]
        self.plan = plan
        self.marker = uuid.uuid4().hex
        self.settings = load_settings(overrides)
        self.killer = Killer(self.settings, flags, plan.seed, plan.pause_s, self.marker)
        self.sampler = Sampler(self.settings, self.marker)
        self.entries: list[Entry] = []
        self.calm_entries: list[Entry] = []
        self.questions: dict[int, Question] = {}
        self.token_times: list[float] = []  # unix, of all streams
        self.killing_s = 0.0

    def carry_out(self) -> Outcome:
        """Do all of it; no process is left."""
        started_at = time.monotonic()
        try:
            self.killer.revive()
            self.learn_answers()
            learnt_s = time.monotonic() - started_at
            print(f"{len(self.questions)} answers learnt in {learnt_s:.0f} s; killing", flush=True)
            trouble = self._kill_and_calm_down()
        finally:
            self.killer.end_start()
            stop(self.settings, Terminal(), is_quiet=True)
        return self.judge_all(trouble)

    def _kill_and_calm_down(self) -> str:
        """What makes a calm service impossible afterwards, if anything; there is a journal all the same."""
        try:
            self.ask_and_kill()
            self.wait_for_the_queue()
        except ServiceTrouble as error:
            return str(error)
        return ""

    def learn_answers(self) -> None:
        """Ask each question once, alone, of a calm service."""
        generator = random.Random(self.plan.seed)
        for number in range(NUM_QUESTIONS):
            question = make_question(number, generator, self.plan.max_tokens)
            result = self._ask_calmly(question)
            self.questions[number] = replace(question, answer=result.token_ids, text=result.text)

    def _ask_calmly(self, question: Question) -> Result:
        entry = Entry(question.number, "wait", uuid.uuid4().hex, time.time())
        self.calm_entries.append(entry)
        Client(self.settings.api_port, PATIENCE_S).ask(question, entry)
        result = open_spool(self.settings).read_result(entry.ids[-1]) if entry.ids else None
        if result is None or result.error is not None:
            raise ServiceTrouble(f"the calm service does not answer: {entry.trouble}")
        return result

    def ask_and_kill(self) -> None:
        """Clients ask until the killer is done, then finish what they asked."""
        stopping, sampled = threading.Event(), threading.Event()
        clients = [
            threading.Thread(target=self._ask, args=(number, stopping))
            for number in range(self.plan.num_clients)
        ]
        sampler = threading.Thread(target=self.sampler.run, args=(sampled,))
        for thread in (*clients, sampler):
            thread.start()
        started_at = time.monotonic()
        try:
            self.killer.run(stopping, started_at + self.plan.seconds, self.plan.max_kills)
        finally:
            stopping.set()
            sampled.set()
            self.killing_s = time.monotonic() - started_at
        try:
            self.killer.revive()
        finally:
            for thread in (*clients, sampler):
                thread.join()

    def _ask(self, number: int, stopping: threading.Event) -> None:
        generator = random.Random(self.plan.seed * 1000 + number)
        client = Client(self.settings.api_port, PATIENCE_S, lambda: self.token_times.append(time.time()))
        while not stopping.is_set():
            question = self.questions[generator.randrange(NUM_QUESTIONS)]
            kind = generator.choices(KINDS, KIND_WEIGHTS)[0]
            leave_after = generator.randint(2, 20) if kind == "leaving" else 0
            entry = Entry(question.number, kind, uuid.uuid4().hex, time.time(), leave_after)
            self.entries.append(entry)
            client.ask(question, entry)

    def wait_for_the_queue(self) -> None:
        """Ask once more, behind all others, and wait until nothing waits or runs, or long enough."""
        self._ask_calmly(self.questions[0])
        spool, pause = open_spool(self.settings), threading.Event()
        deadline = time.monotonic() + PATIENCE_S
        while (depth := spool.depth()).num_waiting + depth.num_active and time.monotonic() < deadline:
            pause.wait(0.2)

    def judge_all(self, trouble: str) -> Outcome:
        """Ask the oracle, and whether it sees; count what is left."""
        everybody = [*self.calm_entries, *self.entries]
        spool = open_spool(self.settings)
        found, depth = read_spool(spool, [entry.key for entry in everybody]), spool.depth()
        return Outcome(
            verdict=judge(everybody, self.questions, found),
            blind_spots=blind_spots(everybody, self.questions, found),
            growths=compare_thirds(self.sampler.samples),
            recoveries_s=recovery_times(self.killer.kills, self.token_times),
            num_left_in_queue=depth.num_waiting + depth.num_active,
            num_left_processes=len(list(marked_processes(self.marker))),
            killing_s=self.killing_s,
            trouble=trouble,
        )


def run(plan: Plan) -> int:
    """Run the plan; 0 if nothing was lost, doubled, contradicted or condemned, and nothing grew."""
    started = Run(plan)
    try:
        outcome = started.carry_out()
    except ServiceTrouble as error:
        print(f"nothing was killed: {error}")
        return 1
    return report(plan, started.killer, started.entries, started.sampler.samples, outcome)


def make_overrides(plan: Plan) -> dict[str, str]:
    """The settings of the service, with a free port; tiny is made in the folder."""
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
    """Seeded random weights and a byte-level tokenizer, in a process of its own, which imports MLX."""
    if not (folder / "config.json").exists():
        code = (
            "import sys; from pathlib import Path; from tests.checkpoints import make_checkpoint; "
            "make_checkpoint(Path(sys.argv[1]), 'llama')"
        )
        subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True)
    return folder


def make_question(number: int, generator: random.Random, max_tokens: int) -> Question:
    """Two of three answers are short, the others up to the longest; one of four is drawn with a seed."""
    prompt = "Tell of " + ", ".join(generator.sample(WORDS, generator.randint(2, 8))) + "."
    shortest = min(SHORTEST_ANSWER_TOKENS, max_tokens)
    longest = max_tokens if number % 3 == 2 else max(shortest, max_tokens // 6)
    body = {"prompt": prompt, "max_tokens": generator.randint(shortest, longest)}
    return Question(
        number, body | ({"temperature": 0.8, "seed": number} if number % 4 == 3 else {"temperature": 0})
    )


def open_spool(settings: Settings) -> Spool:
    """The service's spool, to read results."""
    return Spool.open(settings.spool_dir, durability="process")

"""One run: start a service, learn the right answers, ask and kill, wait, judge, write the journal.

Leaves a folder with journal, logs and spool, and no process.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
import uuid
from dataclasses import replace

from chaos.client import KINDS, Client
from chaos.flatness import Sampler, compare_thirds, marked_processes
from chaos.found import read_spool
from chaos.journal import Entry, Question
from chaos.killer import Killer, ServiceTrouble
from chaos.oracle import judge
from chaos.plan import Plan, make_overrides, make_question
from chaos.report import Outcome, recovery_times, report
from cluster.commands.stop import stop
from cluster.terminal import Terminal
from config import Settings, load_settings
from spool import Result, Spool

NUM_QUESTIONS = 24
PATIENCE_S = 300.0
KIND_WEIGHTS = (4, 3, 2, 2, 1, 1)  # of client.KINDS
POSTING_WEIGHTS = (4, 0, 2, 0, 0, 0)  # the same for questions that are not simple


class Run:
    """One run of a plan."""

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
        """Run the plan; leaves no process."""
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
        """Return the trouble of the service after the kills, if any; a journal follows in any case."""
        try:
            self.ask_and_kill()
            self.wait_for_the_queue()
        except ServiceTrouble as error:
            return str(error)
        return ""

    def learn_answers(self) -> None:
        """Ask the calm service each question once, alone."""
        generator = random.Random(self.plan.seed)
        for number in range(NUM_QUESTIONS):
            question = make_question(number, generator, self.plan.max_tokens)
            result = self._ask_calmly(question)
            self.questions[number] = replace(question, answer=result.token_ids)

    def _ask_calmly(self, question: Question) -> Result:
        entry = Entry(question.number, "wait", uuid.uuid4().hex, time.time())
        self.calm_entries.append(entry)
        Client(self.settings.api_port, PATIENCE_S).ask(question, entry)
        result = open_spool(self.settings).read_result(entry.ids[-1]) if entry.ids else None
        if result is None or result.error is not None:
            raise ServiceTrouble(f"the calm service does not answer: {entry.trouble}")
        return result

    def ask_and_kill(self) -> None:
        """Clients ask until the killer is done, then wait for their last answers."""
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
            weights = KIND_WEIGHTS if question.is_simple else POSTING_WEIGHTS
            kind = generator.choices(KINDS, weights)[0]
            leave_after = generator.randint(2, 20) if kind == "leaving" else 0
            entry = Entry(question.number, kind, uuid.uuid4().hex, time.time(), leave_after)
            self.entries.append(entry)
            client.ask(question, entry)

    def wait_for_the_queue(self) -> None:
        """Ask once more, behind all others, and wait for an empty queue, up to PATIENCE_S."""
        self._ask_calmly(self.questions[0])
        spool, pause = open_spool(self.settings), threading.Event()
        deadline = time.monotonic() + PATIENCE_S
        while (depth := spool.depth()).num_waiting + depth.num_active and time.monotonic() < deadline:
            pause.wait(0.2)

    def judge_all(self, trouble: str) -> Outcome:
        """Ask the oracle, and count leftovers."""
        everybody = [*self.calm_entries, *self.entries]
        spool = open_spool(self.settings)
        found, depth = read_spool(spool, [entry.key for entry in everybody]), spool.depth()
        return Outcome(
            verdict=judge(everybody, self.questions, found),
            growths=compare_thirds(self.sampler.samples),
            recoveries_s=recovery_times(self.killer.kills, self.token_times),
            num_left_in_queue=depth.num_waiting + depth.num_active,
            num_left_processes=len(list(marked_processes(self.marker))),
            killing_s=self.killing_s,
            trouble=trouble,
        )


def run(plan: Plan) -> int:
    """Run the plan; 0 if nothing was lost, doubled, contradicted, condemned or invalid, and nothing grew."""
    started = Run(plan)
    try:
        outcome = started.carry_out()
    except ServiceTrouble as error:
        print(f"no kills: {error}")
        return 1
    return report(plan, started.killer, started.entries, outcome)


def open_spool(settings: Settings) -> Spool:
    """The service's spool, to read results."""
    return Spool.open(settings.spool_dir, durability="process")

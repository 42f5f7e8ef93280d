"""Answers keep to their grammar, whatever else runs and whenever the ring ends; a bad grammar fails alone."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher, LLParserLimits
from msgspec.structs import replace
from tokenizers import decoders

from distributed.engine import constraints
from distributed.engine.constraints import Constraint, Grammar, GrammarRefused, Grammars, Masks, make_masks
from distributed.engine.drafting import PromptLookup
from distributed.engine.row_sampling import Mask
from spool import Request
from spool.names import MAX_SOLO_CRASHES, EntryName
from tests.fakes.checkpoints import make_tokenizer, shared_checkpoint
from tests.fakes.trained_tokenizers import train, train_words, with_decoder
from tests.services.engine_in_process import AtOnce, EngineInProcess

PROMPT = [72, 101, 108, 108, 111]
END = 257  # of the small checkpoints
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["circle", "square", "triangle"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 4},
        "name": {"type": "string", "maxLength": 8},
        "is_filled": {"type": "boolean"},
    },
    "required": ["kind", "sizes", "name", "is_filled"],
    "additionalProperties": False,
}
GRAMMAR = LLMatcher.grammar_from_json_schema(SCHEMA, overrides={"whitespace_flexible": False})
WORDS = 'start: word (" " word){30}\nword: "red" | "green" | "blue"\n'
# Remembering where the last a's were takes a state for each pattern of them.
MANY_STATES = LLMatcher.grammar_from_regex("[ab]*a[ab]{14}")
PANICS = LLMatcher.grammar_from_json_schema({"required": "😀" * 50})
DEADLY = LLMatcher.grammar_from_regex("deadly")
RULES = [{"temperature": 0.0}, {"temperature": 1.0}]


def by_regex(regex: str) -> str:
    return LLMatcher.grammar_from_regex(regex)


class Death(BaseException):
    """Stands for the end of the process."""


class Deadly(AtOnce):
    """Compiles at once, and dies of one grammar."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See Executor."""
        if args == (DEADLY,):
            raise Death
        return super().submit(fn, *args, **kwargs)


class Held(Executor):
    """Keeps jobs until `run`."""

    def __init__(self) -> None:
        self._jobs: list[Callable[[], None]] = []
        self._is_released = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See Executor."""
        future: Future[Any] = Future()
        self._jobs.append(lambda: future.set_result(fn(*args, **kwargs)))
        if self._is_released:
            self.run()
        return future

    @property
    def num_jobs(self) -> int:
        return len(self._jobs)

    def release(self) -> None:
        """Do all jobs, and later ones at once."""
        self._is_released = True
        self.run()

    def run(self) -> None:
        """Do all jobs."""
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job()


@pytest.fixture(scope="module")
def llama() -> Path:
    return shared_checkpoint("llama")


@pytest.fixture
def service(tmp_path: Path, llama: Path) -> Iterator[EngineInProcess]:
    with EngineInProcess(tmp_path, llama, 2) as made:
        yield made


@pytest.fixture
def held(tmp_path: Path, llama: Path) -> Iterator[tuple[EngineInProcess, Held]]:
    """A service whose grammars are compiled when the test says so."""
    made = EngineInProcess(tmp_path, llama, 2, poll_interval=50, shutdown_timeout=5)
    made.compiler = compiler = Held()
    with made:
        yield made, compiler


def grammars_of(folder: Path, tokenizer: Any, vocab_size: int, *ends: int) -> Grammars:
    tokenizer.save(str(folder / "tokenizer.json"))
    return Grammars(folder / "tokenizer.json", vocab_size, frozenset(ends), AtOnce())


def bytes_grammar(folder: Path, text: str, vocab_size: int = 320) -> Future[Grammar]:
    """A grammar for the tokenizer of the small checkpoints, which has a token for each byte."""
    return grammars_of(folder, make_tokenizer(), vocab_size, 256, END).compile(text)


def ids_of(text: str) -> list[int]:
    return list(make_tokenizer().encode(text, add_special_tokens=False).ids)


def has_tokens(service: EngineInProcess, request: Request, num_tokens: int) -> bool:
    return len(service.records(request)) >= num_tokens


def text_of(mask: Mask) -> str:
    """The allowed tokens in order, with $ for the end."""
    ids = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
    return "".join("$" if i == END else "^" if i == 256 else make_tokenizer().decode([i]) for i in ids)


def masks_after(constraint: Constraint, text: str, drafts: str = "") -> list[str]:
    """The allowed tokens after a whole answer so far, and after each draft."""
    (masks,) = make_masks([constraint.order([0, *ids_of(text)], 1, ids_of(drafts))]).values()
    return [text_of(mask) if mask.min() != -1 else "all" for mask in masks]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_answers_match_their_json_schema(service: EngineInProcess, rule: dict[str, float]) -> None:
    """Random weights give JSON that validates, and end by themselves, also where end tokens are ignored."""
    asked = [
        service.request([*PROMPT, i], max_tokens=300, seed=i, grammar=GRAMMAR, ignore_eos=i > 2, **rule)
        for i in range(6)
    ]
    for result in service.ask(*asked):
        assert result.finish_reason == "stop"
        jsonschema.validate(json.loads(result.text), SCHEMA)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_answers_match_a_regex_and_a_lark_grammar(service: EngineInProcess, rule: dict[str, float]) -> None:
    """Whatever the model would rather say."""
    regex = r"[a-f]{3}-[0-9]{2,5}"
    asked = [
        service.request(PROMPT, max_tokens=200, seed=3, grammar=grammar, **rule)
        for grammar in (by_regex(regex), WORDS)
    ]
    coded, words = service.ask(*asked)
    assert re.fullmatch(regex, coded.text), coded.text
    assert re.fullmatch("(red|green|blue)( (red|green|blue)){30}", words.text), words.text


def test_a_length_and_a_stop_string_end_an_answer_as_ever(service: EngineInProcess) -> None:
    """Its text is a beginning of what the grammar allows."""
    long = service.request(PROMPT, max_tokens=9, grammar=WORDS)
    stopped = service.request(PROMPT, max_tokens=200, grammar=WORDS, stop=(" ",))
    cut, word = service.ask(long, stopped)
    assert (cut.finish_reason, len(cut.token_ids)) == ("length", 9)
    assert (word.finish_reason, word.text in ("red", "green", "blue")) == ("stop", True)


def test_an_ignored_end_comes_only_where_nothing_else_may(service: EngineInProcess) -> None:
    """With ignore_eos an answer takes all that the grammar offers."""
    grammar = by_regex("x{2,30}")
    (result,) = service.ask(service.request(PROMPT, max_tokens=99, grammar=grammar, ignore_eos=True))
    assert (result.text, result.finish_reason) == ("x" * 30, "stop")


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_drafts_change_no_token(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: dict[str, float]
) -> None:
    """Right drafts save laps, and drafts that the grammar forbids are only wrong."""
    monkeypatch.setattr(PromptLookup, "note_cost", lambda *_: None)  # a wide step costs no more
    prompt = ids_of("red green blue red green blue red red red green green ")
    answers, num_laps = [], []
    for speculation in ("off", "prompt-lookup"):
        with EngineInProcess(tmp_path / speculation, llama, 2, speculation=speculation) as service:
            (result,) = service.ask(service.request(prompt, max_tokens=300, seed=8, grammar=WORDS, **rule))
        answers.append(result.token_ids)
        num_laps.append(result.performance["ranks"][1]["num_frames"])
    assert answers[0] == answers[1]
    assert num_laps[1] < 0.8 * num_laps[0]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_an_answer_goes_on_by_its_grammar_after_a_kill(
    service: EngineInProcess, rule: dict[str, float]
) -> None:
    """Kills at any token change nothing: the log is all that a new ring needs."""
    fields: dict[str, Any] = {"max_tokens": 300, "seed": 5, "grammar": GRAMMAR, **rule}
    (whole,) = service.ask(service.request(PROMPT, **fields))
    service.submit(request := service.request(PROMPT, **fields))
    for num_tokens in range(3, len(whole.token_ids) - 2, 7):
        service.run_until(partial(has_tokens, service, request, num_tokens))
        service.kill()
        service.start()
    (result,) = service.results(request)
    assert (result.text, result.token_ids) == (whole.text, whole.token_ids)


def test_a_grammar_that_cannot_be_compiled_fails_alone(service: EngineInProcess) -> None:
    """With 400 and a reason; its neighbour's tokens are those of its solo run."""
    (alone,) = service.ask(service.request(PROMPT))
    bad = LLMatcher.grammar_from_json_schema({"not": {"type": "string"}})
    failed, other = service.ask(service.request(PROMPT, grammar=bad), service.request(PROMPT))
    assert failed.error is not None
    assert (failed.error["code"], failed.error["status"]) == ("grammar_refused", 400)
    assert "not" in failed.error["message"]
    assert other.token_ids == alone.token_ids


def test_a_compile_that_breaks_fails_alone_too(
    service: EngineInProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A crash would come again at each start, because the request stays accepted."""
    with monkeypatch.context() as patch:
        patch.setattr(Grammar, "_compile", lambda _: 1 // 0)
        failed, other = service.ask(service.request(PROMPT, grammar=GRAMMAR), service.request(PROMPT))
    assert failed.error is not None
    assert failed.error["code"] == "grammar_refused"
    assert other.error is None
    assert "broke the compile" in caplog.text


def test_a_panic_of_a_compile_fails_alone_too(service: EngineInProcess) -> None:
    """A front door refuses such a schema, but the spool may hold one."""
    failed, other = service.ask(service.request(PROMPT, grammar=PANICS), service.request(PROMPT))
    assert failed.error is not None
    assert (failed.error["code"], failed.error["status"]) == ("grammar_refused", 400)
    assert "not a char boundary" in failed.error["message"]
    assert other.error is None


@pytest.mark.parametrize("breaks", [lambda: 1 // 0, lambda: LLMatcher.validate_grammar(PANICS)])
@pytest.mark.parametrize("num_good", [0, 5])
def test_masks_that_cannot_be_made_fail_one_answer_alone(
    service: EngineInProcess,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    breaks: Callable[[], object],
    num_good: int,
) -> None:
    """An error or a panic in the thread of the masks; the other answers of the microbatch go on."""
    make, bad = Constraint._make, by_regex("b{90}")

    def make_or_break(self: Constraint, grammar: Grammar, drafts: Sequence[int]) -> Masks:
        if grammar._text == bad and len(self._token_ids) >= num_good:
            breaks()
        return make(self, grammar, drafts)

    good = [service.request(PROMPT, max_tokens=60, grammar=WORDS), service.request(PROMPT, max_tokens=60)]
    whole = service.ask(*good)
    monkeypatch.setattr(Constraint, "_make", make_or_break)
    good = [service.request(PROMPT, max_tokens=60, grammar=WORDS), service.request(PROMPT, max_tokens=60)]
    failed, *others = service.ask(service.request(PROMPT, max_tokens=60, grammar=bad), *good)
    assert failed.error is not None
    assert (failed.error["code"], failed.error["status"]) == ("grammar_failed", 400)
    assert [result.token_ids for result in others] == [result.token_ids for result in whole]
    assert "masks of an answer cannot be made" in caplog.text


def test_masks_go_on_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry without drafts begins anew with all tokens so far."""
    constraint = Constraint(bytes_grammar(tmp_path, by_regex("ab[cd]*e")))
    assert masks_after(constraint, "a") == ["b"]
    with monkeypatch.context() as patch:
        patch.setattr(Grammar, "begin", lambda _: 1 // 0)
        patch.setattr(Constraint, "_find_error", lambda *_: 1 // 0)
        assert masks_after(constraint, "ab", "c") == ["", ""]
    assert constraint.error is not None
    assert masks_after(constraint, "ab") == ["cde"]
    assert constraint.error is None


def run_with_crashes(service: EngineInProcess, *requests: Request) -> tuple[int, set[str]]:
    """Run until all have ended, with a new ring after each death.

    Returns:
        How many rings died, and the ids of the requests that were ever blamed for one alone.
    """
    num_deaths, blamed = 0, set[str]()
    while not all(map(service.result, requests)):
        try:
            service.results(*requests)
        except Death:
            num_deaths += 1
            assert num_deaths < 20
            service.kill()
            service.start()
            names = [EntryName.parse(path.name) for path in service.settings.spool_dir.glob("incoming/*")]
            blamed |= {name.id for name in names if name is not None and name.num_solo_crashes}
    return num_deaths, blamed


@pytest.mark.parametrize("place", range(4))
def test_a_grammar_whose_compile_ends_the_ring_is_poison_and_its_neighbours_are_not(
    llama: Path, tmp_path: Path, place: int
) -> None:
    """Wherever it stands in the queue: the third death in its own compile, alone, is the last."""
    service = EngineInProcess(tmp_path, llama, 2)
    service.compiler = Deadly()
    with service:
        fields: dict[str, Any] = {"max_tokens": 40, "seed": 5}
        asked = [
            service.request(PROMPT, **fields),
            service.request(PROMPT, grammar=GRAMMAR, **fields),
            service.request(PROMPT, grammar=WORDS, **fields),
        ]
        whole = service.ask(*asked)
        others = [replace(request, id=f"{number:032x}") for number, request in enumerate(asked)]
        killer = service.request(PROMPT, grammar=DEADLY, **fields)
        service.submit(*others[:place], killer, *others[place:])
        num_deaths, blamed = run_with_crashes(service, killer, *others)
        (poisoned,) = service.results(killer)
        assert poisoned.error is not None
        assert poisoned.error["code"] == "poison"
        assert (num_deaths, blamed) == (1 + MAX_SOLO_CRASHES, {killer.id})
        assert [result.token_ids for result in service.results(*others)] == [
            result.token_ids for result in whole
        ]


def test_a_new_request_does_not_compile_beside_a_suspect(llama: Path, tmp_path: Path) -> None:
    """Its deaths are its own, also where it comes first: the suspect is innocent and answers."""
    service = EngineInProcess(tmp_path, llama, 2)
    service.compiler = Deadly()
    with service:
        suspects = [service.request([*PROMPT, i], grammar=[None, GRAMMAR][i]) for i in range(2)]
        service.submit(*suspects)
        service.run_until(lambda: len(service.writer.answers) == 2)
        service.kill()
        service.start()
        killer = replace(service.request(PROMPT, grammar=DEADLY), priority=0)
        service.submit(killer)
        num_deaths, blamed = run_with_crashes(service, killer, *suspects)
        assert all(result.error is None for result in service.results(*suspects))
        assert (num_deaths, blamed) == (1 + MAX_SOLO_CRASHES, {killer.id})


def test_a_suspect_waits_for_the_compiles_that_began_before_it(held: tuple[EngineInProcess, Held]) -> None:
    """And the next ones wait for its first token, without a loss."""
    service, compiler = held
    service.submit(suspect := service.request(PROMPT))
    service.owner.claim(1)
    service.kill()
    service.start()
    first = replace(service.request(PROMPT, max_tokens=300, grammar=GRAMMAR), priority=0)
    service.submit(first)
    claim = service.owner.claim
    with pytest.MonkeyPatch.context() as patch:  # one a call: the new one is claimed before the suspect
        patch.setattr(service.owner, "claim", lambda num, **rest: claim(min(num, 1), **rest))
        for _ in range(3):
            service.advance(60)
        assert len(service.writer.answers) == 2
        assert service.scheduler.num_open == 0
        service.submit(last := service.request(PROMPT, grammar=by_regex("a{5}")))
        service.advance(60)
        assert compiler.num_jobs == 1
    compiler.release()
    for result in service.results(suspect, first, last):
        assert result.error is None


def test_a_suspect_whose_grammar_is_refused_fails_alone(service: EngineInProcess) -> None:
    """Its compile begins only when it runs."""
    bad = LLMatcher.grammar_from_json_schema({"not": {"type": "string"}})
    service.submit(failed := service.request(PROMPT, grammar=bad), other := service.request(PROMPT))
    for claim in service.owner.claim(2):
        assert claim.request.id in (failed.id, other.id)
    service.kill()
    service.start()
    refused, answered = service.results(failed, other)
    assert refused.error is not None
    assert "cannot be compiled" in refused.error["message"]
    assert answered.error is None


def test_a_grammar_that_fails_on_the_way_fails_alone(
    service: EngineInProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same grammar still serves another answer, and the tokens so far are in the log."""
    limits = LLParserLimits(max_lexer_states=150, verbose_errors=False)
    monkeypatch.setattr(constraints, "make_limits", lambda: limits)
    fields: dict[str, Any] = {"grammar": MANY_STATES, "ignore_eos": True, "temperature": 1.0, "seed": 1}
    long = service.request(PROMPT, max_tokens=1000, **fields)
    short = service.request(PROMPT, max_tokens=20, **fields)
    plain = service.request(PROMPT, max_tokens=200)
    failed, cut, other = service.ask(long, short, plain)
    assert failed.error is not None
    assert (failed.error["code"], failed.error["status"]) == ("grammar_failed", 400)
    assert "too many states" in failed.error["message"]
    assert len(service.records(long)) > 50
    assert (cut.finish_reason, other.error) == ("length", None)
    assert service.ask(service.request(PROMPT, max_tokens=20, **fields))[0].text == cut.text


def test_a_compile_holds_up_nothing_and_wakes_the_loop(held: tuple[EngineInProcess, Held]) -> None:
    """Others are answered meanwhile; the answer begins long before the next poll."""
    service, compiler = held
    slow, plain = service.request(PROMPT, max_tokens=300, grammar=GRAMMAR), service.request(PROMPT)
    service.submit(slow)
    service.ask(plain)
    assert service.records(slow) == []
    assert service.scheduler.num_open == 0
    service.advance(2)
    assert service.status()["queue"]["num_waiting"] == 1
    service.step()
    start = service.clock.now
    compiler.run()
    (result,) = service.results(slow)
    assert service.clock.now - start < 2
    jsonschema.validate(json.loads(result.text), SCHEMA)


def test_the_same_grammar_is_compiled_once(held: tuple[EngineInProcess, Held]) -> None:
    """For requests at the same time and later, until others have taken its place."""
    service, compiler = held
    same = [service.request([*PROMPT, i], max_tokens=300, grammar=GRAMMAR) for i in range(3)]
    service.submit(*same)
    service.step()
    assert compiler.num_jobs == 1
    compiler.run()
    service.results(*same)
    service.ask(service.request(PROMPT, max_tokens=300, grammar=GRAMMAR))
    assert compiler.num_jobs == 0


def test_answers_that_wait_for_their_grammar_keep_their_rows(llama: Path, tmp_path: Path) -> None:
    """Rank 0 claims no more requests than it has rows for."""
    service = EngineInProcess(tmp_path, llama, 1, microbatches=1, max_rows_per_microbatch=2)
    service.compiler = compiler = Held()
    with service:
        slow = [service.request([*PROMPT, i], max_tokens=300, grammar=GRAMMAR) for i in range(2)]
        plain = service.request(PROMPT)
        service.submit(*slow)
        service.step()
        service.submit(plain)
        service.advance(60)
        assert len(service.writer.answers) == 2
        compiler.run()
        assert all(result.error is None for result in service.results(*slow, plain))


def test_a_request_can_be_cancelled_while_its_grammar_is_compiled(held: tuple[EngineInProcess, Held]) -> None:
    """The compile's end changes nothing any more."""
    service, compiler = held
    service.submit(slow := service.request(PROMPT, grammar=GRAMMAR))
    service.step()
    assert service.cancel(slow)
    (result,) = service.results(slow)
    assert (result.finish_reason, result.text) == ("cancelled", "")
    compiler.run()
    (other,) = service.ask(service.request(PROMPT, max_tokens=300, grammar=GRAMMAR))
    assert other.finish_reason == "stop"


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_a_request_outlives_a_ring_that_ends_while_its_grammar_is_compiled(
    held: tuple[EngineInProcess, Held], ending: str
) -> None:
    """A drain does not wait for it; the next ring compiles it anew."""
    service, _ = held
    service.submit(slow := service.request(PROMPT, max_tokens=300, grammar=GRAMMAR))
    service.step()
    getattr(service, ending)()
    assert service.spool().depth().num_waiting == (1 if ending == "stop" else 0)
    service.compiler = AtOnce()
    service.start()
    (result,) = service.results(slow)
    jsonschema.validate(json.loads(result.text), SCHEMA)


def test_plain_and_constrained_rows_work_side_by_side(llama: Path, tmp_path: Path) -> None:
    """16 of each, with KV for a few: rows are preempted, and each answer is that of its solo run."""
    settings: dict[str, Any] = {
        "kv_cache_reserved_memory_mb": 1,
        "max_rows_per_microbatch": 16,
        "kv_cache_max_size": 0,
    }
    with EngineInProcess(tmp_path, llama, 2, **settings) as service:
        rows: list[dict[str, Any]] = [{}, {"grammar": GRAMMAR}, {"temperature": 1.0}]
        rows += [{"grammar": WORDS, "temperature": 1.0}]

        def make(number: int) -> Any:
            prompt = [(7 * number + i) % 250 for i in range(60)]
            return service.request(prompt, max_tokens=160, seed=number, **rows[number % 4])

        alone = [service.ask(make(number))[0] for number in range(32)]
        assert service.scheduler.num_preemptions == 0
        together = service.ask(*(make(number) for number in range(32)))
        assert service.scheduler.num_preemptions > 0
    assert [result.token_ids for result in together] == [result.token_ids for result in alone]


def test_a_mask_is_a_function_of_the_tokens_so_far(tmp_path: Path) -> None:
    """Drafts leave no trace, and a new constraint that is given all tokens at once agrees."""
    grammar = bytes_grammar(tmp_path, by_regex("ab[cd]*e"))
    constraint = Constraint(grammar)
    assert masks_after(constraint, "") == ["a"]
    assert masks_after(constraint, "", "abx") == ["a", "b", "cde", "all"]
    assert masks_after(constraint, "abc", "ec") == ["cde", "^$", "all"]
    assert masks_after(constraint, "abc") == ["cde"]
    assert masks_after(Constraint(grammar), "abc", "d") == ["cde", "cde"]
    assert constraint.error is None


def test_end_tokens_are_allowed_where_the_grammar_may_end(tmp_path: Path) -> None:
    """All of them; one that is ignored only where nothing else is allowed."""
    grammar = bytes_grammar(tmp_path, by_regex("a{1,2}"))
    assert masks_after(Constraint(grammar), "", "aa") == ["a", "a^$", "^$"]
    assert masks_after(Constraint(grammar, ignores_end=True), "", "aa") == ["a", "a", "^$"]


def test_padding_of_the_vocabulary_is_never_allowed(tmp_path: Path) -> None:
    """A model may have more ids than its tokenizer."""
    constraint = Constraint(bytes_grammar(tmp_path, by_regex("(.|\n)*"), vocab_size=1000))
    (masks,) = make_masks([constraint.order([], 0, [])]).values()
    assert masks.shape == (1, 32)
    assert not np.unpackbits(masks[0].view(np.uint8), bitorder="little")[320:].any()


def test_a_lexer_that_one_answer_has_filled_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers by one grammar share a lexer, which keeps each state it has met; new ones share a new one."""
    limits, num_compiles = LLParserLimits(max_lexer_states=150, verbose_errors=False), itertools.count()
    monkeypatch.setattr(constraints, "make_limits", lambda: (limits, next(num_compiles))[0])
    grammar = bytes_grammar(tmp_path, MANY_STATES)
    beginner, filler = Constraint(grammar), Constraint(grammar)
    assert masks_after(beginner, "a") == ["ab"]
    text = "".join(np.random.default_rng(3).choice(["a", "b"], 600))
    num_good = next(i for i in range(600) if masks_after(filler, text[:i]) == [""])
    assert filler.error is not None and "too many states" in filler.error
    assert num_good > 50
    assert masks_after(beginner, "ab" * 8 + "b") == ["ab^$"]
    assert beginner.error is None
    before = next(num_compiles)
    for _ in range(3):
        assert masks_after(Constraint(grammar), "ab" * 8 + "b") == ["ab^$"]
    assert next(num_compiles) == before + 2


def test_a_chain_of_many_rules_needs_no_deep_stack_of_its_threads(tmp_path: Path) -> None:
    """llguidance recurses over rules that name each other; on a thread's own stack that ends the process."""
    rules = "".join(f"r{number}: r{number + 1}\n" for number in range(20_000))
    constraint = Constraint(bytes_grammar(tmp_path, f'start: r0\n{rules}r20000: "a"\n'))
    assert masks_after(constraint, "", "a") == ["a", "^$"]


def test_a_tokenizer_with_merges_gives_json_that_validates(tmp_path: Path) -> None:
    """Tokens of many bytes are allowed where all of them are; any allowed walk is a valid answer."""
    tokenizer = with_decoder(train(), decoders.ByteLevel())
    vocab_size, end = tokenizer.get_vocab_size(), tokenizer.token_to_id("<|im_end|>")
    grammar = grammars_of(tmp_path, tokenizer, vocab_size, end).compile(GRAMMAR)
    source = np.random.default_rng(3)
    for _ in range(20):
        constraint, answer = Constraint(grammar), [0]
        while answer[-1] != end:
            (masks,) = make_masks([constraint.order(answer, 1, [])]).values()
            allowed = np.flatnonzero(np.unpackbits(masks[0].view(np.uint8), bitorder="little"))
            answer.append(int(source.choice(allowed)))
        jsonschema.validate(json.loads(tokenizer.decode(answer[1:])), SCHEMA)


def test_a_model_that_cannot_end_or_write_bytes_has_no_grammars(tmp_path: Path) -> None:
    """Each is refused with its reason."""
    with pytest.raises(GrammarRefused, match="no end token"):
        grammars_of(tmp_path, make_tokenizer(), 320).compile(GRAMMAR).result()
    with pytest.raises(GrammarRefused, match="tokenizer cannot be used"):
        grammars_of(tmp_path, train_words(None), 20, 1).compile(GRAMMAR).result()

"""Calls on a deep stack: what they return and raise, and that other threads keep theirs."""

import threading
from functools import partial

import pytest
from llguidance import LLMatcher

from config.deep_stack import LibraryPanic, run_deep


def test_a_call_returns_and_raises_as_ever() -> None:
    """Also what is no Exception."""

    def fail(error: BaseException) -> None:
        raise error

    assert run_deep(lambda: 7) == 7
    for error in (ValueError("no"), SystemExit(3)):
        with pytest.raises(type(error)):
            run_deep(partial(fail, error))
    assert threading.stack_size() == 0


def test_a_panic_of_rust_code_is_an_exception() -> None:
    """Its class is a BaseException without a place to import it from."""
    grammar = LLMatcher.grammar_from_json_schema({"required": "😀" * 50})
    with pytest.raises(LibraryPanic, match="not a char boundary"):
        run_deep(partial(LLMatcher.validate_grammar, grammar))


def test_a_call_runs_even_where_no_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory for the stack, on the caller's."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert run_deep(threading.get_ident) == threading.get_ident()
    assert threading.stack_size() == 0

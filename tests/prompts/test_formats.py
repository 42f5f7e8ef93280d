"""The grammars of answers: valid for llguidance, and they accept what they should and no more."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from prompts.answer_parts import Tool
from prompts.formats import Formats
from prompts.grammars import json_object_grammar, json_schema_grammar, lark_grammar, regex_grammar
from prompts.reasoning import ReasoningTags
from prompts.tool_families import GENERIC
from tests.services.frontdoor_service import make_model_folder

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"oneOf": [{"enum": ["c", "f"]}, {"type": "null"}]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = (Tool("weather", "", CITY), Tool("time"))
PARIS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "time", "arguments": {"at": [1, {}]}}\n</tool_call>'
THINK = ReasoningTags("<think>", "</think>")

Accepts = Callable[[str | None, str], bool]


@pytest.fixture(scope="module")
def accepts(tmp_path_factory: pytest.TempPathFactory) -> Accepts:
    """Whether a grammar accepts a whole text; its tokenizer has one token a byte."""
    folder = make_model_folder(tmp_path_factory.mktemp("model"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    guide = LLTokenizer(tokenizer.to_str())

    def accepts(grammar: str | None, text: str) -> bool:
        assert grammar is not None
        assert not LLMatcher.validate_grammar(grammar, guide)
        matcher = LLMatcher(guide, grammar, log_level=0)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    return accepts


def grammar(
    choice: str = "auto",
    *,
    tools: tuple[Tool, ...] = TOOLS,
    content: str | None = None,
    parallel: bool = False,
    reasoning: ReasoningTags | None = None,
    is_thinking: bool = False,
) -> str | None:
    formats = Formats(GENERIC, reasoning, {}, frozenset())
    return formats.grammar(tools, choice=choice, parallel=parallel, content=content, is_thinking=is_thinking)


def test_required_is_one_call_of_any_tool(accepts: Accepts) -> None:
    """Its arguments match the tool's schema; a tool without one takes any object."""
    required = grammar("required")
    assert accepts(required, PARIS)
    assert accepts(required, TIME)
    for text in ("", "Hello", "{}", PARIS + TIME, PARIS[:-1], PARIS.replace("city", "town")):
        assert not accepts(required, text)
    assert not accepts(required, PARIS.replace("weather", "whether"))
    assert not accepts(required, PARIS.replace('"Paris"', "7"))


def test_several_calls_are_allowed_where_they_are_wanted(accepts: Accepts) -> None:
    """With white space between them."""
    several = grammar("required", parallel=True)
    assert accepts(several, f"{PARIS}\n{TIME}\n{PARIS}")
    assert accepts(several, PARIS)
    assert not accepts(several, f"{PARIS} and {TIME}")


def test_only_strict_tools_must_be_enforced_to_the_last_word(accepts: Accepts) -> None:
    """Keywords that llguidance does not know are ignored elsewhere; arguments are always an object."""
    schema = {"properties": {"city": {"type": "string", "not": {"const": "Rome"}}}, "required": ["city"]}
    assert accepts(grammar("required", tools=(Tool("weather", "", schema),)), PARIS)
    refused = grammar("required", tools=(Tool("weather", "", schema, is_strict=True),))
    assert refused is not None
    assert LLMatcher.validate_grammar(refused)
    text = PARIS.replace('{"city": "Paris"}', '"Paris"')
    assert not accepts(grammar("required", tools=(Tool("weather", "", {"type": "string"}),)), text)


def test_a_name_allows_this_tool_only(accepts: Accepts) -> None:
    """tool_choice with a function's name."""
    assert accepts(grammar("time"), TIME)
    assert not accepts(grammar("time"), PARIS)


def test_nothing_is_constrained_where_nobody_asked() -> None:
    """Free choice without strict tools, and no wish for the content."""
    assert grammar("auto", parallel=True) is None
    assert grammar("none") is None


def test_constrained_content_stands_beside_calls(accepts: Accepts) -> None:
    """A call or the content, and no free text."""
    either = grammar("auto", content=json_schema_grammar(CITY))
    assert accepts(either, PARIS)
    assert accepts(either, '{"city": "Paris", "unit": "c"}')
    assert not accepts(either, "Hello")
    alone = grammar("none", content=json_schema_grammar(CITY))
    assert accepts(alone, '{"city": "Paris"}')
    assert not accepts(alone, PARIS)


def test_reasoning_comes_before_what_is_constrained(accepts: Accepts) -> None:
    """Free text up to the closing tag; the model may also begin at once, unless the prompt opened the tag."""
    open_tag = grammar("required", reasoning=THINK, is_thinking=True)
    assert accepts(open_tag, f'hm {{"a"\n</think>\n\n{PARIS}')
    assert not accepts(open_tag, PARIS)
    may = grammar("required", reasoning=THINK)
    assert accepts(may, PARIS)
    assert accepts(may, f"<think>\nhm\n</think>\n\n{PARIS}")
    assert not accepts(may, f"hm {PARIS}")
    content = grammar("none", content=regex_grammar("[0-9]+"), reasoning=THINK, is_thinking=True)
    assert accepts(content, "hm</think>12")
    assert not accepts(content, "hm</think>twelve")


@pytest.mark.parametrize(
    ("content", "good", "bad"),
    [
        (json_schema_grammar(CITY), '{"city": "x", "unit": null}', "{}"),
        (json_object_grammar(), '{"a": [1]}', "[1]"),
        (regex_grammar("a/b\\/[c/]+"), "a/b/c/", "a/b/"),
        (lark_grammar('start: "yes" | NO\nNO: /no+/'), "nooo", "y"),
    ],
)
def test_grammars_of_clients(accepts: Accepts, content: str, good: str, bad: str) -> None:
    """Alone, and inside the grammar of an answer."""
    for text in (content, grammar("none", content=content)):
        assert accepts(text, good)
        assert not accepts(text, bad)


def test_special_tokens_are_written_by_id(tmp_path: Path) -> None:
    """A tag that is one special token is that token: its characters are refused, as in free text."""
    folder = make_model_folder(tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tags = ["<tool_call>", "</tool_call>", "</think>"]
    by_characters = tokenizer.encode(PARIS).ids
    tokenizer.add_tokens(tags)
    ids: dict[str, Any] = {tag: tokenizer.token_to_id(tag) for tag in tags}
    formats = Formats(GENERIC, THINK, ids, frozenset())
    written = formats.grammar(TOOLS, choice="required", parallel=False, content=None, is_thinking=True)
    assert written is not None
    guide = LLTokenizer(tokenizer.to_str())
    assert not LLMatcher.validate_grammar(written, guide)
    matcher = LLMatcher(guide, written, log_level=0)
    thought = tokenizer.encode("hm</think>\n").ids
    assert matcher.consume_tokens(thought)
    assert matcher.try_consume_tokens(by_characters) < len(by_characters)
    whole = tokenizer.encode(PARIS).ids
    matcher = LLMatcher(guide, written, log_level=0)
    assert matcher.try_consume_tokens([*thought, *whole]) == len(thought) + len(whole)
    assert matcher.is_accepting()

"""Reasoning, content and tool calls in an answer, whatever pieces its text comes in."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.answer_parts import AnswerPart, CallArguments, CallStart, Content, Reasoning, Tool
from prompts.answer_reader import AnswerReader
from prompts.reasoning import ReasoningTags
from prompts.tool_families import GENERIC, named_format
from tests.prompts.answers import read

TOOLS = (Tool("weather", "", {"properties": {"city": {"type": "string"}}}), Tool("time"))
THINK = ReasoningTags("<think>", "</think>")
PARIS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
PARIS_PARTS = [CallStart(0, "weather"), CallArguments(0, '{"city": "Paris"}')]


def whole(text: str) -> list[AnswerPart]:
    return read(AnswerReader(GENERIC, TOOLS), [text])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Hello\n", [Content("Hello\n")]),
        (PARIS, PARIS_PARTS),
        (f"\n{PARIS}\n\n{TIME}\n", [*PARIS_PARTS, CallStart(1, "time"), CallArguments(1, "{}")]),
        (f"Let me look.\n\n{PARIS}\nDone. ", [Content("Let me look."), *PARIS_PARTS, Content("Done. ")]),
        (PARIS.removesuffix("</tool_call>"), PARIS_PARTS),
        (PARIS.removesuffix("}\n</tool_call>"), PARIS_PARTS),
        (PARIS.replace("\n", ""), PARIS_PARTS),
        (PARIS.replace("arguments", "parameters"), PARIS_PARTS),
        (PARIS.replace("}}", '}, "id": 7}'), PARIS_PARTS),
        (PARIS + " and more", [*PARIS_PARTS, Content("and more")]),
        (
            PARIS.removesuffix("\n</tool_call>") + TIME,
            [*PARIS_PARTS, CallStart(1, "time"), CallArguments(1, "{}")],
        ),
    ],
)
def test_calls_and_content_are_told_apart(text: str, parts: list[AnswerPart]) -> None:
    """Tags and the white space beside calls belong to neither; a missing end is no loss."""
    assert whole(text) == parts


@pytest.mark.parametrize(
    "body",
    [
        '{"arguments": {"city": "Paris"}, "name": "weather"}',
        '{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}',
        '{"id": 1, "name": "weather", "arguments": {"city": "Paris"}}',
        '{"name": "w\\u0065ather", "arguments": {"city": "Paris"}}',
    ],
)
def test_a_call_in_another_order_is_read_whole(body: str) -> None:
    """Also if its closing tag never comes."""
    assert whole(f"<tool_call>{body}</tool_call>") == PARIS_PARTS
    assert whole(f"<tool_call>{body}") == PARIS_PARTS


@pytest.mark.parametrize(
    "text",
    [
        "a < b, a <tool b",
        "<tool_call>",
        "so: <tool_call>\n{",
        '<tool_call>\n{"name": "weather", "argu',
        "the tags <tool_call> and </tool_call> are words",
        "<tool_call>[1]</tool_call>",
        '<tool_call>{"name": 7, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": 7}</tool_call>',
        "  <tool_call>{]</tool_call>  ",
        " \n",
    ],
)
def test_what_is_no_call_is_content(text: str) -> None:
    """With its tags and white space: nothing is lost, and nothing comes twice."""
    assert whole(text) == [Content(text)]


@pytest.mark.parametrize("arguments", ["", ', "arguments": null', ', "arguments": ""'])
def test_a_call_may_have_no_arguments(arguments: str) -> None:
    """Which is an empty object."""
    call = f'<tool_call>{{"name": "time"{arguments}}}</tool_call>'
    assert whole(call) == [CallStart(0, "time"), CallArguments(0, "{}")]


def test_half_a_character_stays_an_escape() -> None:
    """So that the arguments can be sent."""
    call = '<tool_call>{"id": 1, "name": "time", "arguments": {"a": "\\ud83d", "b": "\\u00e9"}}</tool_call>'
    assert whole(call) == [CallStart(0, "time"), CallArguments(0, '{"a": "\\ud83d", "b": "\\u00e9"}')]


def test_a_tag_in_the_content_hides_no_call() -> None:
    """The real call after it is found."""
    text = "I write <tool_call> first. "
    assert whole(text + PARIS) == [Content(text.rstrip()), *PARIS_PARTS]
    broken = "<tool_call>{broken"
    assert whole(broken + PARIS) == [Content(broken), *PARIS_PARTS]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Bob", "parameters": {"age": 3}}',
        '{"name": "Bob", "age": 3}',
        '{"city": "Paris"}',
        "{ }",
        ' {"name": "time", "parameters": 3}',
    ],
)
def test_json_without_a_tag_is_a_call_only_with_the_name_of_a_tool(text: str) -> None:
    """Llama models write no tag, so other JSON is content."""
    assert read(AnswerReader(named_format("llama3"), TOOLS), [text]) == [Content(text)]
    call = '{"name": "time", "parameters": {}}'
    parts = [CallStart(0, "time"), CallArguments(0, "{}")]
    assert read(AnswerReader(named_format("llama3"), TOOLS), [call]) == parts
    assert read(AnswerReader(named_format("llama3"), TOOLS), [f"<|python_tag|>{call}"]) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes",
            [Reasoning("hm"), Content("yes")],
        ),
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>I look."
            "<|end|><|start|>assistant<|channel|>analysis<|message|>so<|end|><|start|>assistant"
            '<|channel|>commentary to=functions.time <|constrain|>json<|message|>{"a": 1}<|call|>',
            [
                *(Reasoning("hm"), Content("I look."), Reasoning("so")),
                *(CallStart(0, "time"), CallArguments(0, '{"a": 1}')),
            ],
        ),
        (
            " to=functions.time<|channel|>commentary json<|message|>{}",
            [CallStart(0, "time"), CallArguments(0, "{}")],
        ),
    ],
)
def test_channels_of_harmony(text: str, parts: list[AnswerPart]) -> None:
    """Analysis is reasoning, wherever it stands; final and commentary are content."""
    tags = ReasoningTags("<|channel|>analysis<|message|>", "<|end|><|start|>assistant")
    assert read(AnswerReader(named_format("harmony"), TOOLS, tags), [text]) == parts


def test_braces_and_tags_in_strings_end_nothing() -> None:
    """The arguments are JSON: only braces outside of strings count."""
    arguments = json.dumps({"a": 'x}} "</tool_call>\\', "b": [{"}": "{"}, []]})
    text = f'<tool_call>\n{{"name": "time", "arguments": {arguments}}}\n</tool_call> ok'
    assert whole(text) == [CallStart(0, "time"), CallArguments(0, arguments), Content("ok")]


def test_arguments_come_while_they_are_written() -> None:
    """The name as soon as the arguments begin, and then each piece."""
    reader = AnswerReader(GENERIC, TOOLS)
    assert reader.add('<tool_call>\n{"name": "weather", ') == []
    assert reader.add('"arguments": {"ci') == [CallStart(0, "weather"), CallArguments(0, '{"ci')]
    assert reader.num_calls == 1
    assert reader.add('ty": "Pa') == [CallArguments(0, 'ty": "Pa')]
    assert reader.finish() == []  # what was sent stays: the reason of the end says that it broke off


def test_text_that_cannot_begin_a_tag_comes_at_once() -> None:
    """Only the beginning of a tag waits, with the white space before it."""
    reader = AnswerReader(GENERIC, TOOLS)
    assert reader.add("one \n") == [Content("one")]
    assert reader.add("two <tool") == [Content(" \ntwo")]
    assert reader.add("s>") == [Content(" <tools>")]


def test_without_tools_and_reasoning_an_answer_is_content_as_it_comes() -> None:
    """Tags are text, and nothing waits."""
    assert AnswerReader(None).add(" <tool_call> <think> \n") == [Content(" <tool_call> <think> \n")]


@pytest.mark.parametrize(
    ("text", "is_thinking", "parts"),
    [
        ("hm\n</think>\n\nyes", True, [Reasoning("hm"), Content("yes")]),
        ("\n<think>\nhm\n</think>\n\nyes\n", False, [Reasoning("hm"), Content("yes\n")]),
        ("<think>\n\n</think>\n\nyes", False, [Content("yes")]),
        ("yes <think>no</think>", False, [Content("yes <think>no</think>")]),
        ("\n yes", False, [Content("\n yes")]),
        ("hm", True, [Reasoning("hm")]),
        ("<think>hm </thi", False, [Reasoning("hm </thi")]),
        ("<thi", False, [Content("<thi")]),
        (f"hm {TIME}</think>{PARIS}", True, [Reasoning(f"hm {TIME}"), *PARIS_PARTS]),
    ],
)
def test_reasoning_is_told_from_content(text: str, is_thinking: bool, parts: list[AnswerPart]) -> None:
    """At the start of an answer only; the white space around its tags is dropped."""
    assert read(AnswerReader(GENERIC, TOOLS, THINK, is_thinking=is_thinking), [text]) == parts


FRAGMENTS = st.sampled_from(
    [
        *(
            PARIS,
            TIME,
            "<tool_call>",
            "</tool_call>",
            "<think>",
            "</think>",
            "\n",
            "  ",
            "<",
            "{",
            "}",
            '"',
            "\\",
        ),
        *('{"name": "a", "arguments": ', '{"x": "}"}', '{"name": "a"', "text", "<tool_", "é"),
    ]
)


@given(st.lists(FRAGMENTS, max_size=8).map("".join), st.data(), st.booleans(), st.booleans())
def test_the_parts_do_not_depend_on_the_pieces(
    text: str, data: st.DataObject, has_reasoning: bool, is_thinking: bool
) -> None:
    """Any cut of any text gives the same parts in sum."""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    tags = THINK if has_reasoning else None
    is_thinking = has_reasoning and is_thinking

    def parts(cut: Sequence[str]) -> list[AnswerPart]:
        return read(AnswerReader(GENERIC, TOOLS, tags, is_thinking=is_thinking), cut)

    assert parts(pieces) == parts([text]) == parts(list(text))


@given(st.text(alphabet='<tool_ca>/{}"n: \n', max_size=40))
def test_nothing_is_lost_without_calls(text: str) -> None:
    """An answer without a call is its content."""
    reader = AnswerReader(GENERIC, TOOLS)
    assert read(reader, list(text)) == ([Content(text)] if text else [])

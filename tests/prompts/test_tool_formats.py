"""The formats of model families: what their grammars accept, the reader reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from distributed.models.builtin import make_builtin
from prompts.answer_parts import Content, Tool
from prompts.answer_reader import AnswerReader
from prompts.formats import Formats
from prompts.grammars import is_special, json_schema_grammar
from prompts.reasoning import ReasoningTags
from prompts.tokenizer import PromptTokenizer
from prompts.tool_families import FORMATS, named_format
from prompts.tool_formats import IS_TEXT, NAME, NUMBER, ToolFormat
from tests.prompts.answers import content_of, read, read_calls
from tests.services.frontdoor_service import make_model_folder

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["c", "f"]},
        "at": {"$ref": "#/$defs/at"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "$defs": {"at": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = (Tool("weather", "", CITY, is_strict=True), Tool("time"))
THINK = ReasoningTags("<think>", "</think>")
QWEN3_CODER = """<tool_call>
<function=weather>
<parameter=city>
Paris
</parameter>
<parameter=days>
3
</parameter>
<parameter=at>
{"x": 1.5}
</parameter>
<parameter=tags>
["a"]
</parameter>
</function>
</tool_call>"""
GLM = """<tool_call>weather
<arg_key>city</arg_key>
<arg_value>Paris</arg_value>
<arg_key>days</arg_key>
<arg_value>3</arg_value>
<arg_key>at</arg_key>
<arg_value>{"x": 1.5}</arg_value>
<arg_key>tags</arg_key>
<arg_value>["a"]</arg_value>
</tool_call>"""
MINIMAX = """<minimax:tool_call>
<invoke name="weather">
<parameter name="city">Paris</parameter>
<parameter name="days">3</parameter>
<parameter name="at">{"x": 1.5}</parameter>
<parameter name="tags">["a"]</parameter>
</invoke>
</minimax:tool_call>"""
DSML = """<｜DSML｜function_calls>
<｜DSML｜invoke name="weather">
<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>
<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>
<｜DSML｜parameter name="at" string="false">{"x": 1.5}</｜DSML｜parameter>
<｜DSML｜parameter name="tags" string="false">["a"]</｜DSML｜parameter>
</｜DSML｜invoke>
</｜DSML｜function_calls>"""
PARIS = {"city": "Paris", "days": 3, "at": {"x": 1.5}, "tags": ["a"]}
JSON = json.dumps(PARIS)
# One call as the family's own template writes it.
CALLS = {
    "generic": f'<tool_call>\n{{"name": "weather", "arguments": {JSON}}}\n</tool_call>',
    "hermes": f'<tool_call>\n{{"name": "weather", "arguments": {JSON}}}\n</tool_call>',
    "qwen3_coder": QWEN3_CODER,
    "seed_oss": QWEN3_CODER.replace("tool_call", "seed:tool_call")
    .replace("\n</parameter>", "</parameter>")
    .replace(">\nParis", ">Paris")
    .replace(">\n3", ">3")
    .replace(">\n{", ">{")
    .replace(">\n[", ">["),
    "glm": GLM,
    "glm47": GLM.replace("\n", ""),
    "minimax_m2": MINIMAX,
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
    f"<|tool_call_argument_begin|>{JSON}<|tool_call_end|><|tool_calls_section_end|>",
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
    f"```json\n{JSON}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
    f"{JSON}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v32": DSML,
    "mistral": f"[TOOL_CALLS]weather[ARGS]{JSON}",
    "mistral_v3": f'[TOOL_CALLS] [{{"name": "weather", "arguments": {JSON}}}]',
    "nemotron_v2": f'<TOOLCALL>[{{"name": "weather", "arguments": {JSON}}}]</TOOLCALL>',
    "lfm2": f'<|tool_call_start|>[{{"name": "weather", "arguments": {JSON}}}]<|tool_call_end|>',
    "cohere": '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "weather", "parameters": '
    f"{JSON}}}]<|END_ACTION|>",
    "gemma4": f"<|tool_call>call:weather{JSON}<tool_call|>",
    "llama3": f'{{"name": "weather", "parameters": {JSON}}}',
    "harmony": f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{JSON}",
}
SEVERAL = {
    "generic": "{0}\n{0}",
    "hermes": "{0}\n{0}",
    "qwen3_coder": "{0}\n{0}",
    "seed_oss": "{0}\n{0}",
    "gemma4": "{0}{0}",
    "glm": "{0}\n{0}",
    "glm47": "{0}{0}",
    "minimax_m2": "{0}\n{0}",
    "mistral": "{0}{0}",
    "llama3": "{0}; {0}",
}


def test_every_format_has_an_example() -> None:
    assert list(CALLS) == [form.name for form in FORMATS]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "special"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One token a byte; also with all tags of all formats as special tokens."""
    folder = make_model_folder(tmp_path_factory.mktemp("model"))
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if request.param:
        tags = ["<tool_call>", "</tool_call>", "<minimax:tool_call>", "</minimax:tool_call>"]
        tags += ["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<think>", "</think>"]
        tags += ["[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"]
        tags += [f"<|{name}|>" for name in ("channel", "message", "constrain", "end", "call", "return")]
        tags += [f"<|tool_call{name}|>" for name in ("s_section_begin", "s_section_end", "_begin", "_end")]
        tags += [
            "<|tool_call_argument_begin|>",
            "<｜tool▁sep｜>",
            "<|tool_call_start|>",
            "<|tool_call>",
            "<tool_call|>",
        ]
        tags += [f"<｜tool▁call{name}｜>" for name in ("s▁begin", "s▁end", "▁begin", "▁end")]
        made.add_special_tokens(tags)
    return made


class Guide:
    """The grammars of one format with one tokenizer."""

    def __init__(
        self, form: ToolFormat, tokenizer: Tokenizer, reasoning: ReasoningTags | None = None
    ) -> None:
        added = tokenizer.get_added_tokens_decoder()
        special = {token.content: number for number, token in added.items() if is_special(token)}
        self.formats = Formats(form, reasoning, special, frozenset())
        self._tokenizer, self._guide = tokenizer, LLTokenizer(tokenizer.to_str())

    def accepts(
        self,
        text: str,
        choice: str = "required",
        *,
        tools: Sequence[Tool] = TOOLS,
        parallel: bool = False,
        content: str | None = None,
        is_thinking: bool = False,
    ) -> bool:
        grammar = self.formats.grammar(
            tools, choice=choice, parallel=parallel, content=content, is_thinking=is_thinking
        )
        assert grammar is not None
        assert not LLMatcher.validate_grammar(grammar, self._guide), grammar
        matcher = LLMatcher(self._guide, grammar, log_level=0)
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


each_format = pytest.mark.parametrize("name", CALLS)


@each_format
def test_a_required_call_is_read_as_it_was_constrained(tokenizer: Tokenizer, name: str) -> None:
    """In the family's own words; no free text, no other tool, and no arguments that the schema refuses."""
    guide = Guide(named_format(name), tokenizer)
    call = CALLS[name]
    assert guide.accepts(call)
    assert guide.accepts(call, "weather")
    assert read_calls(named_format(name), TOOLS, call) == [("weather", PARIS)]
    wrong = [call.replace("3", "three"), call.replace("1.5", "true")]
    for bad in ("", "Hello", call.replace("weather", "whether"), *wrong):
        assert not guide.accepts(bad)
    assert not guide.accepts(call, "time")


@pytest.mark.parametrize("name", SEVERAL)
def test_several_calls_are_read(tokenizer: Tokenizer, name: str) -> None:
    """Where parallel calls are allowed."""
    text = SEVERAL[name].format(CALLS[name])
    guide = Guide(named_format(name), tokenizer)
    assert guide.accepts(text, parallel=True)
    assert not guide.accepts(text)
    assert read_calls(named_format(name), TOOLS, text) == [("weather", PARIS)] * 2
    assert read_calls(named_format(name), TOOLS, f"{text}\n") == [("weather", PARIS)] * 2


@pytest.mark.parametrize(
    "name", ["kimi_k2", "deepseek_v3", "deepseek_v31", "mistral_v3", "nemotron_v2", "lfm2"]
)
def test_several_calls_share_a_section(tokenizer: Tokenizer, name: str) -> None:
    """Kimi, DeepSeek, older Mistral models and others write tags around all calls."""
    form = named_format(name)
    begin, end = form.section
    inner = CALLS[name].removeprefix(begin).removesuffix(end)
    text = f"{begin}{inner}{form.between}{inner}{end}"
    assert Guide(form, tokenizer).accepts(text, parallel=True)
    assert read_calls(form, TOOLS, f"Now.\n{text}") == [("weather", PARIS)] * 2


@each_format
def test_strict_tools_leave_text_free_and_calls_constrained(tokenizer: Tokenizer, name: str) -> None:
    """What begins like a call is one, with a tool's name; arguments of a tool that is not strict are free."""
    form = named_format(name)
    guide = Guide(form, tokenizer)
    call = CALLS[name]
    assert guide.accepts(call, "auto")
    text = f"{form.answer}Hello <b>you</b>\n"
    assert guide.accepts(text, "auto")
    for parallel in (False, True):
        assert not guide.accepts(call.replace("weather", "whether"), "auto", parallel=parallel)
        assert not guide.accepts(call.replace("3", "three"), "auto", parallel=parallel)
    if not form.is_bare and not form.answer:
        assert guide.accepts(f"Hello\n{call}", "auto")
        assert guide.accepts(f"Hello\n{call}\n", "auto")
        assert not guide.accepts(f"Hello\n{call.replace('weather', 'whether')}", "auto")
        assert guide.accepts(f"Hello\n{call}\nand {call}", "auto", parallel=True)
        assert not guide.accepts(f"Hello\n{call}\nand {call}", "auto")
    if form.argument is None:
        loose = (Tool("weather", "", CITY), Tool("time", is_strict=True))
        assert guide.accepts(call.replace("3", '"three"'), "auto", tools=loose)


@each_format
def test_a_call_or_constrained_content(tokenizer: Tokenizer, name: str) -> None:
    """tool_choice auto with a response_format, also after reasoning."""
    form = named_format(name)
    content = json_schema_grammar(
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    )
    guide = Guide(form, tokenizer, THINK)
    for begin in ("", "<think>hm</think>\n\n"):
        assert guide.accepts(begin + CALLS[name], "auto", content=content)
        assert guide.accepts(begin + form.answer + '{"a": 1}', "auto", content=content)
        assert not guide.accepts(begin + form.answer + "Hello", "auto", content=content)
    assert guide.accepts(f"hm</think>{CALLS[name]}", is_thinking=True)
    assert not guide.accepts(CALLS[name], is_thinking=True)


@pytest.mark.parametrize("name", ["qwen3_coder", "seed_oss", "glm", "glm47", "minimax_m2", "deepseek_v32"])
def test_values_in_tags_are_constrained_by_their_type(tokenizer: Tokenizer, name: str) -> None:
    """JSON for numbers and lists, one of the listed strings, and free text where a string is allowed."""
    form = named_format(name)
    guide = Guide(form, tokenizer)
    assert form.argument is not None

    def accepts(part: object, value: str) -> bool:
        before, after = form.argument or ("", "")
        call = form.named(form.before, "time") + before.replace(NAME, "at") + value + after + form.after
        tool = Tool("time", "", {"properties": {"at": part}, "required": ["at"]})
        call = form.section[0] + call + form.section[1]
        return any(guide.accepts(call.replace(IS_TEXT, said), tools=[tool]) for said in ("true", "false"))

    assert accepts({"type": "boolean"}, "true")
    assert not accepts({"type": "boolean"}, "maybe")
    assert accepts({"enum": [1, 2]}, "2")
    assert not accepts({"enum": [1, 2]}, "3")
    sea = {"type": "object", "properties": {"sea": {"type": "boolean"}}}
    assert accepts(sea, '{"sea": true}')
    assert not accepts(sea, '{"lake": true}')
    assert accepts({"const": "now"}, "now")
    assert not accepts({"enum": ["now", "then"]}, "never")
    for part in ({}, True, {"type": ["string", "null"]}, {"type": "string", "maxLength": 3}, {"type": 3}):
        assert accepts(part, "any <text>\nof two lines")


@each_format
def test_a_tool_without_a_schema_takes_any_arguments(tokenizer: Tokenizer, name: str) -> None:
    """And none."""
    call = CALLS[name].replace("weather", "time")
    assert Guide(named_format(name), tokenizer).accepts(call, "time")


def tags_of(form: ToolFormat) -> ReasoningTags:
    return ReasoningTags("<|channel|>analysis<|message|>", "<|end|>") if form.answer else THINK


def answers_of(form: ToolFormat) -> st.SearchStrategy[str]:
    """Texts of calls, tags, halves of both, and what may stand between them."""
    call, reasoning = CALLS[form.name], tags_of(form)
    marks = (form.opening, form.closing, *form.other_openings, *form.dropped, *form.section)
    tags = st.sampled_from(sorted({*filter(None, marks), reasoning.opening, reasoning.closing}))
    halves = st.tuples(tags | st.just(call), st.integers(1, len(call)))
    return st.lists(
        st.just(call)
        | tags
        | halves.map(lambda half: half[0][: half[1]])
        | halves.map(lambda half: half[0][half[1] :])
        | st.sampled_from([call.replace("weather", "whether"), call.replace("3", "three"), *CALLS.values()])
        | st.sampled_from(["\n", " ", "\n\n", "text", "{", "}", '{"name": "', "[", "]", ";", ",", '"', "\\"]),
        max_size=6,
    ).map("".join)


def check_all_pieces(form: ToolFormat, data: st.DataObject) -> None:
    text, has_reasoning = data.draw(answers_of(form)), data.draw(st.booleans())
    is_thinking = has_reasoning and data.draw(st.booleans())
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def make() -> AnswerReader:
        tags = tags_of(form) if has_reasoning else None
        return AnswerReader(form, TOOLS, tags, is_thinking=is_thinking)

    assert read(make(), pieces) == read(make(), [text]) == read(make(), list(text))


each_form = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)


@each_form
@given(st.data())
def test_the_parts_do_not_depend_on_the_pieces(form: ToolFormat, data: st.DataObject) -> None:
    """For each format, any cut of any text."""
    check_all_pieces(form, data)


@pytest.mark.slow
@each_form
@settings(max_examples=400)
@given(st.data())
def test_the_parts_of_many_texts_do_not_depend_on_the_pieces(form: ToolFormat, data: st.DataObject) -> None:
    """The same for more of them: some orders of tags and white space are rare."""
    check_all_pieces(form, data)


@pytest.mark.parametrize("name", [form.name for form in FORMATS if not form.section[0]])
@pytest.mark.parametrize("blanks", ["", "\n", " \n\n"])
def test_white_space_between_a_call_and_a_tag_that_begins_none_is_content(name: str, blanks: str) -> None:
    """With the tag, wherever the text is cut; before text it is dropped."""
    form = named_format(name)
    end = f"{blanks}{form.opening}"
    whole = CALLS[name] + end
    for cut in range(len(CALLS[name]) - 3, len(whole) + 1):
        parts = read(AnswerReader(form, TOOLS), [whole[:cut], whole[cut:]])
        assert parts[-1] == Content(end)
        assert read(AnswerReader(form, TOOLS), [whole[:cut], whole[cut:], "?"])[-1] == Content(f"{end}?")
    assert read(AnswerReader(form, TOOLS), [CALLS[name], f"{blanks}text"])[-1] == Content("text")


@each_format
def test_a_call_that_breaks_off_is_content(name: str) -> None:
    """Before its arguments began, with its tags."""
    form, call = named_format(name), CALLS[name]
    end = call.index("weather") + 3
    text = call[:end] if form.is_bare else f"Hi. {call[:end]}"
    assert content_of(form, TOOLS, text) == text


@pytest.mark.slow
def test_the_grammars_are_valid_for_the_built_in_model(tmp_path: Path) -> None:
    """A tokenizer of a model that is served, whose template knows no tools."""
    make_builtin("smollm2-135m", tmp_path / "model", is_packed=True)
    loaded = PromptTokenizer(tmp_path / "model")
    assert loaded.formats.tool_format.name == "generic"
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    for form in FORMATS:
        guide = Guide(form, tokenizer, THINK)
        assert guide.accepts(f"<think>hm</think>{CALLS[form.name]}")
        assert guide.accepts(f"<think>hm</think>{CALLS[form.name]}", "auto")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    "form", [form for form in FORMATS if form.argument is None], ids=lambda form: form.name
)
@given(st.dictionaries(st.text(max_size=6), JSON_VALUES, max_size=4), st.booleans(), st.integers(1, 9))
def test_any_json_arguments_are_read(
    form: ToolFormat, arguments: dict[str, Any], is_ascii: bool, size: int
) -> None:
    """Written with escapes or without, in pieces of any size."""
    written = json.dumps(arguments, ensure_ascii=is_ascii)
    before = form.section[0] + form.named(form.before, "time").replace(NUMBER, "3")
    text = before + written + form.after + form.section[1]
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert read_calls(form, TOOLS, *pieces) == [("time", arguments)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("glm", "the tags <tool_call> and </tool_call> are words"),
        ("glm", "<tool_call>whether</tool_call>"),
        (
            "qwen3_coder",
            "<tool_call>\n<function=weather>\n<parameter=days>\nthree\n</parameter>\n</function>\n</tool_call>",
        ),
        ("minimax_m2", '<minimax:tool_call>\n<invoke name="weather">\n</minimax:tool_call>'),
    ],
)
def test_what_the_parsers_cannot_read_is_content(name: str, text: str) -> None:
    """With its tags."""
    assert content_of(named_format(name), TOOLS, text) == text
    glm = named_format("glm")
    assert read_calls(glm, TOOLS, "<tool_call>time</tool_call>") == [("time", {})]

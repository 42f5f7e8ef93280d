"""The tool formats of model families, and how to find a model's by its chat template. Data only."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from prompts.answer_parts import Tool
from prompts.mlx_lm_import import import_mlx_lm
from prompts.tool_formats import (
    IS_TEXT,
    NAME,
    NO_CALL,
    NUMBER,
    Call,
    Parse,
    ToolFormat,
    make_call,
    parse_json_calls,
)


def _for_parser(tool: Tool) -> dict[str, Any]:
    return {"function": {"name": tool.name, "parameters": {"properties": tool.arguments}}}


def _parse_by(module: Callable[[], Any], sign: str) -> Parse:
    """Return a parser that is one of mlx-lm's.

    Args:
        sign: a text without it is a call only with the name of a tool (mlx_lm 0.32.2 tool_parsers/glm47.py
            finds a name in any text).
    """

    def parse(body: str, tools: Sequence[Tool]) -> list[Call]:
        try:
            found = module().parse_tool_call(body, list(map(_for_parser, tools)))
            read = found if isinstance(found, list) else [found]
            calls = [make_call(call["name"], call["arguments"]) for call in read]
        except (*NO_CALL, SyntaxError):
            return []
        names = {tool.name for tool in tools}
        return calls if sign in body or all(call.name in names for call in calls) else []

    return parse


_DSML_NAME = re.compile(r'\s*name="([^"]+)"\s*>')
_DSML_ARGUMENT = re.compile(
    r'<｜DSML｜parameter\s+name="([^"]+)"\s+string="(true|false)"\s*>(.*?)</｜DSML｜parameter>', re.DOTALL
)


def _parse_dsml(body: str, tools: Sequence[Tool]) -> list[Call]:
    """Read a call of DeepSeek-V3.2: its arguments say whether they are text or JSON."""
    named = _DSML_NAME.match(body)
    if named is None:
        return []
    try:
        arguments = {
            key: value if is_text == "true" else json.loads(value)
            for key, is_text, value in _DSML_ARGUMENT.findall(body)
        }
    except ValueError:
        return []
    return [make_call(named[1], arguments)]


_GEMMA4_HEADER = re.compile(r"\s*call:([\w.-]+)\s*(?=\{)")
_parse_gemma4_text = _parse_by(lambda: import_mlx_lm("tool_parsers.gemma4"), "call:")
_parse_python = _parse_by(lambda: import_mlx_lm("tool_parsers.pythonic"), "(")


def _parse_gemma4(body: str, tools: Sequence[Tool]) -> list[Call]:
    """Read a call of Gemma 4: its arguments are in a form of its own, or JSON where that was demanded."""
    named = _GEMMA4_HEADER.match(body)
    if named is None:
        return []
    try:
        return [make_call(named[1], json.loads(body[named.end() :]))]
    except NO_CALL:
        return _parse_gemma4_text(body, tools)


def _parse_lfm2(body: str, tools: Sequence[Tool]) -> list[Call]:
    """Read a list of calls of LFM2: Python, or JSON where that was demanded."""
    return parse_json_calls(body, tools) or _parse_python(body, tools)


def _parse_cohere(body: str, tools: Sequence[Tool]) -> list[Call]:
    """Read a list of calls of Command R7B and Command A."""
    try:
        found = json.loads(body)
        return [make_call(item["tool_name"], item["parameters"]) for item in found]
    except NO_CALL:
        return []


def _json_header(start: str = "") -> re.Pattern[str]:
    name = r'\{\s*"name"\s*:\s*"([^"\\<>]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
    return re.compile(rf"\s*{start}{name}")


def _hermes(name: str) -> ToolFormat:
    return ToolFormat(
        name,
        "<tool_call>",
        "</tool_call>",
        before=f'<tool_call>\n{{"name": "{NAME}", "arguments": ',
        after="}\n</tool_call>",
        begins="{",
        header=_json_header(),
        parse=parse_json_calls,
    )


def _json_list(name: str, opening: str, closing: str, parse: Parse) -> ToolFormat:
    return ToolFormat(
        name,
        opening,
        closing,
        before=f'{{"name": "{NAME}", "arguments": ',
        after="}",
        begins="[",
        parse=parse,
        section=(f"{opening}[", f"]{closing}"),
        between=", ",
    )


def _glm(name: str, line_end: str) -> ToolFormat:
    return ToolFormat(
        name,
        "<tool_call>",
        "</tool_call>",
        before=f"<tool_call>{NAME}{line_end}",
        after="</tool_call>",
        parse=_parse_by(lambda: import_mlx_lm("tool_parsers.glm47"), "<arg_key>"),
        argument=(f"<arg_key>{NAME}</arg_key>{line_end}<arg_value>", f"</arg_value>{line_end}"),
    )


GENERIC = _hermes("generic")

_HARMONY_CALL = "<|channel|>commentary to=functions."

FORMATS = (
    GENERIC,
    _hermes("hermes"),
    ToolFormat(
        "qwen3_coder",
        "<tool_call>",
        "</tool_call>",
        before=f"<tool_call>\n<function={NAME}>\n",
        after="</function>\n</tool_call>",
        begins="<function=",
        parse=_parse_by(lambda: import_mlx_lm("tool_parsers.qwen3_coder"), "<function="),
        argument=(f"<parameter={NAME}>\n", "\n</parameter>\n"),
    ),
    ToolFormat(
        "seed_oss",
        "<seed:tool_call>",
        "</seed:tool_call>",
        before=f"<seed:tool_call>\n<function={NAME}>\n",
        after="</function>\n</seed:tool_call>",
        begins="<function=",
        parse=_parse_by(lambda: import_mlx_lm("tool_parsers.qwen3_coder"), "<function="),
        argument=(f"<parameter={NAME}>", "</parameter>\n"),
    ),
    _glm("glm", "\n"),
    _glm("glm47", ""),
    ToolFormat(
        "minimax_m2",
        "<minimax:tool_call>",
        "</minimax:tool_call>",
        before=f'<minimax:tool_call>\n<invoke name="{NAME}">\n',
        after="</invoke>\n</minimax:tool_call>",
        begins="<invoke name=",
        parse=_parse_by(lambda: import_mlx_lm("tool_parsers.minimax_m2"), "<invoke name="),
        argument=(f'<parameter name="{NAME}">', "</parameter>\n"),
    ),
    ToolFormat(
        "kimi_k2",
        "<|tool_call_begin|>",
        "<|tool_call_end|>",
        before=f"<|tool_call_begin|>functions.{NAME}:{NUMBER}<|tool_call_argument_begin|>",
        after="<|tool_call_end|>",
        header=re.compile(r"\s*(?:functions\.)?([^\s<>]+):\d+\s*<\|tool_call_argument_begin\|>\s*(?=\{)"),
        section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        between="",
        dropped=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        call_id="functions.{name}:{number}",
    ),
    ToolFormat(
        "deepseek_v3",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        before=f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{NAME}\n```json\n",
        after="\n```<｜tool▁call▁end｜>",
        header=re.compile(r"\s*function\s*<｜tool▁sep｜>\s*([^\s<>`]+)\s*```(?:json)?\s*(?=\{)"),
        section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        between="\n",
        dropped=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    ),
    ToolFormat(
        "deepseek_v31",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        before=f"<｜tool▁call▁begin｜>{NAME}<｜tool▁sep｜>",
        after="<｜tool▁call▁end｜>",
        header=re.compile(r"\s*([^\s<>]+)\s*<｜tool▁sep｜>\s*(?=\{)"),
        section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        between="",
        dropped=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    ),
    ToolFormat(
        "deepseek_v32",
        "<｜DSML｜invoke",
        "</｜DSML｜invoke>",
        before=f'<｜DSML｜invoke name="{NAME}">\n',
        after="</｜DSML｜invoke>",
        begins='name="',
        parse=_parse_dsml,
        argument=(
            f'<｜DSML｜parameter name="{NAME}" string="{IS_TEXT}">',
            "</｜DSML｜parameter>\n",
        ),
        section=("<｜DSML｜function_calls>\n", "\n</｜DSML｜function_calls>"),
        between="\n",
        dropped=("<｜DSML｜function_calls>", "</｜DSML｜function_calls>"),
    ),
    ToolFormat(
        "mistral",
        "[TOOL_CALLS]",
        "",
        before=f"[TOOL_CALLS]{NAME}[ARGS]",
        after="",
        header=re.compile(r"\s*([\w.:-]+?)\s*(?:\[CALL_ID\]\s*\w+\s*)?\[ARGS\]\s*(?=\{)"),
        parse=parse_json_calls,
        between="",
        call_id="{number:09}",
    ),
    ToolFormat(
        "mistral_v3",
        "[TOOL_CALLS]",
        "",
        before=f'{{"name": "{NAME}", "arguments": ',
        after="}",
        parse=parse_json_calls,
        section=("[TOOL_CALLS] [", "]"),
        between=", ",
        call_id="{number:09}",
    ),
    _json_list("nemotron_v2", "<TOOLCALL>", "</TOOLCALL>", parse_json_calls),
    _json_list("lfm2", "<|tool_call_start|>", "<|tool_call_end|>", _parse_lfm2),
    ToolFormat(
        "cohere",
        "<|START_ACTION|>",
        "<|END_ACTION|>",
        before=f'{{"tool_call_id": "{NUMBER}", "tool_name": "{NAME}", "parameters": ',
        after="}",
        begins="[",
        parse=_parse_cohere,
        section=("<|START_ACTION|>[", "]<|END_ACTION|>"),
        between=", ",
        dropped=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        answer="<|START_RESPONSE|>",
    ),
    ToolFormat(
        "gemma4",
        "<|tool_call>",
        "<tool_call|>",
        before=f"<|tool_call>call:{NAME}",
        after="<tool_call|>",
        begins="call:",
        parse=_parse_gemma4,
    ),
    ToolFormat(
        "llama3",
        "<|python_tag|>",
        "",
        before=f'{{"name": "{NAME}", "parameters": ',
        after="}",
        begins="{",
        header=_json_header(),
        parse=parse_json_calls,
        between="; ",
        is_bare=True,
    ),
    ToolFormat(
        "harmony",
        _HARMONY_CALL,
        "",
        before=f"{_HARMONY_CALL}{NAME} <|constrain|>json<|message|>",
        after="",
        header=re.compile(
            r"([^\s<>]+)\s*(?:<\|channel\|>commentary)?\s*(?:<\|constrain\|>)?\s*(?:json)?\s*<\|message\|>\s*(?=\{)"
        ),
        between="<|call|><|start|>assistant",
        other_openings=(" to=functions.",),
        dropped=(
            *("<|start|>assistant", "<|channel|>final<|message|>", "<|channel|>commentary<|message|>"),
            *("<|end|>", "<|call|>", "<|return|>"),
        ),
        answer="<|channel|>final<|message|>",
    ),
)


def find_tool_format(literals: str) -> ToolFormat:
    """Return the format of a chat template, by the texts that it writes; generic: none that is known."""
    return named_format(
        next((name for name, marks in _SIGNS if all(mark in literals for mark in marks)), "generic")
    )


def named_format(name: str) -> ToolFormat:
    """Return the format of this name."""
    return next(known for known in FORMATS if known.name == name)


_SIGNS = (
    ("minimax_m2", ("<minimax:tool_call>",)),
    ("seed_oss", ("<seed:tool_call>",)),
    ("nemotron_v2", ("<TOOLCALL>",)),
    ("lfm2", ("<|tool_call_start|>",)),
    ("lfm2", ("List of tools: ",)),
    ("cohere", ("<|START_ACTION|>", "<|START_RESPONSE|>")),
    ("gemma4", ("<|tool_call>", "<tool_call|>")),
    ("glm47", ("</arg_key><arg_value>",)),
    ("glm", ("<arg_key>",)),
    ("qwen3_coder", ("<tool_call>", "<function=", "<parameter=")),
    ("kimi_k2", ("<|tool_calls_section_begin|>",)),
    ("deepseek_v32", ("<｜DSML｜function_calls>",)),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>", "```json")),
    ("deepseek_v31", ("<｜tool▁calls▁begin｜>",)),
    ("mistral", ("[TOOL_CALLS]", "[ARGS]")),
    ("mistral_v3", ("[TOOL_CALLS]",)),
    ("harmony", ("<|channel|>", "<|message|>")),
    ("llama3", ('{"name": function name, "parameters": dictionary',)),
    ("hermes", ("<tool_call>",)),
)

"""Grammars of llguidance, as text: for a JSON schema, an expression, and an answer with tool calls.

A grammar is Lark with llguidance's extensions, or its JSON form `{"grammars": […]}` (llguidance 1.9). Special
tokens are written by id, `<[7]>`, because text never matches them. Knows no tokenizer, and checks no grammar:
the front door validates those of clients.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import AddedToken

from prompts.answer_parts import Tool
from prompts.json_schemas import rewrite
from prompts.reasoning import ReasoningTags
from prompts.tool_formats import IS_TEXT, NAME, NUMBER, ToolFormat

_HEAD = "%llguidance {}\n"
_SHARED = ("$defs", "definitions", "x-guidance")  # what the parts of a schema need of the whole
_WHITE_SPACE = (
    r"\r?\n[ \t]{0,40}|[ \t]{1,2}"  # between the parts of JSON: not without end, as small models write it
)
_LEXEMES = r"""TEXT: /(.|\n)*/
BLANK: /\s*/
KEY: /[^<>"\n]+/
"""


def json_schema_grammar(schema: Mapping[str, Any], *, is_lenient: bool = False) -> str:
    """Return the grammar of JSON texts that match a schema.

    Args:
        is_lenient: ignore what llguidance does not support.
    """
    rewritten = _for_guidance(schema, is_lenient=is_lenient)
    return json.dumps({"grammars": [{"json_schema": rewritten}]}, ensure_ascii=False)


def json_object_grammar() -> str:
    """Return the grammar of any JSON object."""
    return json_schema_grammar({"type": "object"})


def regex_grammar(text: str) -> str:
    """Return the grammar of all texts that match a regular expression (of Rust's regex crate)."""
    return json.dumps({"grammars": [{"lark_grammar": f"start: /{_slashed(text)}/"}]}, ensure_ascii=False)


def lark_grammar(text: str) -> str:
    """Return the grammar that a Lark text describes."""
    return json.dumps({"grammars": [{"lark_grammar": text}]}, ensure_ascii=False)


def is_special(token: AddedToken) -> bool:
    """Whether text of a grammar never matches this token (llguidance 1.9: also those in angle brackets)."""
    return bool(token.special) or (token.content.startswith("<") and token.content.endswith(">"))


@dataclass(frozen=True)
class CallGrammar:
    """Writes the grammars of one model's answers.

    `special_ids`: the special tokens among the texts that the formats write.
    """

    tool_format: ToolFormat
    reasoning: ReasoningTags | None
    special_ids: Mapping[str, int]

    def only_calls(self, tools: Sequence[Tool], *, is_parallel: bool) -> str:
        """Return the rules of an answer that is one call, or several."""
        return f"body: calls\n{self._calls(tools, is_parallel=is_parallel)}"

    def only_content(self) -> str:
        """Return the rules of an answer that matches the grammar `content`."""
        return f"body: {self._answer('@content')}\n"

    def calls_or_content(self, tools: Sequence[Tool], *, is_parallel: bool) -> str:
        """Return the rules of an answer that is calls, or matches the grammar `content`."""
        calls = self._calls(tools, is_parallel=is_parallel)
        return f"body: calls | {self._answer('@content')}\n{calls}"

    def text_with_calls(self, tools: Sequence[Tool], *, is_parallel: bool) -> str:
        """Return the rules of free text in which what begins like a call is one, of these tools.

        Where no tag begins a call, or another one begins all other text, an answer is either.
        """
        calls = self._calls(tools, is_parallel=is_parallel)
        if self.tool_format.is_bare:
            return f"body: calls | OTHER?\nOTHER: /[^\\s{{](.|\\n)*/\n{calls}"
        if self.tool_format.answer:
            return f"body: calls | {self._answer('TEXT')}\n{calls}"
        opened = self._until("opened", self._trigger)
        more = "segment* TEXT" if is_parallel else "TEXT | segment BLANK"
        return f"body: {more}\nsegment: opened calls_tail\n{opened}{calls}"

    def whole(self, body: str, *, content: str | None, is_thinking: bool) -> str:
        """Return the grammar of an answer: the reasoning, then the rule `body`.

        Args:
            content: the grammar that the rules name `@content`.
        """
        start, rules = "body", ""
        if self.reasoning is not None:
            rules = self._until("thought", self.reasoning.closing)
            opening = self.literal(self.reasoning.opening)
            start = "thought BLANK body" if is_thinking else f"(BLANK {opening} thought BLANK)? body"
        main = f"{_HEAD}start: {start}\n{rules}{body}{_LEXEMES}"
        if content is None:
            return main
        inner = _named(content, "content")
        return json.dumps({"grammars": [{"name": "main", "lark_grammar": main}, *inner]}, ensure_ascii=False)

    def literal(self, text: str) -> str:
        """Write a fixed text, its special tokens by id."""
        pieces = re.split(f"({'|'.join(map(re.escape, [NUMBER, *self.special_ids]))})", text)
        return " ".join(map(self._piece, filter(None, pieces)))

    def _piece(self, text: str) -> str:
        if text == NUMBER:
            return "/[0-9]+/"
        token_id = self.special_ids.get(text)
        return json.dumps(text, ensure_ascii=False) if token_id is None else f"<[{token_id}]>"

    def _until(self, rule: str, ending: str) -> str:
        """Return a rule for any text up to the first place of an ending, and this ending."""
        is_special = any(ending.startswith(special) for special in self.special_ids)
        return f"{rule}{'' if is_special else '[lazy]'}: TEXT {self.literal(ending)}\n"

    def _answer(self, content: str) -> str:
        return f"{self.literal(self.tool_format.answer)} {content}"

    @property
    def _trigger(self) -> str:
        """The text that begins calls in free text."""
        return "" if self.tool_format.is_bare else self.tool_format.section[0] or self.tool_format.opening

    def _calls(self, tools: Sequence[Tool], *, is_parallel: bool) -> str:
        """Return the rule `calls`, and `calls_tail`: the calls after the trigger."""
        form = self.tool_format
        has_section = bool(form.section[0])
        between = "BLANK" if form.between is None else self.literal(form.between)
        again = between if has_section else f"{between} {self.literal(self._trigger)}"
        more = f"({again} call)*" if is_parallel and not form.answer else ""
        names = " | ".join(f"call_{place}" for place in range(len(tools)))
        rules = "".join(map(self._call, range(len(tools)), tools))
        tail = f"calls_tail: call {more} {self.literal(form.section[1])}\ncall: {names}\n"
        return f"calls: {self.literal(self._trigger)} calls_tail\n{tail}{rules}"

    def _call(self, place: int, tool: Tool) -> str:
        form = self.tool_format
        if form.is_bare:  # as one JSON text, because content that is JSON may stand beside it
            return f"call_{place}: %json {_json(_bare_call(tool))}\n"
        before = form.named(form.before, tool.name)
        if not form.section[0]:
            before = before.removeprefix(self._trigger)
        after = self.literal(form.named(form.after, tool.name))
        if form.argument is None:
            return f"call_{place}: {self.literal(before)} %json {_json(_tool_schema(tool))} {after}\n"
        names, rules = self._arguments(place, tool)
        return f"call_{place}: {self.literal(before)} {names} {after}\n{rules}"

    def _arguments(self, place: int, tool: Tool) -> tuple[str, str]:
        """Return the arguments with tags of their own, in the schema's order, and the rules for them.

        Values of strings are free text up to the closing tag, unless the schema lists them; other values are
        JSON that matches their part of the schema. What the schema says of several arguments at once, and of
        the form of strings, is not constrained.
        """
        assert self.tool_format.argument is not None
        before, after = self.tool_format.argument
        schema = _tool_schema(tool)
        arguments = replace(tool, parameters=schema).arguments
        if not arguments:
            return f"any_{place}*", self._any_argument(place, before, after)
        names, rules = [], []
        required = _listed(schema.get("required"))
        for number, (key, part) in enumerate(arguments.items()):
            rule = f"argument_{place}_{number}"
            names.append(rule if key in required else f"{rule}?")
            begun = before.replace(NAME, key).replace(IS_TEXT, "true" if _may_be_text(part) else "false")
            rules.append(f"{rule}: {self.literal(begun)} value_{place}_{number}\n")
            rules.append(self._value(f"value_{place}_{number}", part, schema, after))
        return " ".join(names), "".join(rules)

    def _any_argument(self, place: int, before: str, after: str) -> str:
        """Return the rule for an argument of any name, with text, or with JSON if the format marks it."""
        start, end = before.replace(IS_TEXT, "true").split(NAME)
        rules = f"any_{place}: {self.literal(start)} KEY {self.literal(end)} value_{place}"
        if IS_TEXT in before:
            end = before.replace(IS_TEXT, "false").split(NAME)[1]
            rules += f" | {self.literal(start)} KEY {self.literal(end)} %json {{}} {self.literal(after)}"
        return f"{rules}\n{self._until(f'value_{place}', after)}"

    def _value(self, rule: str, part: dict[str, Any], whole: Mapping[str, Any], after: str) -> str:
        listed = _listed_values(part)
        if listed and all(isinstance(value, str) for value in listed):
            return f"{rule}: ({' | '.join(map(_json, listed))}) {self.literal(after)}\n"
        if _may_be_text(part):
            return self._until(rule, after)
        shared = {key: whole[key] for key in _SHARED if key in whole}
        return f"{rule}: %json {_json({**shared, **part})} {self.literal(after)}\n"


def _named(grammar: str, name: str) -> list[dict[str, Any]]:
    """Return the parts of a grammar, the first with a name."""
    if not grammar.lstrip().startswith("{"):
        return [{"name": name, "lark_grammar": grammar}]
    first, *others = json.loads(grammar)["grammars"]
    return [{**first, "name": name}, *others]


def _bare_call(tool: Tool) -> dict[str, Any]:
    schema = _tool_schema(tool)
    shared = {key: schema.pop(key) for key in _SHARED if key in schema}
    properties = {"name": {"const": tool.name}, "parameters": schema}
    closed = {"required": list(properties), "additionalProperties": False}
    return {**shared, "type": "object", "properties": properties, **closed}


def _listed(value: object) -> list[Any]:
    """Return a list of a schema, or one value as a list; llguidance refuses what is neither."""
    if isinstance(value, list):
        return value
    return [value] if isinstance(value, str) else []


def _listed_values(part: Mapping[str, Any]) -> list[Any]:
    return [part["const"]] if "const" in part else _listed(part.get("enum"))


def _may_be_text(part: Mapping[str, Any]) -> bool:
    """Whether an argument's schema allows text."""
    kinds, listed = _listed(part.get("type")), _listed_values(part)
    is_listed_text = bool(listed) and all(isinstance(value, str) for value in listed)
    return is_listed_text or (not kinds and not listed) or "string" in kinds


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _tool_schema(tool: Tool) -> dict[str, Any]:
    """Return the schema of a tool's arguments; only a strict tool's must be enforced to its last word."""
    return _for_guidance(tool.schema, is_lenient=not tool.is_strict)


def _for_guidance(schema: Mapping[str, Any], *, is_lenient: bool) -> dict[str, Any]:
    given = schema.get("x-guidance")
    lenient = {"lenient": True} if is_lenient else {}
    options = {"coerce_one_of": True, "whitespace_pattern": _WHITE_SPACE, **lenient}
    return {
        **rewrite(schema, is_lenient=is_lenient),
        "x-guidance": {**options, **(given if isinstance(given, dict) else {})},
    }


def _slashed(text: str) -> str:
    """Escape the slashes that end an expression in Lark."""
    return re.sub(r"\\.|/", lambda match: r"\/" if match[0] == "/" else match[0], text, flags=re.DOTALL)

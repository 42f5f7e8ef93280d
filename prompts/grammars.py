"""Grammars of llguidance, as text: for a JSON schema, an expression, and an answer with tool calls.

A grammar is Lark with llguidance's extensions, or its JSON form `{"grammars": […]}` (llguidance 1.9). Special
tokens are written by id, `<[7]>`, because text never matches them. Knows no tokenizer, and checks no grammar:
the front door validates those of clients.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken

from prompts.answer_parts import Tool
from prompts.reasoning import ReasoningTags
from prompts.tool_formats import ToolFormat

_HEAD = "%llguidance {}\n"
_ANY_TEXT = r"TEXT: /(.|\n)*/" "\n"
_BLANK = r"BLANK: /\s*/" "\n"


def json_schema_grammar(schema: Mapping[str, Any]) -> str:
    """Return the grammar of all JSON texts that match a schema."""
    return json.dumps({"grammars": [{"json_schema": _with_options(schema)}]}, ensure_ascii=False)


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
    """Writes the grammars of answers with tool calls.

    `special_ids`: the special tokens among the texts that the formats write.
    """

    tool_format: ToolFormat
    reasoning: ReasoningTags | None
    special_ids: Mapping[str, int]

    def calls(self, tools: Sequence[Tool], *, is_parallel: bool) -> str:
        """Return the rules `calls`: one call, or several."""
        rules = "".join(f"call_{i}: {self._call(tool)}\n" for i, tool in enumerate(tools))
        names = " | ".join(f"call_{i}" for i in range(len(tools)))
        more = " (BLANK call)*" if is_parallel else ""
        return f"calls: call{more}\ncall: {names}\n{rules}"

    def _call(self, tool: Tool) -> str:
        before, after = self.tool_format.around(tool.name)
        schema = json.dumps(_with_options(tool.schema), ensure_ascii=False)
        return f"{self.literal(before)} %json {schema} {self.literal(after)}"

    def literal(self, text: str) -> str:
        """Write a fixed text, its special tokens by id."""
        if not self.special_ids:
            return json.dumps(text, ensure_ascii=False)
        pieces = re.split(f"({'|'.join(map(re.escape, self.special_ids))})", text)
        return " ".join(
            f"<[{self.special_ids[piece]}]>"
            if piece in self.special_ids
            else json.dumps(piece, ensure_ascii=False)
            for piece in pieces
            if piece
        )

    def whole(self, body: str, *, content: str | None, is_thinking: bool) -> str:
        """Return the grammar of an answer: the reasoning, then the rule `body`.

        Args:
            content: the grammar that the rules name `@content`.
        """
        start, rules = "body", ""
        if self.reasoning is not None:
            closing = self.literal(self.reasoning.closing)
            lazy = "" if self.reasoning.closing in self.special_ids else "[lazy]"
            rules = f"thought{lazy}: TEXT {closing}\n"
            opening = self.literal(self.reasoning.opening)
            start = "thought BLANK body" if is_thinking else f"(BLANK {opening} thought BLANK)? body"
        main = f"{_HEAD}start: {start}\n{rules}{body}{_ANY_TEXT}{_BLANK}"
        if content is None:
            return main
        inner = _named(content, "content")
        return json.dumps({"grammars": [{"name": "main", "lark_grammar": main}, *inner]}, ensure_ascii=False)


def _named(grammar: str, name: str) -> list[dict[str, Any]]:
    """Return the parts of a grammar, the first with a name."""
    if not grammar.lstrip().startswith("{"):
        return [{"name": name, "lark_grammar": grammar}]
    first, *others = json.loads(grammar)["grammars"]
    return [{**first, "name": name}, *others]


def _with_options(schema: Mapping[str, Any]) -> dict[str, Any]:
    given = schema.get("x-guidance")
    return {**schema, "x-guidance": {"coerce_one_of": True, **(given if isinstance(given, dict) else {})}}


def _slashed(text: str) -> str:
    """Escape the slashes that end an expression in Lark."""
    return re.sub(r"\\.|/", lambda match: r"\/" if match[0] == "/" else match[0], text, flags=re.DOTALL)

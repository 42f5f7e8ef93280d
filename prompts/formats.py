"""How one model writes tool calls and reasoning: reads them from answers, and constrains answers to them.

Found from the chat template; the setting TOOL_FORMAT overrides it. Knows no requests and no llguidance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from prompts.answer_parts import AnswerPart, CallArguments, CallStart, Content, Reasoning, Tool
from prompts.answer_reader import AnswerReader
from prompts.grammars import CallGrammar
from prompts.reasoning import ReasoningTags
from prompts.tool_formats import ToolFormat

__all__ = [
    "AnswerPart",
    "AnswerReader",
    "CallArguments",
    "CallStart",
    "Content",
    "Formats",
    "Reasoning",
    "Tool",
]


class Formats:
    """The formats of one model; safe to use from several threads."""

    def __init__(
        self,
        tool_format: ToolFormat,
        reasoning: ReasoningTags | None,
        special_ids: Mapping[str, int],
        silent: frozenset[str],
        *,
        has_template_tools: bool = False,
    ) -> None:
        """
        Args:
            special_ids: the special tokens of tokenizer.json.
            silent: special tokens that are no text of an answer by default.
            has_template_tools: whether the chat template describes the tools.
        """
        self.tool_format, self.reasoning = tool_format, reasoning
        self.has_template_tools = has_template_tools
        tags = () if reasoning is None else (reasoning.opening, reasoning.closing)
        texts = "\n".join((*tool_format.texts, *tags))
        always = "\n".join((*tool_format.texts, *tags) if tool_format.answer else tags)
        self._shows_special = any(text in always for text in silent)
        self._shows_special_with_tools = any(text in texts for text in silent)
        own_ids = {text: token_id for text, token_id in special_ids.items() if text in texts}
        self._grammar = CallGrammar(tool_format, reasoning, own_ids)

    def shows_special(self, tools: Sequence[Tool]) -> bool:
        """Whether answers can only be read if their special tokens are part of the text."""
        return self._shows_special_with_tools if tools else self._shows_special

    def reader(self, tools: Sequence[Tool], *, is_thinking: bool) -> AnswerReader:
        """Make the reader of one answer."""
        tool_format = self.tool_format if tools or self.tool_format.answer else None
        return AnswerReader(tool_format, tools, self.reasoning, is_thinking=is_thinking)

    def grammar(
        self,
        tools: Sequence[Tool],
        *,
        choice: str,
        parallel: bool,
        content: str | None,
        is_thinking: bool,
    ) -> str | None:
        """Return the grammar of an answer; None: nothing is constrained.

        Args:
            choice: auto, none, required, or the name of a tool.
            parallel: whether an answer may have several calls.
            content: the grammar of an answer without calls; None: any text.
        """
        writer, is_call_wanted = self._grammar, choice not in ("auto", "none")
        offered = () if choice == "none" else tools
        if is_call_wanted:
            offered = tuple(tool for tool in tools if choice in ("required", tool.name))
            rules = writer.only_calls(offered, is_parallel=parallel)
        elif content is not None and offered:
            rules = writer.calls_or_content(offered, is_parallel=parallel)
        elif content is not None:
            rules = writer.only_content()
        elif any(tool.is_strict for tool in offered) or (offered and not parallel):
            rules = writer.text_with_calls([_as_strict(tool) for tool in offered], is_parallel=parallel)
        else:
            return None
        return writer.whole(rules, content=None if is_call_wanted else content, is_thinking=is_thinking)


def _as_strict(tool: Tool) -> Tool:
    """Return a tool whose schema is what its arguments must match: any object, unless it is strict."""
    return tool if tool.is_strict else replace(tool, parameters=None)

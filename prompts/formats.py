"""How one model writes tool calls and reasoning: reads them from answers, and constrains answers to them.

Found from the chat template; the setting TOOL_FORMAT overrides it. Knows no requests and no llguidance.
"""

from collections.abc import Mapping, Sequence

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
        self._silent = silent
        self._grammar = CallGrammar(tool_format, reasoning, special_ids)

    def shows_special(self, tools: Sequence[Tool]) -> bool:
        """Whether answers can only be read if their special tokens are part of the text."""
        texts = [self.tool_format.opening, self.tool_format.closing] if tools else []
        if self.reasoning is not None:
            texts += [self.reasoning.opening, self.reasoning.closing]
        return any(special in text for text in texts for special in self._silent)

    def reader(self, tools: Sequence[Tool], *, is_thinking: bool) -> AnswerReader:
        """Make the reader of one answer."""
        tool_format = self.tool_format if tools else None
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
        writer = self._grammar
        if choice not in ("auto", "none"):
            chosen = [tool for tool in tools if choice in ("required", tool.name)]
            rules = "body: calls\n" + writer.calls(chosen, is_parallel=parallel)
            return writer.whole(rules, content=None, is_thinking=is_thinking)
        if content is None:
            return None
        if choice == "none" or not tools:
            return writer.whole("body: @content\n", content=content, is_thinking=is_thinking)
        rules = "body: calls | @content\n" + writer.calls(tools, is_parallel=parallel)
        return writer.whole(rules, content=content, is_thinking=is_thinking)

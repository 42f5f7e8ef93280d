"""The model's tokenizer and chat template, from its folder, without MLX and without transformers.

Reads tokenizer.json with the `tokenizers` library, and renders the chat template with jinja2 in the sandbox
(chat_template.py). The token ids equal those of `AutoTokenizer.apply_chat_template`; a test compares them. No
code from the model's folder ever runs. Each request file has the tokenizer's hash (model_files.py).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from config import Settings
from prompts.answer_parts import Tool
from prompts.chat_template import ChatTemplate, MessagesRefused, RenderedChat, VariablesRefused
from prompts.control_tokens import ControlTokens, Messages
from prompts.detokenizer import Detokenizer
from prompts.fill_in import find_fill_in_ids
from prompts.formats import Formats
from prompts.grammars import is_special
from prompts.history import ways_to_write, with_thinking
from prompts.model_files import (
    DEFAULT,
    TOKENIZER_CONFIG,
    TOOL_USE,
    TokenizerUnusable,
    hash_tokenizer,
    read_bytes,
    read_config,
    read_end_sources,
    read_templates,
    tokenizer_hash,
)
from prompts.reasoning import find_reasoning
from prompts.special_tokens import added_tokens, end_token_ids, merge_configs, named_tokens, special_texts
from prompts.thinking import EffortRefused, effort_variables
from prompts.tool_families import GENERIC, find_tool_format, named_format
from prompts.tool_prompt import describe_tools

__all__ = [
    "EffortRefused",
    "MessagesRefused",
    "PromptTokenizer",
    "RenderedChat",
    "TokenizerUnusable",
    "VariablesRefused",
    "load_tokenizer",
    "tokenizer_hash",
]


_USED = (DEFAULT, TOOL_USE)


class PromptTokenizer:
    """Turns messages and text into token ids. Safe to use from several threads.

    `formats`: how the model writes tool calls and reasoning. `special_detokenizer` is for answers in which
    special tokens are text, except those that end them (`SamplingParams.shows_special`).
    """

    def __init__(self, folder: Path, *, has_control_in_text: bool = False, tool_format: str = "auto") -> None:
        """Load from a model folder.

        Args:
            has_control_in_text: whether control tokens in messages stay control tokens.
            tool_format: a name of `prompts.tool_families.FORMATS`; auto: the chat template's.

        Raises:
            TokenizerUnusable: a file is missing or damaged (the entry point prints the message).
        """
        data = read_bytes(folder / "tokenizer.json")
        own, templates = read_config(folder / TOKENIZER_CONFIG), read_templates(folder)
        config = merge_configs(own, read_config(folder / "special_tokens_map.json"))
        try:
            self._tokenizer = Tokenizer.from_buffer(data)
            self._templates = {name: ChatTemplate(templates[name]) for name in _USED if name in templates}
            by_text = read_config(folder / "added_tokens.json")
            self._tokenizer.add_tokens(added_tokens(config, by_text, self._tokenizer.token_to_id))
        except (ValueError, TypeError, jinja2.TemplateError) as error:
            raise TokenizerUnusable(f"the tokenizer in {folder} cannot be read: {error}") from error
        self._tokenizer.no_truncation()  # a setting of training: here a prompt is read whole or refused
        self._tokenizer.no_padding()
        written = "\0".join(template.literals for template in self._templates.values())
        described = json.loads(data)
        self.chat_template = templates.get(DEFAULT)
        self._special = named_tokens(config)
        self.formats = self._find_formats(config, tool_format, written)
        self.end_token_ids = end_token_ids(
            read_end_sources(folder), self._special.get("eos_token"), self._tokenizer.token_to_id
        )
        ids = map(self._tokenizer.token_to_id, special_texts(config))
        special = self.end_token_ids.union(token_id for token_id in ids if token_id is not None)
        make_detokenizer = partial(
            Detokenizer,
            self._tokenizer,
            described.get("decoder"),
            has_template_space=self._has_template_space(),
        )
        self.detokenizer = make_detokenizer(special)
        self.special_detokenizer = make_detokenizer(self.end_token_ids)
        self._control = ControlTokens(self._tokenizer, special, written)
        self._has_control_in_text = has_control_in_text
        self._opening = self._opening_ids(config)
        self._fill_in = find_fill_in_ids(self._tokenizer.token_to_id)
        self.hash = hash_tokenizer(data, templates)
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=-1) + 1  # ids may have gaps
        # A byte-level token's name has at least as many bytes as its text.
        self._max_token_bytes = max((len(token.encode()) for token in vocab), default=1)

    @property
    def has_chat_template(self) -> bool:
        return DEFAULT in self._templates

    @property
    def can_fill_in(self) -> bool:
        """Whether the model has tokens for the text between two others."""
        return self._fill_in is not None

    def can_set_effort(self, effort: str) -> bool:
        """Whether the chat template has a variable for a reasoning effort."""
        template = self._templates.get(DEFAULT)
        try:
            return template is not None and bool(effort_variables(template, effort))
        except EffortRefused:
            return False

    def least_tokens(self, text: str) -> int:
        """Return a lower bound of a text's tokens without tokenizing it: to refuse far too long texts."""
        return -(-len(text.encode()) // self._max_token_bytes)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        effort: str | None = None,
        *,
        tools: Sequence[Tool] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> RenderedChat:
        """Apply the chat template, with the opening of the assistant's turn.

        Tool calls and their results become text (prompts/history.py) where the template refuses them, and
        tools become text (prompts/tool_prompt.py) where it knows none.

        Args:
            effort: as `effort_variables` takes it; None: the template's default.
            variables: values for variables of the template; they win over the effort's.

        Raises:
            MessagesRefused: the template refuses these messages, or the model has no template.
            EffortRefused: the template does not support this effort.
        """
        self._check_variables(variables or {}, has_tools=bool(tools))
        # What the client wrote besides messages goes the way of one, so that control tokens in it are found.
        extras = {"role": "extras", "tools": [tool.for_template() for tool in tools], "set": variables or {}}
        given = [*map(with_thinking, messages), extras]

        def write(turns: Messages) -> str:
            *others, last = turns
            return self._write(others, effort, tools=last["tools"], variables=last["set"])

        text = write(given)
        chat = RenderedChat(text) if self._has_control_in_text else self._control.read(text, given, write)
        reasoning = self.formats.reasoning
        return replace(chat, is_thinking=reasoning is not None and reasoning.is_open(chat.text))

    def encode_rendered(self, text: str, *, literals: Sequence[int] = ()) -> list[int]:
        """Encode a rendered chat, which already has its special tokens.

        Raises:
            MessagesRefused: the chat has `literals` and thousands of private-use characters.
        """
        if literals:
            return self._control.encode(RenderedChat(text, tuple(literals)))
        return self._encode(text)

    def encode_raw(self, text: str) -> list[int]:
        """Encode plain text, after the tokens that the model expects before any text.

        Tokens of this opening with which the text itself begins are not repeated. A prompt gets no end token,
        because the model continues it.
        """
        ids = self._encode(text)
        for num_missing in range(len(self._opening)):
            if ids[: len(self._opening) - num_missing] == self._opening[num_missing:]:
                return self._opening[:num_missing] + ids
        return self._opening + ids

    def encode_fill_in(self, prefix: str, suffix: str) -> list[int] | None:
        """Encode a request for the text between two others; None: the model has no tokens for it."""
        if self._fill_in is None:
            return None
        before_prefix, before_suffix, before_answer = self._fill_in
        asked = [before_prefix, *self._encode(prefix), before_suffix, *self._encode(suffix), before_answer]
        return self._opening + asked

    def _encode(self, text: str) -> list[int]:
        # tokenizers 0.23: `encode` holds the interpreter's lock, so a long text would block all threads.
        encodings = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return list(encodings[0].ids)

    def _find_template(self, *, has_tools: bool) -> ChatTemplate | None:
        """Return the template for tools, where it exists and the chat has any; else the default one."""
        default = self._templates.get(DEFAULT)
        is_listed = has_tools and self.formats.has_template_tools
        return self._templates.get(TOOL_USE, default) if is_listed else default

    def _check_variables(self, variables: Mapping[str, Any], *, has_tools: bool) -> None:
        template = self._find_template(has_tools=has_tools)
        options = template.options - self._special.keys() if template else frozenset()
        unknown = sorted(variables.keys() - options)
        if unknown:
            known = ", ".join(sorted(options)) or "none"
            named = ", ".join(unknown)[:200]
            raise VariablesRefused(
                f"the chat template does not read {named}; variables that it reads: {known}"
            )

    def _write(
        self,
        messages: Messages,
        effort: str | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        template = self._find_template(has_tools=bool(tools))
        if template is None:
            raise MessagesRefused("this model has no chat template: send a prompt instead")
        given = {**self._special, **(variables or {})}
        if effort is None:
            return self._render_history(template, messages, given, tools)
        efforts = effort_variables(template, effort)
        try:
            return self._render_history(template, messages, efforts | given, tools)
        except MessagesRefused as error:
            self._write(messages, tools=tools, variables=variables)  # may be refused with any effort
            raise EffortRefused(str(error)) from error

    def _render_history(
        self,
        template: ChatTemplate,
        messages: Messages,
        variables: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]],
    ) -> str:
        refusal = MessagesRefused("there are no messages")
        form, is_listed = self.formats.tool_format, self.formats.has_template_tools
        described = describe_tools(tools, form.example()) if tools and not is_listed else ""
        listed = tools if tools and is_listed else None
        is_text = bool(described) and form == GENERIC  # then earlier calls are written in the same form
        ways = ways_to_write(
            messages,
            knows_tools=template.knows_calls and not is_text,
            described=described,
            call_id=form.call_id,
        )
        incomplete: str | None = None
        for turns in ways:
            try:
                text = template.render(turns, variables, listed)
            except MessagesRefused as error:
                refusal = error
                continue
            if described in text:
                return text
            incomplete = incomplete or text  # a template may leave out the system turn
        if incomplete is None:
            raise refusal
        return incomplete

    def _find_formats(self, config: Mapping[str, Any], tool_format: str, literals: str) -> Formats:
        """Args: literals: the texts of all templates."""
        added = self._tokenizer.get_added_tokens_decoder()
        special_ids = {token.content: number for number, token in added.items() if is_special(token)}
        found = find_tool_format(literals) if tool_format == "auto" else named_format(tool_format)
        with_tools = self._templates.get(TOOL_USE, self._templates.get(DEFAULT))
        reads_tools = with_tools is not None and "tools" in with_tools.variables
        return Formats(
            found,
            find_reasoning(literals),
            special_ids,
            special_texts(config),
            has_template_tools=reads_tools and found != GENERIC,
        )

    def _has_template_space(self) -> bool:
        """Whether the template writes a space between the opening of an answer and the answer."""
        asked, answered = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
        try:
            return self._write([asked, answered]).startswith(self._write([asked]) + " yes")
        except MessagesRefused:
            return False

    def _opening_ids(self, config: Mapping[str, Any]) -> list[int]:
        encoding = self._tokenizer.encode("a")
        added = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        ids = [token_id for token_id, _ in takewhile(itemgetter(1), added)]
        # Llama-style tokenizers keep this in the configuration, not in tokenizer.json's post-processor.
        if config.get("add_bos_token") and "bos_token" in self._special:
            bos_id = self._tokenizer.token_to_id(self._special["bos_token"])
            if bos_id is not None and ids[:1] != [bos_id]:
                return [bos_id, *ids]
        return ids


def load_tokenizer(settings: Settings) -> PromptTokenizer:
    """Load the served model's tokenizer. Raises TokenizerUnusable."""
    has_control_in_text = settings.control_tokens_in_text == "on"
    return PromptTokenizer(
        settings.model_dir,
        has_control_in_text=has_control_in_text,
        tool_format=settings.tool_format,
    )

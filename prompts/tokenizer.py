"""The model's tokenizer and chat template, from its folder, without MLX and without transformers.

Reads tokenizer.json with the `tokenizers` library and renders the chat template with jinja2 in the sandbox
and with the names that transformers gives templates (transformers 5.23 utils/chat_template_utils.py), so
the token ids equal `AutoTokenizer.apply_chat_template`; a test compares them. No code from the model's folder
ever runs.

The tokenizer's hash, which travels in each request file, is the SHA-256 over the bytes of tokenizer.json,
one zero byte, and the chat template in UTF-8 (nothing, if there is none).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from config import Settings
from prompts.chat_template import ChatTemplate, MessagesRefused, RenderedChat
from prompts.control_tokens import ControlTokens
from prompts.detokenizer import Detokenizer
from prompts.history import ways_to_write
from prompts.special_tokens import end_token_ids, merge_configs, named_tokens, special_texts
from prompts.thinking import EffortRefused, effort_variables

__all__ = [
    "EffortRefused",
    "MessagesRefused",
    "PromptTokenizer",
    "RenderedChat",
    "TokenizerUnusable",
    "load_tokenizer",
    "tokenizer_hash",
]


class TokenizerUnusable(Exception):
    """The model's folder has no tokenizer this server can read; the start stops with the message."""


class PromptTokenizer:
    """Turns messages and text into token ids; safe to call from several threads."""

    def __init__(self, folder: Path, *, has_control_in_text: bool = False) -> None:
        """Load from a model folder.

        Args:
            has_control_in_text: whether control tokens that messages spell count as such.

        Raises:
            TokenizerUnusable: a file is missing or broken (handled by the process that starts us).
        """
        data = _read_bytes(folder / "tokenizer.json")
        own = _read_config(folder / "tokenizer_config.json")
        config = merge_configs(own, _read_config(folder / "special_tokens_map.json"))
        template = _read_template(folder, own)
        try:
            self._tokenizer = Tokenizer.from_buffer(data)
            self._template = ChatTemplate(template) if template is not None else None
        except (ValueError, jinja2.TemplateError) as error:
            raise TokenizerUnusable(f"the tokenizer in {folder} cannot be read: {error}") from error
        self._tokenizer.no_truncation()  # left over from training: a prompt is read whole or refused
        self._tokenizer.no_padding()
        self._knows_tools = "tool_calls" in (template or "")
        described = json.loads(data)
        self._special = named_tokens(config)
        self.end_token_ids = end_token_ids(
            _end_sources(folder), self._special.get("eos_token"), self._tokenizer.token_to_id
        )
        ids = map(self._tokenizer.token_to_id, special_texts(config))
        special = self.end_token_ids.union(token_id for token_id in ids if token_id is not None)
        self.detokenizer = Detokenizer(
            self._tokenizer,
            described.get("decoder"),
            special,
            has_template_space=self._has_template_space(),
        )
        self._control = ControlTokens(self._tokenizer, special, self._template)
        self._has_control_in_text = has_control_in_text
        self._opening = self._opening_ids(config)
        self.hash = _hash(data, template)
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        # A byte-level token is written with one or two bytes a byte: this is no less than what it stands for.
        self._max_token_bytes = max((len(token.encode()) for token in vocab), default=1)

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def least_tokens(self, text: str) -> int:
        """Return how many tokens a text has at the very least, without a look at it: for what is absurd."""
        return -(-len(text.encode()) // self._max_token_bytes)

    def render(self, messages: Sequence[Mapping[str, Any]], effort: str | None = None) -> RenderedChat:
        """Apply the chat template, with the opening of the assistant's turn.

        Tool calls and their results are text (prompts/history.py) where the template does not take them.

        Args:
            effort: how much to think: none, minimal, low, medium or high; None: as the template has it.

        Raises:
            MessagesRefused: the template refuses these messages, or the model has none.
            EffortRefused: the template cannot be told this effort.
        """
        write = partial(self._write, effort=effort)
        text = write(messages)
        if self._has_control_in_text:
            return RenderedChat(text)
        return self._control.read(text, messages, write)

    def encode_rendered(self, text: str, *, literals: Sequence[int] = ()) -> list[int]:
        """Number the tokens of a rendered chat, which already has its special tokens.

        Raises:
            MessagesRefused: it has thousands of private-use characters beside `literals`.
        """
        if literals:
            return self._control.encode(RenderedChat(text, tuple(literals)))
        return self._encode(text)

    def encode_raw(self, text: str) -> list[int]:
        """Number the tokens of plain text, behind the tokens the model expects before any text.

        Those of them with which the text itself begins are not put there again. What the tokenizer would put
        behind a text (its end token) ends no prompt, which is there to be continued.
        """
        ids = self._encode(text)
        for num_missing in range(len(self._opening)):
            if ids[: len(self._opening) - num_missing] == self._opening[num_missing:]:
                return self._opening[:num_missing] + ids
        return self._opening + ids

    def _encode(self, text: str) -> list[int]:
        # tokenizers 0.23: `encode` would hold the interpreter's lock, and a long text every other thread.
        encodings = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return list(encodings[0].ids)

    def _write(self, messages: Sequence[Mapping[str, Any]], effort: str | None = None) -> str:
        if self._template is None:
            raise MessagesRefused("this model has no chat template: send a prompt instead")
        if effort is None:
            return self._render_history(self._template, messages, self._special)
        variables = effort_variables(self._template, effort)
        try:
            return self._render_history(self._template, messages, self._special | variables)
        except MessagesRefused as error:
            self._write(messages)  # it may refuse them whatever the effort
            raise EffortRefused(str(error)) from error

    def _render_history(
        self, template: ChatTemplate, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
    ) -> str:
        refusal = MessagesRefused("there are no messages")
        for turns in ways_to_write(messages, knows_tools=self._knows_tools):
            try:
                return template.render(turns, variables)
            except MessagesRefused as error:
                refusal = error
        raise refusal

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
    """Load the served model's tokenizer; raises TokenizerUnusable."""
    has_control_in_text = settings.control_tokens_in_text == "on"
    return PromptTokenizer(settings.model_dir, has_control_in_text=has_control_in_text)


def tokenizer_hash(folder: Path) -> str:
    """Return the hash of a model folder's tokenizer and chat template without loading them."""
    config = _read_config(folder / "tokenizer_config.json")
    return _hash(_read_bytes(folder / "tokenizer.json"), _read_template(folder, config))


def _hash(data: bytes, template: str | None) -> str:
    digest = hashlib.sha256(data)
    digest.update(b"\0" + (template or "").encode())
    return digest.hexdigest()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerUnusable(f"cannot read the model's tokenizer: {error}") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise TokenizerUnusable(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise TokenizerUnusable(f"{path} is not a JSON object")
    return config


def _read_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates: the default one is for plain chat
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _end_sources(folder: Path) -> dict[str, dict[str, Any]]:
    """What the files say of the end of answers, the strongest first."""
    config = _read_config(folder / "config.json")
    inner = config.get("text_config")
    return {
        "generation_config.json": _read_config(folder / "generation_config.json"),
        "config.json": config,
        "text_config of config.json": inner if isinstance(inner, dict) else {},
    }

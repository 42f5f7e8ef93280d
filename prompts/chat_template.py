"""The model's chat template: compiles it as transformers does, and lists its variables and texts.

Templates come from the Hub, so they run in jinja2's sandbox, with the names that transformers provides
(transformers 5.23 utils/chat_template_utils.py). Knows no tokenizer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

# The errors of a template for messages that it does not expect.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

_OWN_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class MessagesRefused(Exception):
    """The chat template refuses these messages, or the model has no chat template."""


class VariablesRefused(MessagesRefused):
    """The chat template does not read these variables."""


@dataclass(frozen=True)
class RenderedChat:
    """A chat as the template wrote it; literals are offsets in the text, as in `spool.Request`.

    `is_thinking`: the text ends inside an open tag of reasoning.
    """

    text: str
    literals: tuple[int, ...] = ()
    is_thinking: bool = False


class ChatTemplate:
    """A compiled template; safe to use from several threads.

    `variables`: the names that it reads. `options`: those of them that a client may set. `literals`: all its
    own texts, joined with zero bytes. `knows_calls`: whether it writes tool calls.
    """

    def __init__(self, source: str) -> None:
        """Compile a template. Raises jinja2.TemplateError."""
        environment = _make_environment()
        tree = environment.parse(source)
        constants = [node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)]
        written = [node.data for node in tree.find_all(jinja2.nodes.TemplateData)]
        self.variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
        self.options = self.variables - _OWN_VARIABLES - environment.globals.keys()
        self.constants = frozenset(constants)
        self.literals = "\0".join([*written, *constants])
        self.knows_calls = "tool_calls" in source
        self._compiled = environment.from_string(source)
        # At every rendering, jinja searches two layers of constant names; one dict is faster.
        self._compiled.globals = dict(self._compiled.globals)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Write a chat, with the opening of the assistant's turn.

        Args:
            tools: in OpenAI's form; None: the chat has none.

        Raises:
            MessagesRefused: the template refuses these messages.
        """
        try:
            return self._compiled.render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=True, **variables
            )
        except _TEMPLATE_ERRORS as error:
            raise MessagesRefused(f"the chat template refuses these messages: {error}") from error


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks text for training; this extension renders the text."""

    tags = {"generation"}  # noqa: RUF012 - typed by jinja2

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """A namespace without underscore names, which Python itself may look up."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a name of the template's
        jinja2.utils.Namespace.__init__(*args, **kwargs)
        for name in dict(*args[1:], **kwargs):
            _check_name(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a template cannot set {name!r} on a namespace")


def _make_environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["namespace"] = _Namespace
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda style: datetime.now().strftime(style)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own filter escapes HTML characters, but models expect plain ones
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)

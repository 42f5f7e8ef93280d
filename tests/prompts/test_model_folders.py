"""Tokenizers and chat templates in the layouts in which model folders are found."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prompts.formats import Tool
from prompts.tokenizer import PromptTokenizer, TokenizerUnusable, tokenizer_hash
from tests.services.frontdoor_service import make_model_folder

CHAT = [{"role": "user", "content": "hi"}]
TOOL = Tool("weather")
PLAIN, TOOLS = "plain", "{{ tools[0].function.name }} by <tool_call>\n{"
NAMED = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": TOOLS}]
LAYOUTS: dict[str, dict[str, Any]] = {
    "a list": {"tokenizer_config.json": {"chat_template": NAMED}},
    "an object": {"tokenizer_config.json": {"chat_template": {"default": PLAIN, "tool_use": TOOLS}}},
    "files": {
        "chat_template.jinja": PLAIN,
        "additional_chat_templates/tool_use.jinja": TOOLS,
        "additional_chat_templates/rag.jinja": "rag",
    },
    "files beside a config": {
        "chat_template.jinja": PLAIN,
        "additional_chat_templates/tool_use.jinja": TOOLS,
        "tokenizer_config.json": {"chat_template": "old"},
    },
}
ALONE: dict[str, dict[str, Any]] = {
    "a file": {"chat_template.jinja": PLAIN, "tokenizer_config.json": {"chat_template": "old"}},
    "in the config": {"tokenizer_config.json": {"chat_template": PLAIN}, "chat_template.json": {}},
    "of a processor": {"chat_template.json": {"chat_template": PLAIN}},
}


def make_folder(folder: Path, files: Mapping[str, Any]) -> Path:
    """Write a folder without a chat template, and these files: texts, or JSON."""
    make_model_folder(folder, template=None)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chats_with_tools_get_the_template_for_tools(tmp_path: Path, layout: str) -> None:
    """Others get the default one; each layout has the same hash."""
    folder = make_folder(tmp_path / layout, LAYOUTS[layout])
    tokenizer = PromptTokenizer(folder)
    assert tokenizer.has_chat_template
    assert tokenizer.render(CHAT).text == PLAIN
    assert tokenizer.render(CHAT, tools=[TOOL]).text == "weather by <tool_call>\n{"
    assert tokenizer.hash == tokenizer_hash(folder)
    assert tokenizer.hash == tokenizer_hash(make_folder(tmp_path / "other", LAYOUTS["files"]))


@pytest.mark.parametrize("layout", ALONE)
def test_one_template_is_for_all_chats(tmp_path: Path, layout: str) -> None:
    """Wherever it is; a file of its own comes first."""
    tokenizer = PromptTokenizer(make_folder(tmp_path, ALONE[layout]))
    assert tokenizer.render(CHAT).text == PLAIN
    assert PLAIN in tokenizer.render(CHAT, tools=[TOOL]).text


def test_the_hash_covers_the_template_for_tools(tmp_path: Path) -> None:
    """A folder with one template keeps the hash that it had."""
    folder = make_folder(tmp_path, {"chat_template.jinja": PLAIN})
    alone = tokenizer_hash(folder)
    make_folder(folder, {"additional_chat_templates/rag.jinja": "rag"})
    assert tokenizer_hash(folder) == alone
    make_folder(folder, {"additional_chat_templates/tool_use.jinja": ""})
    assert tokenizer_hash(folder) != alone


def described(text: str, **flags: bool) -> dict[str, Any]:
    return {"content": text, "lstrip": False, "rstrip": False, "normalized": False, **flags}


ADDED: dict[str, dict[str, Any]] = {
    "in the configuration": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "259": described("<new>", special=True),
                "258": described("<turn>", special=True),
            }
        }
    },
    "in a file of their own": {
        "tokenizer_config.json": {"additional_special_tokens": ["<turn>", {"content": "<new>"}]},
        "added_tokens.json": {"<new>": 259, "<turn>": 258, "<|end|>": 257},
    },
}


@pytest.mark.parametrize("place", ADDED)
def test_tokens_that_tokenizer_json_lacks_are_added(tmp_path: Path, place: str) -> None:
    """In the order of their ids."""
    tokenizer = PromptTokenizer(make_folder(tmp_path, ADDED[place]))
    assert tokenizer.encode_rendered("a<turn><new><|end|>") == [
        *tokenizer.encode_rendered("a"),
        258,
        259,
        257,
    ]
    assert tokenizer.vocab_size == 260


def test_the_configuration_decides_what_a_token_takes_with_it(tmp_path: Path) -> None:
    """Its flags replace those in tokenizer.json."""
    plain = PromptTokenizer(make_folder(tmp_path, {}))
    start, end, blank = (plain.encode_rendered(text) for text in ("<|start|>", "<|end|>", " "))
    assert plain.encode_rendered("<|start|> <|end|>") == [*start, *blank, *end]
    make_folder(
        tmp_path,
        {
            "tokenizer_config.json": {
                "added_tokens_decoder": {"256": described("<|start|>", special=True, rstrip=True)}
            }
        },
    )
    assert PromptTokenizer(tmp_path).encode_rendered("<|start|> <|end|>") == [*start, *end]


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"added_tokens_decoder": {"x": described("<a>")}}},
        {"added_tokens.json": {"<a>": "x"}},
        {"added_tokens.json": {"<a>": None}},
        {"chat_template.json": []},
        {"additional_chat_templates/tool_use.jinja": "{% if %}", "chat_template.jinja": ""},
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, files: Mapping[str, Any]) -> None:
    """The start stops with one sentence."""
    with pytest.raises(TokenizerUnusable, match=tmp_path.name):
        PromptTokenizer(make_folder(tmp_path, files))


def test_ids_with_gaps_count_up_to_the_last(tmp_path: Path) -> None:
    """`vocab_size` bounds what clients may send as token ids."""
    folder = make_model_folder(tmp_path)
    read = json.loads((folder / "tokenizer.json").read_text())
    read["added_tokens"][-1]["id"] = 300
    (folder / "tokenizer.json").write_text(json.dumps(read))
    tokenizer = PromptTokenizer(folder)
    last = tokenizer.encode_rendered("<|end|>")
    assert tokenizer.vocab_size == last[0] + 1


def test_reasoning_goes_to_templates_that_call_it_thinking(tmp_path: Path) -> None:
    """As gpt-oss's does, which refuses turns that have a text as well."""
    template = (
        "{% for m in messages %}{% if m.thinking and m.content %}{{ raise_exception('both') }}{% endif %}"
        "{{ m.tool_calls and '' }}{{ m.content or '' }}{{ m.thinking or '' }};{% endfor %}"
    )
    tokenizer = PromptTokenizer(make_model_folder(tmp_path, template=template))
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    turn = {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]}
    assert "hm;" in tokenizer.render([*CHAT, turn]).text
    assert "hm" not in tokenizer.render([*CHAT, {**turn, "content": "well"}]).text

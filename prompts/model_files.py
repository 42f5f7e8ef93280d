"""The files of a model's folder that describe its texts: tokenizer, chat templates, end tokens.

Templates are found as transformers 5.24 finds them: chat_template.jinja is the default one and
additional_chat_templates/*.jinja are named by their files; without these, tokenizer_config.json has one, or a
list of named ones, or else chat_template.json, which processors of pictures read. DeepSeek-V3.2 has none, so
it is here. Knows no tokens.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prompts import deepseek_v32_template

DEFAULT, TOOL_USE = "default", "tool_use"
TOKENIZER_CONFIG = "tokenizer_config.json"


class TokenizerUnusable(Exception):
    """The model's folder has no readable tokenizer; the start stops with the message."""


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes. Raises TokenizerUnusable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerUnusable(f"cannot read the model's tokenizer: {error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; empty where there is no such file. Raises TokenizerUnusable."""
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise TokenizerUnusable(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise TokenizerUnusable(f"{path} is not a JSON object")
    return config


def read_templates(folder: Path) -> dict[str, str]:
    """Return the chat templates by name: `default`, `tool_use` for chats with tools, and others.

    Raises:
        TokenizerUnusable: a file is damaged.
    """
    files = {DEFAULT: folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    try:
        found = {name: path.read_text("utf-8") for name, path in files.items() if path.is_file()}
    except (OSError, ValueError) as error:
        raise TokenizerUnusable(f"cannot read a chat template of {folder}: {error}") from error
    for name in (TOKENIZER_CONFIG, "chat_template.json"):
        found = found or _named_templates(read_config(folder / name).get("chat_template"))
    return found or _template_in_code(folder)


def _template_in_code(folder: Path) -> dict[str, str]:
    """Return the template of a model that is published with code in its place, known by name or type."""
    named = read_config(folder / TOKENIZER_CONFIG).get("chat_template_type")
    kind = named or read_config(folder / "config.json").get("model_type")
    return {DEFAULT: deepseek_v32_template.TEMPLATE} if kind == deepseek_v32_template.NAME else {}


def _named_templates(value: object) -> dict[str, str]:
    """Read one template, a list of named ones, or an object of them."""
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    named = value if isinstance(value, dict) else {DEFAULT: value}
    return {str(name): text for name, text in named.items() if isinstance(text, str)}


def read_end_sources(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the files that name end tokens, in the order of precedence. Raises TokenizerUnusable."""
    config = read_config(folder / "config.json")
    inner = config.get("text_config")
    return {
        "generation_config.json": read_config(folder / "generation_config.json"),
        "config.json": config,
        "text_config of config.json": inner if isinstance(inner, dict) else {},
    }


def tokenizer_hash(folder: Path) -> str:
    """Return the hash of a model folder's tokenizer and chat templates without loading them."""
    return hash_tokenizer(read_bytes(folder / "tokenizer.json"), read_templates(folder))


def hash_tokenizer(data: bytes, templates: Mapping[str, str]) -> str:
    """Return the SHA-256 over tokenizer.json, one zero byte, and the default template in UTF-8.

    The template for tools follows after another zero byte, where there is one.
    """
    texts = [templates.get(DEFAULT, ""), *([templates[TOOL_USE]] if TOOL_USE in templates else [])]
    return hashlib.sha256(b"\0".join([data, *(text.encode() for text in texts)])).hexdigest()

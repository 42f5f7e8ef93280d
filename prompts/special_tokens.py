"""The special and added tokens of a model's folder, and the tokens that end an answer.

They come from tokenizer_config.json, special_tokens_map.json, generation_config.json and config.json, as in
transformers 5.24. A value of the wrong type is ignored with a warning that names the file, so one bad line
does not stop a model. Knows no template.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import AddedToken

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")

log = logging.getLogger(__name__)


def merge_configs(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> dict[str, Any]:
    """Merge special_tokens_map.json into tokenizer_config.json.

    The map wins in old folders without `added_tokens_decoder`, and fills gaps in newer ones.
    """
    weaker, stronger = (special_map, config) if "added_tokens_decoder" in config else (config, special_map)
    return {**weaker, **{key: value for key, value in stronger.items() if value is not None}}


def named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of each token that has one of the common names."""
    texts = {name: _text(config.get(name)) for name in NAMES}
    return {name: text for name, text in texts.items() if text}


def special_texts(config: Mapping[str, Any]) -> frozenset[str]:
    """Return the texts of all tokens that the configuration calls special (`all_special_tokens`)."""
    values = [value for key, value in config.items() if key in NAMES or key.endswith("_token")]
    for name in _LISTS:
        listed = config.get(name)
        if isinstance(listed, Mapping):
            listed = list(listed.values())
        values += listed if isinstance(listed, list) else ()
    return frozenset(text for value in values if (text := _text(value)))


def added_tokens(
    config: Mapping[str, Any], by_text: Mapping[str, Any], token_to_id: Callable[[str], int | None]
) -> list[AddedToken]:
    """Return the tokens that the configuration adds to tokenizer.json or describes otherwise, by rising id.

    Args:
        by_text: added_tokens.json, which counts for tokens that tokenizer.json lacks.
    """
    listed = config.get("added_tokens_decoder")
    if not isinstance(listed, Mapping):
        special = special_texts(config)
        missing = [text for text in by_text if token_to_id(text) is None]
        return [
            AddedToken(text, special=text in special, normalized=text not in special)
            for text in sorted(missing, key=lambda text: int(by_text[text]))
        ]
    described = [listed[name] for name in sorted(listed, key=int)]
    return [AddedToken(text, **_flags(token)) for token in described if (text := _text(token))]


def _flags(token: object) -> dict[str, bool]:
    """Return the flags of an AddedToken that is written out."""
    if not isinstance(token, Mapping):
        return {}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {name: token[name] for name in flags if isinstance(token.get(name), bool)}


def end_token_ids(
    sources: Mapping[str, Mapping[str, Any]], eos_token: str | None, token_to_id: Callable[[str], int | None]
) -> frozenset[int]:
    """Return the ids that end an answer: from the first source that lists any, and the tokenizer's own.

    Args:
        sources: the files' content, by name, in the order of precedence.
    """
    own = token_to_id(eos_token) if eos_token else None
    ids = set() if own is None else {own}
    for name, config in sources.items():
        listed = _listed_ids(name, config.get("eos_token_id"))
        if listed:
            return frozenset(ids | listed)
    return frozenset(ids)


def _listed_ids(name: str, value: object) -> set[int]:
    """Read one id or a list of ids."""
    ids = set()
    for item in value if isinstance(value, list) else [value]:
        if type(item) is int and item >= 0:
            ids.add(item)
        elif item is not None:
            log.warning("%s: eos_token_id holds %r, which is not a token id; it is ignored", name, item)
    return ids


def _text(value: object) -> str | None:
    if isinstance(value, Mapping):  # AddedToken written out
        value = value.get("content")
    return value if isinstance(value, str) else None

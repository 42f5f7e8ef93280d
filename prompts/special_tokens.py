"""Which tokens a model's folder calls special, and which of them end an answer.

Read from tokenizer_config.json, special_tokens_map.json, generation_config.json and config.json, as
transformers 5.24 reads them. Knows no text and no template; a value of the wrong kind is left out with a
warning that names the file, so that one bad line stops no model.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")

log = logging.getLogger(__name__)


def merge_configs(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> dict[str, Any]:
    """Return tokenizer_config.json with what special_tokens_map.json says besides.

    The map wins in folders of the time before `added_tokens_decoder`, and fills gaps in newer ones.
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


def end_token_ids(
    sources: Mapping[str, Mapping[str, Any]], eos_token: str | None, token_to_id: Callable[[str], int | None]
) -> frozenset[int]:
    """Return the ids that end an answer: those of the first source that lists any, and the tokenizer's own.

    Args:
        sources: what the files say, by name, the strongest first.
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
            log.warning("%s: eos_token_id holds %r, which is no token id; it is left out", name, item)
    return ids


def _text(value: object) -> str | None:
    if isinstance(value, Mapping):  # AddedToken written out
        value = value.get("content")
    return value if isinstance(value, str) else None

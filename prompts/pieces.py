"""Which tokenizers work piece by piece: what is between two special tokens is numbered by itself.

Read from tokenizer.json (tokenizers 0.23: the added tokens are found in the raw text, the leftmost and
longest first; what is between them is normalized, split and merged piece by piece).
"""

from collections.abc import Mapping
from typing import Any

# What works on each piece by itself, wherever it stands. Metaspace does not: it marks the first one.
_NORMALIZERS = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Replace", "StripAccents"})
_PRE_TOKENIZERS = frozenset({"ByteLevel", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"})


def works_by_pieces(config: Mapping[str, Any]) -> bool:
    """Tell it from what tokenizer.json says: BPE without chance, and nothing that marks the first piece."""
    model = config.get("model") or {}
    return (
        model.get("type") == "BPE"
        and not model.get("dropout")
        and not config.get("truncation")
        and not config.get("padding")
        and all(part.get("type") in _NORMALIZERS for part in parts(config.get("normalizer"), "normalizers"))
        and all(
            part.get("type") in _PRE_TOKENIZERS
            and (part["type"] != "ByteLevel" or part.get("add_prefix_space") is False)
            for part in parts(config.get("pre_tokenizer"), "pretokenizers")
        )
    )


def parts(component: Mapping[str, Any] | None, members: str) -> list[Mapping[str, Any]]:
    """A component, or the parts of a sequence of them."""
    if component is None:
        return []
    if component.get("type") != "Sequence":
        return [component]
    return [part for member in component.get(members) or () for part in parts(member, members)]

"""Fill in the middle: token ids that ask a model for the text between a prefix and a suffix.

Code models have three tokens for that. The order here is the one of their makers' examples: the prefix, the
suffix, then the place where the answer begins. Knows a tokenizer's vocabulary; nothing of templates.
"""

from collections.abc import Callable

# DeepSeek, Qwen Coder, StarCoder and Granite, SantaCoder, CodeGeeX, Code Llama: before the prefix, before the
# suffix, and before the answer.
_TOKENS = (
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)


def find_fill_in_ids(token_to_id: Callable[[str], int | None]) -> tuple[int, int, int] | None:
    """Return the ids of a vocabulary's three tokens, or None."""
    for tokens in _TOKENS:
        before_prefix, before_suffix, before_answer = map(token_to_id, tokens)
        if before_prefix is not None and before_suffix is not None and before_answer is not None:
            return before_prefix, before_suffix, before_answer
    return None

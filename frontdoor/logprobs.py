"""Writes logprobs as the OpenAI routes return them, with each token as text and bytes.

Knows the tokenizer and the spool's `TokenLogprob`; nothing of requests.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from prompts.detokenizer import Detokenizer
from spool import Result, TokenLogprob

NOT_POSSIBLE = -9999.0  # for minus infinity, which JSON cannot hold; as in OpenAI's reference


def has_logprobs(results: Iterable[Result]) -> bool:
    """Whether answers have logprobs; a thread writes these, because they can be many."""
    return any(result.logprobs or result.prompt_logprobs for result in results)


def chat_logprobs(texts: Detokenizer, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Write the logprobs of a chat's answer; tokens without text, such as the end token, are left out."""
    return {
        "content": [
            {
                **_entry(texts, token.token_id, token.logprob),
                "top_logprobs": [_entry(texts, *alternative) for alternative in token.alternatives],
            }
            for token in tokens
            if texts.has_text(token.token_id)
        ],
        "refusal": None,
    }


def completion_logprobs(texts: Detokenizer, tokens: Sequence[TokenLogprob], start: int) -> dict[str, Any]:
    """Write the logprobs of a completion.

    Args:
        start: the offset of the first token in the text, in characters.
    """
    offsets = []
    for token in tokens:
        offsets.append(start)
        start += len(_text(texts.bytes_alone(token.token_id)))
    return {
        "tokens": [_name(texts, token.token_id) for token in tokens],
        "token_logprobs": [
            # Nothing comes before the first token of a prompt.
            None if token.logprob is None and not token.alternatives else _number(token.logprob)
            for token in tokens
        ],
        "top_logprobs": [_by_text(texts, token) for token in tokens],
        "text_offset": offsets,
    }


def _by_text(texts: Detokenizer, token: TokenLogprob) -> dict[str, float] | None:
    """Return the logprobs of the alternatives and of the token itself, by name."""
    if token.logprob is None and not token.alternatives:
        return None
    found: dict[str, float] = {}
    for token_id, logprob in (*token.alternatives, (token.token_id, token.logprob)):
        found.setdefault(_name(texts, token_id), _number(logprob))
    return found


def _entry(texts: Detokenizer, token_id: int, logprob: float | None) -> dict[str, Any]:
    written = texts.bytes_alone(token_id)
    return {"token": _text(written), "logprob": _number(logprob), "bytes": list(written)}


def _name(texts: Detokenizer, token_id: int) -> str:
    """Return a token's text; of a part of a character, its bytes as OpenAI names them."""
    written = texts.bytes_alone(token_id)
    try:
        return written.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in written)


def _text(written: bytes) -> str:
    return written.decode("utf-8", "replace")


def _number(logprob: float | None) -> float:
    return NOT_POSSIBLE if logprob is None else logprob

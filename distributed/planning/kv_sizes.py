"""The steps in which KV tables grow: one rule for allocation on the stages and for rank 0's budget.

Pure arithmetic; knows neither MLX nor sequences.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class RankKV:
    """Bytes of KV of a token and of states of a row: in all layers of a rank, and in the largest of them."""

    token_bytes: int
    layer_token_bytes: int
    row_bytes: int = 0
    layer_row_bytes: int = 0


def find_largest(ranks: Iterable[RankKV]) -> tuple[int, int]:
    """Return the bytes that a token takes where it takes most, and to how many tokens a row's states amount.

    While a table is resized, one of its layers is in memory twice.
    """
    token_bytes, row_bytes = 1, 0
    for rank in ranks:
        token_bytes = max(token_bytes, rank.token_bytes + rank.layer_token_bytes)
        row_bytes = max(row_bytes, rank.row_bytes + rank.layer_row_bytes)
    return token_bytes, -(-row_bytes // token_bytes)


def round_rows(num_rows: int) -> int:
    """Return the rows allocated for `num_rows` slots: the next power of two."""
    return 1 << max(0, num_rows - 1).bit_length()


def round_tokens(num_tokens: int) -> int:
    """Return the tokens allocated for a row: powers of two from 64 to 512, then multiples of 512."""
    if num_tokens > 512:
        return -(-num_tokens // 512) * 512
    return max(64, round_rows(num_tokens))


def next_tokens(num_tokens: int) -> int:
    """Return the tokens of the next larger allocation than that of `num_tokens`."""
    return round_tokens(round_tokens(num_tokens) + 1)


def most_tokens(num_rows: int, max_kv_tokens: int) -> int:
    """Return the most tokens that each of `num_rows` rows can have within a budget, padding included."""
    share = max_kv_tokens // round_rows(num_rows)
    if share > 512:
        return share // 512 * 512
    return 1 << share.bit_length() - 1 if share >= 64 else 0


def padded_tokens(num_rows: int, max_tokens: int) -> int:
    """Return the tokens allocated for a table of `num_rows` rows of `max_tokens`, padding included."""
    return round_rows(num_rows) * round_tokens(max_tokens) if num_rows else 0


def grown(shape: tuple[int, int], num_rows: int, num_tokens: int) -> tuple[int, int]:
    """Return (rows, tokens) of a table of `shape` once it has grown to hold these."""
    rows, tokens = shape
    return (
        rows if num_rows <= rows else round_rows(num_rows),
        tokens if num_tokens <= tokens else round_tokens(num_tokens),
    )

"""Which decode rows change their table, so that there are as many groups as is best, and even ones.

Rows stay where they were admitted, while how many groups are best changes with every request that comes: 3
rows of one table and 29 of the other make each lap longer than 32 of one do. A row moves by a copy of
its KV, in the frame of the group that it joins. Pure Python: no MLX, no clock, no slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Items
from dataclasses import dataclass

from distributed.sequence import Sequence

# Groups that differ by no more than this share of all rows are even.
MAX_UNEVEN_SHARE = 0.125
# What is copied at once holds one step up, by about what it takes to read so much KV three times.
MAX_MOVED_TOKENS = 2048
# A row that ends sooner is not worth its copy.
MIN_TOKENS_LEFT = 8


@dataclass(frozen=True)
class Moves:
    """Rows that are to join the group of the table `home`."""

    home: int
    sequences: tuple[Sequence, ...]


def find_moves(running: Items[Sequence], num_groups: int, num_tables: int) -> Moves | None:
    """Return the next rows to move, or None.

    Args:
        num_groups: how many there should be: one, or one a table.
    """
    sizes = Counter(sequence.table for sequence in running)
    fullest = max(range(num_tables), key=lambda table: sizes[table])
    if num_groups == 1:
        home, most = fullest, len(running)
        others = [sequence for sequence in running if sequence.table != home]
    else:
        home = min(range(num_tables), key=lambda table: sizes[table])
        excess = sizes[fullest] - sizes[home]
        if excess <= max(1, MAX_UNEVEN_SHARE * len(running)):
            return None
        most = excess // 2
        others = [sequence for sequence in running if sequence.table == fullest]
    found = _within_limit([sequence for sequence in others if _is_worth_moving(sequence)][-most:])
    return Moves(home, tuple(found)) if found else None


def _is_worth_moving(sequence: Sequence) -> bool:
    num_left = sequence.max_tokens - sequence.num_answer_tokens
    return not sequence.is_prefilling and sequence.num_cached_tokens > 0 and num_left >= MIN_TOKENS_LEFT


def _within_limit(sequences: Items[Sequence]) -> list[Sequence]:
    """Return as many, the shortest first, as may be copied at once."""
    found, num_tokens = [], 0
    for sequence in sorted(sequences, key=lambda sequence: len(sequence.token_ids)):
        num_tokens += len(sequence.token_ids)
        if num_tokens > MAX_MOVED_TOKENS:
            break
        found.append(sequence)
    return found

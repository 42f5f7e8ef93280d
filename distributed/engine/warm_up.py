"""The warm-up: the steps that rank 0 sends round a ring before READY, so that serving meets no new kernel.

A GPU compiles a kernel, or takes it from a library, at its first use: tens to hundreds of milliseconds.
Which kernel runs depends on classes of rows, columns, slots and context, not on each number. The plan here
has a step of each class that the scheduler can make, as data. The classes are those of mlx 0.32.4
backend/metal: products by up to 5 rows, then by powers of two, and by full tiles (quantized.cpp, matmul.cpp);
attention by up to 8 columns or more, and by long contexts (scaled_dot_product_attention.cpp); gathers and
scatters by their indices (indexing.cpp).
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Any

from distributed.engine.chunks import within_scores
from distributed.engine.drafting import MAX_DRAFTING_ROWS, MAX_DRAFTS
from distributed.engine.engine import MAX_READ_ROWS
from distributed.engine.scheduler import SchedulerLimits
from distributed.planning.kv_sizes import round_rows, round_tokens
from distributed.planning.step import Clear, PrefixCopy, Resize, StageStep

# Rows x columns that kernels tell apart: one by one, then each power of two, from the second value on with
# full tiles of 64 and without.
FEW = (1, 2, 3, 4, 5, 8, 16, 32)
MANY = (64, 128, 256, 512, 1024, 2048)
TILE, UNEVEN = 64, 5  # tokens of a full tile; so many short of one
# Attention takes another kernel from each of these contexts on.
LONG_CONTEXTS = (1024, 4096, 8192, 16384, 32768, 65536)
ORDERS_TOKENS, ORDERS_ROWS = 1024, 8  # that the tables of `_orders` have together


@dataclass(frozen=True)
class WarmUp:
    """What the steps may use: as the scheduler has it, tokens of a row, and whether there will be drafts."""

    limits: SchedulerLimits
    max_tokens: int
    has_drafts: bool

    @property
    def max_rows(self) -> int:
        return self.limits.slots.max_rows

    def fits(self, step: StageStep) -> bool:
        """Whether serving could make such a step, and its table is within the KV budget."""
        rows, tokens = _table_size(step)
        largest = max(self.limits.max_chunk_tokens, MAX_DRAFTING_ROWS * (MAX_DRAFTS + 1))
        return (
            step.num_kv_tokens <= self.max_tokens
            and max(step.slots) < self.max_rows
            and step.num_rows * step.num_tokens <= largest
            and self.limits.slots.table_tokens(rows, tokens) <= self.limits.slots.max_kv_tokens
        )


def plan_warm_up(warm_up: WarmUp) -> list[StageStep]:
    """Return the steps, small tables first, each with the size of its table; the caller drops the KV."""
    plans = (_chunks(warm_up), _decode(warm_up), _drafts(warm_up), _long_contexts(warm_up))
    planned: Iterator[StageStep] = chain(*plans)
    if warm_up.limits.slots.has_states:
        planned = map(_without_padding, planned)
    steps, size = [], (0, 0)
    for step in filter(warm_up.fits, planned):
        wanted = _table_size(step)
        steps.append(replace(step, resizes=(Resize(0, *wanted),) if wanted != size else ()))
        size = wanted
    orders = list(_orders())
    rows_tokens = ORDERS_ROWS * warm_up.limits.slots.row_tokens
    if all(map(warm_up.fits, orders)) and warm_up.limits.slots.max_kv_tokens >= ORDERS_TOKENS + rows_tokens:
        steps += orders
    return steps


def _without_padding(step: StageStep) -> StageStep:
    """Return the step with as many tokens in every row."""
    return replace(step, counts=tuple(step.num_tokens if count else 0 for count in step.counts))


def _table_size(step: StageStep) -> tuple[int, int]:
    return round_rows(max(step.slots) + 1), round_tokens(step.num_kv_tokens)


def plan_draws(warm_up: WarmUp) -> list[int]:
    """Return of how many logits at once to draw: of each row, each draft, or a block of a prompt."""
    drafts = MAX_DRAFTING_ROWS * (MAX_DRAFTS + 1) if warm_up.has_drafts else 0
    return _sizes(max(warm_up.max_rows, drafts, MAX_READ_ROWS))


def _sizes(most: int) -> list[int]:
    """Return the numbers of tokens, up to `most`, that kernels tell apart."""
    pairs = [size for full in MANY for size in (full - UNEVEN, full)]
    return [size for size in (*FEW, *pairs) if size < most] + [most]


def _step(rows: Items[tuple[int, int, int]], **orders: Any) -> StageStep:
    """Return the step of rows (slot, offset, count)."""
    slots, offsets, counts = zip(*rows, strict=True)
    return StageStep(0, slots, offsets, counts, max(counts), **orders)


def _chunks(warm_up: WarmUp) -> Iterator[StageStep]:
    """Prompts of each size; behind other tokens, alone and two together, level and not; gathered."""
    chunk = warm_up.limits.max_chunk_tokens
    for size in _sizes(chunk):
        yield _step([(0, 0, size)])
    full = -(-chunk // TILE) * TILE + TILE
    for end, size in product((full, full - UNEVEN), (chunk, max(1, chunk - UNEVEN))):
        yield _step([(0, end - size, size)])
    for end in (3 * TILE, 4 * TILE - UNEVEN):
        for size in (1, 2, 3, 4, 5, 16, 23, 32, 44, TILE):
            start = end - size
            yield _step([(0, start, size)])
            yield _step([(0, start, size), (1, start, size)])
            yield _step([(0, start, size), (1, start - 9, max(1, size - 2))])
    yield _step([(0, 0, 20), (2, 7, 9)])


def _decode(warm_up: WarmUp) -> Iterator[StageStep]:
    """Rows of one token: level and not, with holes, gathered; keys that fill tiles, and that do not."""
    for num_rows in sorted({*_sizes(warm_up.max_rows), min(7, warm_up.max_rows)}):
        slots = range(num_rows)
        for first in (9, 63):
            yield _step([(slot, first, 1) for slot in slots])
            yield _step([(slot, first - slot % 8, 1) for slot in slots])
        if num_rows > 2:
            yield _step([(slot, 12 + slot, 0 if slot == 1 else 1) for slot in slots])
            yield _step([(slot + 2 * (slot > 1), 12 + slot, 1) for slot in slots])
    yield _step([(0, 12, 1), (1, 0, 0), (2, 9, 1)])
    yield _step([(0, 12, 1), (3, 12, 1)])
    yield _step([(0, 12, 1), (3, 9, 1)])


def _drafts(warm_up: WarmUp) -> Iterator[StageStep]:
    """Rows of a token and its drafts; all logits are wanted."""
    if not warm_up.has_drafts:
        return
    for num_rows in (1, 2, 4, MAX_DRAFTING_ROWS):
        for width in (2, 3, 4, 6, 8, 12, MAX_DRAFTS + 1):
            yield _step([(slot, 9 + slot, max(1, width - slot)) for slot in range(num_rows)])
    yield _step([(0, 9, 4), (1, 9, 4)])
    yield _step([(0, 9, 4), (1, 0, 0), (2, 9, 2), (3, 9, 1)])
    yield _step([(0, 9, 4), (3, 9, 2)])


def _long_contexts(warm_up: WarmUp) -> Iterator[StageStep]:
    """Few and many columns behind much KV, in tiles that are full and not."""
    limits = warm_up.limits
    for context in LONG_CONTEXTS:
        for end in (context, context + UNEVEN):
            chunk = within_scores(limits.max_chunk_tokens, end, limits.max_chunk_scores)
            for size in sorted({min(size, chunk) for size in (1, 4, 23, 2 * TILE, 2 * TILE + 3, chunk)}):
                yield _step([(0, end - size, size)])
            for num_rows, size in ((2, 1), (4, 1), (2, 2), (2, 4)):
                yield _step([(slot, end - size - 9 * slot, size) for slot in range(num_rows)])


def _orders() -> Iterator[StageStep]:
    """Copies of prefixes, clears, and tables that grow, shrink and go."""
    row = [(0, 20, 1)]
    yield _step([(0, 0, 20), (1, 0, 20)], resizes=(Resize(0, 2, 64), Resize(1, 1, 64)))
    yield replace(_step([(0, 0, 20)]), table=1)
    yield _step(row, resizes=(Resize(0, 4, 64),), copies=(PrefixCopy(0, 1, 0, 19), PrefixCopy(1, 0, 3, 12)))
    yield _step(row, resizes=(Resize(0, 4, 128),), clears=(Clear(0, 9, 20),))
    yield _step(row, resizes=(Resize(0, 2, 64, (1, 3)), Resize(1, 2, 128)))
    yield _step(row, resizes=(Resize(0, 1, 64, (1,)), Resize(1, 0, 0)))

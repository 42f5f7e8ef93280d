"""A picture of a timeline as SVG: one row a rank, one colour a decode group, chunks of prompts grey.

Each box shows its step, rows and tokens under the mouse. Knows spans and nothing of their source.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.timeline import Span

NUM_STEPS = 60
WIDTH, MARGIN, ROW_HEIGHT = 1100, 60, 28
# A palette for colour-blind readers (Okabe and Ito).
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
PREFILL_COLOR = "#a9a9a9"


def draw_timeline(spans: Sequence[Span], num_ranks: int) -> str:
    """The SVG of NUM_STEPS steps of a record."""
    shown = choose_spans(spans)
    begin_us = min((span.start_us for span in shown), default=0)
    length_us = max((span.end_us for span in shown), default=1) - begin_us
    scale = (WIDTH - MARGIN) / max(1, length_us)
    height = ROW_HEIGHT * (num_ranks + 1)

    def box(span: Span) -> str:
        x, width = MARGIN + (span.start_us - begin_us) * scale, max(0.5, span.busy_us * scale)
        color = PREFILL_COLOR if span.is_prefill else PALETTE[span.table % len(PALETTE)]
        title = f"{span.name}, step {span.step}: {span.num_rows} rows, {span.num_tokens} tokens"
        place = f'x="{x:.1f}" y="{_top(span.rank, num_ranks)}" width="{width:.1f}" height="{ROW_HEIGHT - 6}"'
        return f'<rect {place} fill="{color}"><title>{title}, {span.busy_us} us</title></rect>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        *(f'<text x="4" y="{_top(rank, num_ranks) + 16}">rank {rank}</text>' for rank in range(num_ranks)),
        *map(box, shown),
        f'<text x="{MARGIN}" y="{height - 8}">{length_us / 1000:.1f} ms</text></svg>',
    ]
    return "\n".join(parts) + "\n"


def _top(rank: int, num_ranks: int) -> int:
    """The row of a rank; the first stage, which the highest rank has, is on top."""
    return ROW_HEIGHT * (num_ranks - 1 - rank) + 3


def choose_spans(spans: Sequence[Span]) -> list[Span]:
    """The spans of some steps in a row: around the last chunk of a prompt, else from the middle."""
    steps = sorted({span.step for span in spans})
    chunks = [span.step for span in spans if span.is_prefill]
    middle = steps.index(max(chunks)) if chunks else len(steps) // 2
    first = max(0, min(middle - NUM_STEPS // 2, len(steps) - NUM_STEPS))
    chosen = set(steps[first : first + NUM_STEPS])
    return [span for span in spans if span.step in chosen]

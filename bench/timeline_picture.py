"""A picture of a timeline: one row a rank, one colour a decode group, chunks of prompts hatched.

Needs matplotlib. Knows spans and one file; the file's ending says whether it is an SVG or a PNG.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.plots import PALETTE, new_figure, save_figure
from bench.timeline import Span

NUM_STEPS = 60
PREFILL_COLOR = "#c9c9c9"


def draw_timeline(spans: Sequence[Span], num_ranks: int, path: Path, title: str) -> None:
    """Draw NUM_STEPS steps of the record."""
    shown = choose_spans(spans)
    figure, axes = new_figure(width=11, height=1.2 + 0.45 * num_ranks)
    begin_us = min((span.start_us for span in shown), default=0)
    for span in shown:
        axes.broken_barh(
            [((span.start_us - begin_us) / 1000, span.busy_us / 1000)],
            (num_ranks - 1 - span.rank - 0.4, 0.8),
            **_style(span),
        )
    axes.set_yticks(range(num_ranks), [f"rank {num_ranks - 1 - place}" for place in range(num_ranks)])
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.set_title(title, fontsize=10)
    save_figure(figure, path)


def choose_spans(spans: Sequence[Span]) -> list[Span]:
    """The spans of some steps in a row: around the last chunk of a prompt, else from the middle."""
    steps = sorted({span.step for span in spans})
    chunks = [span.step for span in spans if span.is_prefill]
    middle = steps.index(max(chunks)) if chunks else len(steps) // 2
    first = max(0, min(middle - NUM_STEPS // 2, len(steps) - NUM_STEPS))
    chosen = set(steps[first : first + NUM_STEPS])
    return [span for span in spans if span.step in chosen]


def _style(span: Span) -> dict[str, Any]:
    if span.is_prefill:
        return {"facecolor": PREFILL_COLOR, "edgecolor": "#444444", "hatch": "////", "linewidth": 0.4}
    color = PALETTE[span.table % len(PALETTE)]
    return {"facecolor": color, "edgecolor": "white", "linewidth": 0.3}

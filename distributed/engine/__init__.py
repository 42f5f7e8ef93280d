"""Rank 0: requests become sequences, microbatches go round the ring, tokens become answers.

Knows frames and stages by their interfaces only. The modules that decide (scheduler, slots, chunks, drafting,
draw) are pure: no MLX, no clock, no files. `distributed.rank` builds the engine; nothing else uses this
folder.
"""

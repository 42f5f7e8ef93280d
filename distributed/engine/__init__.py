"""Rank 0: requests become sequences, sequences are stepped round the ring, tokens become answers.

Knows frames and stages by their interfaces only. What decides (scheduler, slots, chunks, drafting, draw) is
pure: no MLX, no clock, no files. `distributed.rank` builds the engine; nothing else uses this folder.
"""

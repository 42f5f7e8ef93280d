"""The bench: measures the service from outside, over HTTP, beside mlx_lm.server on a ring of the same size.

Knows the service as its users do: commands, HTTP, status files. Its processes import no MLX; the programs
that need it run on their own (`peer_rank`, `reference`, `random_model`).
"""

"""The bench: measures the service from outside, over HTTP, beside mlx_lm.server on a ring of the same size.

Knows the service as its users do: commands, HTTP, status files. The bench itself imports no MLX; programs
that need it run as processes of their own (`peer_rank`, `reference`, `random_model`).
"""

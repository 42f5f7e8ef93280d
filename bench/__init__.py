"""The bench: measures the service from outside, over HTTP, beside mlx_lm.server on a ring of the same size.

Its processes import no MLX; the programs that need it run on their own (peer_rank.py, reference.py,
random_model.py).
"""

"""The ring and what runs on it: one process a rank. Importing this package imports no MLX.

Arrows of imports: rank, worker → engine → ring, backends → models → planning. Knows nothing of HTTP, hosts or
how processes are started. `utils` is the public seam: shard_and_load, broadcast_prompt.
"""

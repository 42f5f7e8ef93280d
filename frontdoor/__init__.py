"""The front door: HTTP in, request files out, token logs and results back to the client.

Knows the HTTP shapes clients expect, the model's tokenizer and the spool. Knows nothing of MLX, weights,
ranks' work or how tokens come about: everything it learns about the ring it reads from files.
"""

NAME = "mlx-ring"
VERSION = "3.1.0"

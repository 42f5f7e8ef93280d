"""Converts messages and text to token ids and back, the same for the front door and rank 0.

Knows a model folder's tokenizer and chat template; nothing of requests, HTTP or ranks. Never imports MLX.
Other folders use `tokenizer`, `control_tokens`, `detokenizer`, and `mlx_lm_import` for parts of mlx-lm.
"""

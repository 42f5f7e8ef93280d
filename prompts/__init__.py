"""Converts messages, tools and text to token ids and back, the same for the front door and rank 0.

Knows a model folder's tokenizer and chat template; nothing of requests, HTTP or ranks. Never imports MLX.
Other folders use `tokenizer`, `formats` for tool calls and reasoning in answers, `grammars` for answers that
must match something, `control_tokens`, `detokenizer`, `model_files`, and `mlx_lm_import` for parts of mlx-lm.
"""

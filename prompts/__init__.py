"""From messages and text to token ids, the same for the front door and rank 0. Never imports MLX."""

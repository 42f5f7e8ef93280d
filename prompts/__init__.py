"""From messages and text to token ids and back, the same for the front door and rank 0. Never imports MLX."""

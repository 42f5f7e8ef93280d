"""The ring and what runs on it. Importing this package imports no MLX."""

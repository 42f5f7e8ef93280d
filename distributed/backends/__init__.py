"""What runs a stage's layers, or parts of them, where MLX's own code is not the fastest: cpu/."""

"""A machine without a GPU: NumPy between fast products runs a dense model's layers; of others, some parts.

MLX's CPU build is slow at exponentials and small operations, which around small products are most of a step.
Here the same layers run on NumPy arrays, with packed weights. Only float32, only model types that have a
parity test, and never with a GPU: there the model's own MLX code runs, as it does here for everything else
(quantized weights, latents). Of those, the experts of a chunk and its attention are run here.

Knows layers and arrays; nothing of requests or of the ring. This file imports nothing: `blas` is loaded
before MLX.
"""

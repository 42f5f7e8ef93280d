"""Layers of a dense model on a machine without a GPU: NumPy between the products of the BLAS.

MLX's CPU build takes 20 ns for an exponential and 10 µs for any operation, however small; around small
products that is most of a step. Here the same layers run on NumPy views of MLX's weights: half of the time at
16 rows, a third at one. Only float32, only model types that have a parity test, and never with a GPU: there
the model's own MLX code runs, as it does here for everything else (packed weights, experts, latents).
"""

from distributed.models.cpu.attention import softmax_in_place
from distributed.models.cpu.dense import DenseLayers, make_dense_layers

__all__ = ["DenseLayers", "make_dense_layers", "softmax_in_place"]

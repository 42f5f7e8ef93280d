"""Layers of a dense model on a machine without a GPU: NumPy between fast products.

MLX's CPU build takes 20 ns for an exponential and 10 µs for any operation, however small; around small
products that is most of a step. Here the same layers run on NumPy arrays: half of the time at 16 rows, a
third at one; packed weights halve what is left. Only float32, only model types that have a parity test, and
never with a GPU: there the model's own MLX code runs, as it does here for everything else (quantized weights,
experts, latents).
"""

from distributed.models.cpu.attention import softmax_in_place
from distributed.models.cpu.dense import DenseLayers, DensePlan, plan_dense_layers

__all__ = ["DenseLayers", "DensePlan", "plan_dense_layers", "softmax_in_place"]

"""Layers of a dense model on a machine without a GPU: NumPy between fast products.

MLX's CPU build takes 20 ns for an exponential and 10 µs for any operation, however small; around small
products that is most of a step. Here the same layers run on NumPy arrays: half of the time at 16 rows, a
third at one; packed weights halve what is left. Only float32, only model types that have a parity test, and
never with a GPU: there the model's own MLX code runs, as it does here for everything else (quantized weights,
latents). Of those, the experts of a chunk and its attention are run here.
"""

from distributed.models.cpu.attention import softmax_in_place
from distributed.models.cpu.dense import DenseLayers, DensePlan, plan_dense_layers
from distributed.models.cpu.experts import place_experts
from distributed.models.cpu.latents import attend_latents

__all__ = [
    "DenseLayers",
    "DensePlan",
    "attend_latents",
    "place_experts",
    "plan_dense_layers",
    "softmax_in_place",
]

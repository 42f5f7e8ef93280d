"""Which Backend a rank runs on: asked once, where the rank starts. What is not used here is not imported."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from config import Settings
from distributed.backends.backend import Backend
from distributed.planning.checkpoint import read_config
from distributed.planning.families.model_config import SCRIPTED_TYPE, SIMULATED_TYPE


def choose_products(settings: Settings) -> str | None:
    """Return what all ranks are to multiply with where there is no GPU; None: MLX runs the layers."""
    return settings.cpu_products if settings.cpu_layers == "numpy" else None


def choose_backend(folder: Path | None = None, products: str | None = None, rank: int = 0) -> Backend:
    """Return what runs the layers of a model here.

    Args:
        folder: the model's; None: there is none yet.
        products: as `choose_products` returns them.
        rank: which machine of a simulated ring this is.
    """
    model_type = None if folder is None else read_config(folder)["model_type"]
    if folder is not None and model_type == SIMULATED_TYPE:
        from distributed.backends.simulated import SimulatedBackend

        return SimulatedBackend(folder, rank)
    if folder is not None and model_type == SCRIPTED_TYPE:
        from distributed.backends.scripted import ScriptedBackend

        return ScriptedBackend(folder)
    if mx.default_device().type == mx.DeviceType.gpu:
        from distributed.backends.mlx import MlxBackend

        return MlxBackend()
    from distributed.backends.cpu.backend import CpuBackend

    return CpuBackend(products)

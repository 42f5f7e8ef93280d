"""Model families and how each is cut into stages, by the allow-list of `distributed/planning/families.py`.

A type is on the list only with a parity test; nothing is guessed from a model's structure, and no code from a
model folder is ever run. mlx-lm's modules are imported when a stage is loaded.
Knows nothing of requests, scheduling or the ring. Stages use `load_stage`; `prepare` puts a model into place.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from distributed.models.stage_model import StageModel
from distributed.planning.checkpoint import TensorInfo, read_config

if TYPE_CHECKING:
    from distributed.models.general import GeneralProvider

__all__ = ["StageModel", "check_model", "load_stage", "provider_for"]


def provider_for(config: dict[str, Any]) -> "GeneralProvider":
    """Return the provider of a config's model type, which `read_config` has found to be served."""
    if config["model_type"] == "deepseek_v2":
        from distributed.models.deepseek import DeepseekV2Provider

        return DeepseekV2Provider()
    from distributed.models.general import GeneralProvider

    return GeneralProvider()


def check_model(name: str, config: dict[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """Check that a model could be loaded, from its config and the headers of its weights alone.

    Args:
        config: as `read_config` returns it.

    Raises:
        ModelError: naming the tensor that is missing, left over, or of another shape or type.
    """
    provider_for(config).check(name, config, tensors)


def load_stage(
    folder: Path,
    layers: range,
    *,
    is_first: bool,
    is_last: bool,
    on_progress: Callable[[float], None] | None = None,
    dequantize: bool = False,
    dtype: str | None = None,
    cpu_products: str | None = None,
) -> StageModel:
    """Load one stage of the model in a folder, reading only its own tensors.

    Args:
        layers: the stage's layers, numbered over the whole model; not empty.
        on_progress: called with the share of the stage that is loaded, 0 to 1.
        dequantize: unpack quantized weights to dtype (faster on a CPU, where they fit).
        dtype: float32, float16 or bfloat16; default float32 without a GPU, else as stored.
        cpu_products: run dense float32 layers with `distributed.backends.cpu` and these products (a value of
            CPU_PRODUCTS); None, as where there is a GPU: with MLX.

    Raises:
        ModelError: the folder cannot be served; the start stops with its sentence.
    """
    config = read_config(folder)
    assert 0 <= layers.start < layers.stop <= config["num_hidden_layers"] and layers.step == 1, layers
    return provider_for(config).load(
        folder,
        config,
        layers,
        is_first=is_first,
        is_last=is_last,
        on_progress=on_progress,
        dequantize=dequantize,
        dtype=getattr(mx, dtype) if dtype else None,
        cpu_products=cpu_products,
    )

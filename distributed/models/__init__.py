"""Model families and how each is cut into stages, by an allow-list of `model_type`.

A type is on the list only with a parity test; nothing is guessed from a model's structure, and no code from a
model folder is ever run. mlx_lm, which takes seconds to import, is imported when a stage is loaded.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from distributed.checkpoint import UnsupportedModel, read_config
from distributed.models.stage_model import StageModel

if TYPE_CHECKING:
    from distributed.models.general import GeneralProvider

__all__ = ["StageModel", "load_stage", "provider_for"]

GENERAL_TYPES = ("llama", "ministral3", "qwen2", "qwen3", "qwen3_moe")
OWN_TYPES = ("deepseek_v2",)


def provider_for(config: dict[str, Any]) -> "GeneralProvider":
    """Return the provider of the config's model type.

    Raises:
        UnsupportedModel: the type is not on the list, or the folder wants its own code run.
    """
    model_type = config["model_type"]
    if config.get("model_file"):
        raise UnsupportedModel(f"the model brings its own code ({config['model_file']}), which is never run")
    if model_type in GENERAL_TYPES:
        from distributed.models.general import GeneralProvider

        return GeneralProvider()
    if model_type == "deepseek_v2":
        from distributed.models.deepseek_v2 import DeepseekV2Provider

        return DeepseekV2Provider()
    raise UnsupportedModel(
        f"model type {model_type!r} is not served; served are {', '.join(GENERAL_TYPES + OWN_TYPES)}"
    )


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
        cpu_products: run dense float32 layers with `distributed.models.cpu` and these products (its CHOICES);
            None, as where there is a GPU: with MLX.

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

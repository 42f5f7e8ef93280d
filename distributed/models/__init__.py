"""Model families and how each is cut into stages, by the allow-list of
`distributed/planning/families/served.py`.

A type is on the list only with a parity test; nothing is guessed from a model's structure, and no code from a
model folder is ever run. mlx-lm's modules are imported when a stage is loaded.
Knows nothing of requests, scheduling, the ring, or what runs the layers: backends use `open_stage` and put
what they run better in the place of parts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.models.stage_model import StageModel
from distributed.planning.checkpoint import TensorInfo, read_config
from distributed.planning.families.served import FAMILIES

if TYPE_CHECKING:
    from distributed.models.general import GeneralProvider, StageParts

__all__ = ["StageModel", "check_model", "open_stage", "provider_for"]


def provider_for(config: dict[str, Any]) -> "GeneralProvider":
    """Return the provider of a config's model type, which `read_config` has found to be served."""
    if FAMILIES[config["model_type"]].kv == "state":
        from distributed.models.hybrids import hybrid_provider

        return hybrid_provider(config["model_type"])
    if FAMILIES[config["model_type"]].kv == "latent":
        from distributed.models.deepseek import LatentProvider

        return LatentProvider()
    from distributed.models.general import GeneralProvider
    from distributed.models.windowed import PROVIDERS

    return PROVIDERS.get(config["model_type"], GeneralProvider)()


def check_model(name: str, config: dict[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """Check that a model could be loaded, from its config and the headers of its weights alone.

    Args:
        config: as `read_config` returns it.

    Raises:
        ModelError: naming the tensor that is missing, left over, or of another shape or type.
    """
    provider_for(config).check(name, config, tensors)


def open_stage(
    folder: Path, layers: range, *, is_first: bool, is_last: bool, keeps_windows: bool = False
) -> "StageParts":
    """Build one stage of the model in a folder; its own tensors, and no others, are read by `read`.

    Args:
        layers: the stage's layers, numbered over the whole model; not empty.
        keeps_windows: layers with a window keep no more than it.

    Raises:
        ModelError: the folder cannot be served; the start stops with its sentence.
    """
    config = {**read_config(folder), "keeps_windows": keeps_windows}
    assert 0 <= layers.start < layers.stop <= config["num_hidden_layers"] and layers.step == 1, layers
    return provider_for(config).open(folder, config, layers, is_first=is_first, is_last=is_last)

"""Step 3.5 in MLX's layout."""

import re
from collections.abc import Collection
from typing import Any

from distributed.models.general import GeneralProvider
from distributed.planning.checkpoint import UnsupportedModel
from distributed.planning.stage_files import StageCut
from distributed.planning.window_config import FULL

_AS_PUBLISHED = re.compile(r"model\.layers\.\d+\.(moe|share_expert)\.")


class StepProvider(GeneralProvider):
    """mlx-lm's step3p5."""

    def arguments(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return each layer's theta."""
        full, local = config["rope_theta"], config["local_rope_theta"]
        return {"rope_theta": [full if kind == FULL else local for kind in config["layer_types"]]}

    def _build_whole(
        self, name: str, config: dict[str, Any], tensors: Collection[str], layers: range, **ends: bool
    ) -> tuple[Any, StageCut]:
        # The class adds 1 to norms where it sees experts under these names, and a stage may have no experts.
        if any(_AS_PUBLISHED.match(tensor) for tensor in tensors):
            raise UnsupportedModel(
                f"{name}: Step 3.5 is served in MLX's layout, which mlx_lm.convert makes of this one"
            )
        return super()._build_whole(name, config, tensors, layers, **ends)

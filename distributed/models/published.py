"""Makes the sizes of published models (distributed/planning/published_sizes.json) from mlx-lm's classes.

    python -m distributed.models.published [--write]

Without --write it names the file if it is out of date. A model is built lazily and packed as mlx_lm.convert
does: what its weights would be is known, none is ever made, so this takes no memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from distributed.planning.published import CONFIGS, ENDS, SIZES_PATH
from distributed.planning.stage_files import LAYER
from prompts.mlx_lm_import import import_mlx_lm

_DTYPES = {mx.float32: "F32", mx.bfloat16: "BF16", mx.uint32: "U32", mx.uint8: "U8"}
_CLASSES = {"kimi_k2": "deepseek_v3"}  # mlx_lm 0.32.2 utils.py, MODEL_REMAPPING


def build_published(config: Mapping[str, Any]) -> Any:
    """Build mlx-lm's model of a published config.json lazily, packed and cast as mlx_lm.convert does."""
    model_type = config["model_type"]
    module = import_mlx_lm(f"models.{_CLASSES.get(model_type, model_type)}")
    model = module.Model(module.ModelArgs.from_dict(config))
    is_cast = getattr(model, "cast_predicate", lambda _: True)
    floats = {name: array.astype(mx.bfloat16) for name, array in _parameters(model).items() if is_cast(name)}
    model.load_weights(list(floats.items()), strict=False)
    quantization, own = config["quantization"], getattr(model, "quant_predicate", None)

    def predicate(path: str, part: Any) -> bool | dict[str, Any]:
        if not hasattr(part, "to_quantized") or part.weight.shape[-1] % quantization["group_size"]:
            return False
        found: bool | dict[str, Any] = quantization.get(path) or own is None or own(path, part)
        return found

    nn.quantize(model, quantization["group_size"], quantization["bits"], class_predicate=predicate)
    return model


def measure(model: Any) -> dict[str, dict[str, str]]:
    """Return the sizes of a model's tensors, in the form of published_sizes.json."""
    ends: dict[str, str] = {}
    layers: dict[int, dict[str, str]] = {}
    for name, array in sorted(_parameters(model).items()):
        size = f"{_DTYPES[array.dtype]} {'x'.join(map(str, array.shape))}"
        if match := LAYER.fullmatch(name):
            layers.setdefault(int(match[1]), {})[match[2]] = size
        else:
            ends[name] = size
    runs = [[number for number, _ in run] for _, run in groupby(sorted(layers.items()), lambda item: item[1])]
    return {ENDS: ends, **{f"{run[0]}-{run[-1]}": layers[run[0]] for run in runs}}


def make_sizes() -> str:
    """Return the text of published_sizes.json."""
    sizes = {name: measure(build_published(config)) for name, config in CONFIGS.items()}
    return json.dumps(sizes, indent=1) + "\n"


def _parameters(model: Any) -> dict[str, Any]:
    return dict(tree_flatten(model.parameters()))


def main(arguments: Sequence[str]) -> int:
    """Write the file, or name it if it is out of date."""
    if list(arguments) not in ([], ["--write"]):
        print("usage: python -m distributed.models.published [--write]", file=sys.stderr)
        return 2
    text = make_sizes()
    is_stale = not SIZES_PATH.is_file() or SIZES_PATH.read_text(encoding="utf-8") != text
    if is_stale and arguments:
        SIZES_PATH.write_text(text, encoding="utf-8")
    if is_stale:
        print(f"{SIZES_PATH.name}: {'written' if arguments else 'out of date'}")
    return 1 if is_stale and not arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

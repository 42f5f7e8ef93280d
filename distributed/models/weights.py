"""Bring weights into a lazily built model: read by name, packed or not, cast, evaluated one tensor at a time.

`mx.load` of a safetensors file is lazy: a tensor is read when it is evaluated, and only then takes memory. So
memory never exceeds what is kept by more than one tensor's raw form. Knows nothing of stages or of model
families.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from distributed.planning.checkpoint import BadCheckpoint, UnsupportedModel, read_header, tensor_files
from distributed.planning.families.model_config import QUANTIZATION_MODES, tensor_name
from prompts.mlx_lm_import import import_mlx_lm

mla = import_mlx_lm("models.mla")
switch_layers = import_mlx_lm("models.switch_layers")

Weights = dict[str, mx.array]

# Rounded, they would choose other experts, or forget faster or more slowly.
_NEVER_ROUNDED = ("e_score_correction_bias", "expert_bias", "router_bias", "A_log")
_UNPACK_VALUES = 1 << 16
_PLAIN = {
    nn.QuantizedLinear: nn.Linear,
    nn.QuantizedEmbedding: nn.Embedding,
    switch_layers.QuantizedSwitchLinear: switch_layers.SwitchLinear,
    mla.QuantizedMultiLinear: mla.MultiLinear,
}


def load_tensors(folder: Path, is_wanted: Callable[[str], bool]) -> Weights:
    """Return the wanted tensors, lazily; files that hold none of them are not opened.

    Raises:
        BadCheckpoint: a file is missing, cut short, or does not hold what the index says.
    """
    files = {name: file for name, file in tensor_files(folder).items() if is_wanted(name)}
    weights: Weights = {}
    for file in sorted(set(files.values())):
        names = {name for name, place in files.items() if place == file}
        if missing := names - read_header(folder / file).keys():
            raise BadCheckpoint(
                f"{folder / file} lacks {len(missing)} tensors of the index, first {min(missing)}"
            )
        loaded = {tensor_name(name): array for name, array in mx.load(str(folder / file)).items()}
        weights |= {name: loaded[name] for name in names}
    return weights


def quantize_modules(model: nn.Module, weights: Weights, config: dict[str, Any]) -> None:
    """Turn the modules whose weights are packed into quantized ones, as mlx-lm's load_model does.

    A module's entry in config["quantization"] overrides what its tensors say.
    """
    quantization = config.get("quantization")
    if quantization is None:
        return

    def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
        path = tensor_name(path)
        if not hasattr(module, "to_quantized") or f"{path}.scales" not in weights:
            return False
        override = quantization.get(path)
        return override if isinstance(override, dict) else _packing(path, module, weights)

    nn.quantize(
        model,
        group_size=quantization["group_size"],
        bits=quantization["bits"],
        mode=quantization.get("mode", "affine"),
        class_predicate=predicate,
    )


def _packing(path: str, module: Any, weights: Weights) -> dict[str, Any]:
    """How a module was packed, by its tensors' shapes (mlx_lm 0.32.2 utils.py, infer_quant_config).

    Raises:
        BadCheckpoint: in no way that MLX knows.
    """
    scales, width = weights[f"{path}.scales"], module.weight.shape[-1]
    group_size, bits = width // scales.shape[-1], weights[f"{path}.weight"].shape[-1] * 32 // width
    is_affine = scales.dtype != mx.uint8
    for mode, (group_sizes, widths) in QUANTIZATION_MODES.items():
        if (mode == "affine") == is_affine and group_size in group_sizes and bits in widths:
            return {"group_size": group_size, "bits": bits, "mode": mode}
    raise BadCheckpoint(f"{path} is packed with {bits} bits in groups of {group_size}, which no mode has")


def fill(model: nn.Module, weights: Weights) -> None:
    """Put the weights into the model, lazily; every parameter must be given, and nothing else.

    Raises:
        BadCheckpoint: naming the first tensor that is missing, left over, or of another shape.
    """
    parameters = dict(tree_flatten(model.parameters()))
    for what, names in (
        ("lacks", parameters.keys() - weights.keys()),
        ("has unknown", weights.keys() - parameters.keys()),
    ):
        if names:
            raise BadCheckpoint(
                f"the checkpoint {what} {len(names)} tensors of this stage, first {min(names)}"
            )
    for name, array in weights.items():
        if array.shape != parameters[name].shape:
            raise BadCheckpoint(f"{name} has shape {array.shape}, the config says {parameters[name].shape}")
    model.update(tree_unflatten(list(weights.items())))


def materialize(
    model: nn.Module,
    dtype: Any,
    *,
    dequantize: bool = False,
    on_module: Callable[[str, nn.Module], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> None:
    """Read every tensor of the model, floats cast to dtype, module by module: raw forms do not pile up.

    The largest come first, so that what a module needs for a moment, its raw form, is less than what is still
    to come. The caller must hold no other reference to the tensors, or they stay in memory uncast.

    Args:
        dequantize: replace quantized modules by plain ones of dtype.
        on_module: called with the path of each module that holds tensors, and itself, when it has been read;
            may take them away.
    """
    modules = sorted(model.named_modules(), key=lambda item: _own_bytes(item[1]))
    total = sum(_own_bytes(module) for _, module in modules) or 1
    done = 0
    while modules:
        path, module = modules.pop()  # the last reference to a module that is replaced
        done += _own_bytes(module)
        if dequantize and type(module) in _PLAIN:
            module = _dequantized(module, dtype)
            model.update_modules(tree_unflatten([(path, module)]))
        else:
            _materialize_own(module, dtype)
        if on_module:
            on_module(path, module)
        mx.clear_cache()  # MLX keeps freed buffers otherwise, 32 MB on a CPU
        if on_progress:
            on_progress(done / total)


def _own_parameters(module: nn.Module) -> list[str]:
    return [key for key, value in module.items() if isinstance(value, mx.array) and not key.startswith("_")]


def _own_bytes(module: nn.Module) -> int:
    return sum(module[key].nbytes for key in _own_parameters(module))


def _materialize_own(module: nn.Module, dtype: Any) -> None:
    for key in _own_parameters(module):
        stored = module[key].dtype
        is_rounded = dtype.size < stored.size
        if mx.issubdtype(stored, mx.floating) and not (is_rounded and key in _NEVER_ROUNDED):
            module[key] = module[key].astype(dtype)
        mx.eval(module[key])


def _dequantized(module: Any, dtype: Any) -> nn.Module:
    """Return the plain module of a quantized one, evaluated."""
    if module.get("global_scale") is not None:
        raise UnsupportedModel("weights packed with a global scale (nvfp4) are not dequantized")
    weight = _unpacked(module, dtype)
    plain = _PLAIN[type(module)](*([1] * weight.ndim))  # sizes of no account: the weight is replaced
    plain.weight = weight
    plain.pop("bias", None)
    if "bias" in module:
        plain.bias = module["bias"].astype(dtype)
    mx.eval(plain.parameters())
    return plain


def _unpacked(module: Any, dtype: Any) -> mx.array:
    """Unpack a quantized module's weight, a few rows at a time: MLX needs three times their size on a CPU.

    Scales are cast before they multiply, so that half precision rounds nothing.
    """
    shape = (*module["weight"].shape[:-1], module["scales"].shape[-1] * module.group_size)
    packed, scales = (module[key].reshape(-1, module[key].shape[-1]) for key in ("weight", "scales"))
    biases: Any = module.get("biases")
    is_affine = biases is not None
    if is_affine:
        biases = biases.reshape(scales.shape)
    out = mx.zeros((packed.shape[0], shape[-1]), dtype=dtype)
    step = max(1, _UNPACK_VALUES // shape[-1])
    for start in range(0, packed.shape[0], step):
        rows = slice(start, start + step)
        out[rows] = mx.dequantize(
            packed[rows],
            scales[rows].astype(dtype) if is_affine else scales[rows],
            biases[rows].astype(dtype) if is_affine else None,
            group_size=module.group_size,
            bits=module.bits,
            mode=module.mode,
        )
        mx.eval(out)
    return out.reshape(shape)

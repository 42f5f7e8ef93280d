"""The classes of kernels that MLX would run on Metal: what one of them is compiled or picked for.

    with recorded() as classes:
        ...    # every evaluation adds its operations

A class is an operation, the types of its inputs, and what of their shapes tells kernels apart in mlx 0.32.4
(backend/metal): which dimensions are 1, the number of index arrays, full tiles or not, few rows or many, long
rows or short. The operations come from the graph of what is evaluated. Those of `mx.fast` are counted where
they are called, since without a GPU a graph has other operations in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any
from unittest.mock import patch

import mlx.core as mx
from mlx.utils import tree_flatten

from distributed.engine.warm_up import LONG_CONTEXTS, TILE

KernelClass = tuple[Any, ...]
Shape = tuple[int, ...]

# They run no kernel of their own.
VIEWS = {"Broadcast", "ExpandDims", "Squeeze", "Transpose", "Slice", "Split"}
VIEWS |= {"Flatten", "Reshape", "Unflatten"}
FEW_ROWS = 5  # so many share one read of a matrix
FEW_COLUMNS = 8  # of a step, for attention
MANY_SCORES = 4096  # a row that softmax reads in several parts


@contextmanager
def recorded() -> Iterator[set[KernelClass]]:
    """Collect the classes of all that is evaluated meanwhile."""
    found: set[KernelClass] = set()

    def noting(evaluate: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arrays: Any) -> Any:
            lazy = [array for _, array in tree_flatten(arrays)]
            mx.export_function(lambda event: _note(event, found), lambda: lazy)
            return evaluate(*arrays)

        return run

    def counting(name: str) -> Callable[..., Any]:
        call = getattr(mx.fast, name)

        def run(*inputs: Any, **options: Any) -> Any:
            found.add(FAST[name](*inputs, **options))
            return call(*inputs, **options)

        return run

    def contiguous(x: mx.array) -> mx.array:  # cannot be exported
        found.add(("Contiguous", str(x.dtype), _ones([x.shape])))
        return x * 1

    with ExitStack() as patches:
        mx.disable_compile()
        patches.callback(mx.enable_compile)
        for owner, name in ((mx, "eval"), (mx, "async_eval"), (mx.array, "tolist")):
            patches.enter_context(patch.object(owner, name, noting(getattr(owner, name))))
        for name in FAST:
            patches.enter_context(patch.object(mx.fast, name, counting(name)))
        patches.enter_context(patch.object(mx, "contiguous", contiguous))
        yield found


def _note(event: dict[str, Any], found: set[KernelClass]) -> None:
    """Add one operation of an exported graph."""
    if event["type"] != "primitive" or event["name"] in VIEWS:
        return
    name, arguments = event["name"], event["arguments"]
    shapes = [shape for _, shape, _ in event["inputs"]]
    types = tuple(str(dtype).rpartition(".")[2] for *_, dtype in event["inputs"])
    output = event["outputs"][0][1]
    kind = SHAPES[name](shapes, output, arguments) if name in SHAPES else _ones(shapes)
    found.add((name, types, kind))


def _ones(shapes: list[Shape]) -> KernelClass:
    """Which dimensions are 1: copies and elementwise kernels go by the number of the others."""
    return tuple(tuple(min(size, 2) for size in shape) for shape in shapes)


def _rows_class(num_rows: int) -> Any:
    """Of a product's rows: one to five, a power of two, then with full tiles or not."""
    if num_rows <= FEW_ROWS:
        return num_rows
    band = 1 << (num_rows - 1).bit_length()
    return band if band < TILE else (band, num_rows % TILE == 0)


def _product(shapes: list[Shape], output: Shape, arguments: Any) -> KernelClass:
    """A matrix product: of a vector, or by size of the output, parts of the depth, and full tiles."""
    (*batch, num_rows, depth), num_columns = shapes[0], shapes[1][-1]
    num = prod(batch)
    if 1 in (num_rows, num_columns):
        return ("vector", num_rows > 1, num_columns > 1, num > 1)
    is_large = num * num_rows * num_columns >= 1 << 20
    return (
        num_rows if num_rows <= FEW_ROWS else 0,
        num > 1,
        num == 1 and (num_rows // 16) * (num_columns // 16) <= 32 and depth >= 128,
        is_large and 1 + (2 * max(num_rows, num_columns) > depth),
        tuple(size % TILE == 0 for size in (num_rows, num_columns, depth)),
    )


def _packed_product(shapes: list[Shape], output: Shape, arguments: Any) -> KernelClass:
    if len(shapes[1]) == 2:
        return (_rows_class(prod(shapes[0][:-1])), shapes[1])
    # one product a head: the depth is not split, so all large ones are alike
    return (min(shapes[0][-2], FEW_ROWS + 1), shapes[1])


def _expert_product(shapes: list[Shape], output: Shape, arguments: Any) -> KernelClass:
    """Sorted tokens share reads of their expert, from four tokens an expert on."""
    num, num_experts = prod(output[:-2]), shapes[1][0]
    is_sorted = any(argument is True for argument in arguments[-2:])
    is_shared = is_sorted and num >= 16 and num // num_experts >= 4
    return (shapes[0][-2:], shapes[1], is_sorted, is_shared and 1 + (num % TILE == 0))


def _indexed(shapes: list[Shape], output: Shape, arguments: Any) -> KernelClass:
    """A gather or scatter: dimensions of the source and of each index array."""
    return tuple(len(shape) for shape in shapes)


def _long_row(shapes: list[Shape], output: Shape, arguments: Any) -> KernelClass:
    return (len(shapes[0]), shapes[0][-1] > MANY_SCORES)


def _sort(shapes: list[Shape], output: Shape, arguments: Any) -> KernelClass:
    """By the size of one block, which grows to 2,048; then in several."""
    return (len(shapes[0]), min(1 << (shapes[0][-1] - 1).bit_length(), 4096))


def _reduce(shapes: list[Shape], output: Shape, arguments: Any) -> KernelClass:
    is_long = prod(shapes[0]) > 64 * max(1, prod(output))
    return (str(arguments), is_long, _ones(shapes))


SHAPES: dict[str, Callable[[list[Shape], Shape, Any], KernelClass]] = {
    "Matmul": _product,
    "AddMM": _product,
    "QuantizedMatmul": _packed_product,
    "GatherQMM": _expert_product,
    "GatherMM": _expert_product,
    **dict.fromkeys(("Gather", "Scatter", "GatherAxis", "ScatterAxis"), _indexed),
    **dict.fromkeys(("Softmax", "LogSumExp"), _long_row),
    **dict.fromkeys(("Sort", "ArgSort", "Partition", "ArgPartition"), _sort),
    "Reduce": _reduce,
}


def _norm(x: mx.array, weight: Any = None, *rest: Any, **options: Any) -> KernelClass:
    return ("norm", str(x.dtype), x.shape[-1], weight is not None)


def _rope(x: mx.array, *rest: Any, **options: Any) -> KernelClass:
    offset = options["offset"]
    is_by_row = isinstance(offset, mx.array) and offset.ndim > 0
    return ("rope", str(x.dtype), x.shape[-2] == 1, is_by_row, options.get("freqs") is not None)


def _attention(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> KernelClass:
    (num_rows, num_heads, num_new, width), num_seen = q.shape, k.shape[2]
    mask = options.get("mask")
    if num_new <= FEW_COLUMNS:
        size: Any = sum(num_seen >= limit for limit in LONG_CONTEXTS)
    else:
        size = (num_new % TILE == 0, num_seen % TILE == 0)
    kind = mask if mask is None or isinstance(mask, str) else str(mask.dtype)
    return ("attention", str(q.dtype), num_rows > 1, num_heads // k.shape[1], width, v.shape[-1], kind, size)


FAST: dict[str, Callable[..., KernelClass]] = {
    "rms_norm": _norm,
    "layer_norm": _norm,
    "rope": _rope,
    "scaled_dot_product_attention": _attention,
}

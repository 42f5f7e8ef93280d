"""mlx-lm's own model in one process, over a prompt and a known answer.

    python -m bench.reference < INPUT > OUTPUT

INPUT is {"model", "blas", "threads", "sequences": [{"prompt_ids", "answer_ids"}]}; OUTPUT is [[{"token_id",
"gap", "deficit"} for each answer token] for each sequence]: the token with the highest logit at that step,
its distance to the second highest, and its distance to the answer's token (0 if both are the same). It runs
as a process of its own, because the rest of the bench imports no MLX. Knows no server.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Read, compute, write."""
    task = json.load(sys.stdin)
    # Imported here: the BLAS must load before any module that imports MLX.
    from distributed.backends.cpu.blas import load_fast_blas

    load_fast_blas(task["blas"], int(task["threads"]))
    steps_of = load_reference(Path(task["model"]))
    found = [steps_of(each["prompt_ids"], each["answer_ids"]) for each in task["sequences"]]
    json.dump(found, sys.stdout)


def load_reference(folder: Path) -> Callable[[list[int], list[int]], list[dict[str, Any]]]:
    """Load the whole model; return a function that computes the steps of one answer."""
    import mlx.core as mx

    from distributed.models.weights import load_tensors, quantize_modules
    from distributed.planning.checkpoint import read_config
    from prompts.mlx_lm_import import import_mlx_lm

    config = read_config(folder)
    module = import_mlx_lm(f"models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    weights = model.sanitize(load_tensors(folder, lambda _: True))
    quantize_modules(model, weights, config)
    model.load_weights(list(weights.items()))
    model.set_dtype(mx.float32)  # what ours runs in without a GPU; half precision has near ties of its own

    def steps_of(prompt_ids: list[int], answer_ids: list[int]) -> list[dict[str, Any]]:
        if not answer_ids:
            return []
        inputs = mx.array([prompt_ids + answer_ids[:-1]])  # (1, T)
        logits = model(inputs)[0, len(prompt_ids) - 1 :].astype(mx.float32)  # (answer tokens, V)
        top = mx.argmax(logits, axis=-1)
        best = mx.max(logits, axis=-1)
        second = mx.topk(logits, 2, axis=-1).min(axis=-1)
        own = mx.take_along_axis(logits, mx.array(answer_ids)[:, None], axis=-1)[:, 0]
        columns = (top.tolist(), (best - second).tolist(), (best - own).tolist())
        return [
            {"token_id": token_id, "gap": gap, "deficit": deficit}
            for token_id, gap, deficit in zip(*columns, strict=True)
        ]

    return steps_of


if __name__ == "__main__":
    main()

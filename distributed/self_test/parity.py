"""The parity lines: greedy tokens of the commonest families on this machine's device against mlx-lm's own.

Ours runs in the type that this device computes in: as stored on a GPU, packed weights too. mlx-lm's model
runs once in the same type on the same device, once in float32 on the CPU. Rounding may choose another of two
tokens that are nearly as likely, so a first difference is shown with the distance of the two best logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from distributed.backends.backend import Backend
from distributed.backends.choose import choose_backend, choose_products
from distributed.backends.stage import Stage
from distributed.models.weights import load_tensors, quantize_modules
from distributed.planning.checkpoint import read_config
from distributed.planning.model_shape import read_shape
from distributed.planning.step import StageStep
from distributed.self_test.reporting import Report, Task
from distributed.self_test.seeded_models import FAMILY_CONFIGS, make_model, make_model_folder
from distributed.utils import shard_and_load
from prompts.mlx_lm_import import import_mlx_lm

PROMPT = tuple((7 * i + 3) % 250 for i in range(23))
KINDS = {"bfloat16": None, "8 bits": 8}
# The tiny models' two best logits are apart by some units; rounding moves them by less than this.
MAX_MARGIN = 1.0


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, and by token how far the best logit was above the second."""

    tokens: list[int]
    margins: list[float]

    def first_difference(self, tokens: Sequence[int]) -> tuple[int, float] | None:
        """Return where others differ, and the margin there; None: nowhere."""
        pairs = zip(self.tokens, tokens, strict=True)
        return next(((i, self.margins[i]) for i, (own, other) in enumerate(pairs) if own != other), None)


def run(task: Task, report: Report) -> None:
    """Report a line a family."""
    for family in FAMILY_CONFIGS:
        name = f"parity-{family}"
        with report.attempt(name):
            found = {
                kind: compare(make_tiny(task.folder, family, bits), task, choose_backend_of(task))
                for kind, bits in KINDS.items()
            }
            texts = [
                f"{kind}: {describe(differences, task.amounts.parity_tokens)}"
                for kind, differences in found.items()
            ]
            is_wrong = any(
                one is not None and one[1] > MAX_MARGIN for each in found.values() for one in each.values()
            )
            report.line(name, "; ".join(texts), found, failed=is_wrong)


def make_tiny(folder: Path, family: str, bits: int | None) -> Path:
    """Make the family's tiny model."""
    place = folder / f"tiny-{family}-{bits or 16}"
    return make_model_folder(place, FAMILY_CONFIGS[family], bits=bits, dtype=mx.bfloat16)


def choose_backend_of(task: Task) -> Backend:
    """Return what serves models here."""
    return choose_backend(products=choose_products(task.settings))


def compare(folder: Path, task: Task, backend: Backend) -> dict[str, tuple[int, float] | None]:
    """Return the first difference from each of mlx-lm's two runs."""
    stage = load_whole_stage(folder, backend)
    num_tokens = task.amounts.parity_tokens
    tokens = answer_of_stage(stage, num_tokens).tokens
    same_type = answer_of_mlx_lm(folder, stage.model.dtype, num_tokens)
    with mx.stream(mx.cpu):
        exact = answer_of_mlx_lm(folder, mx.float32, num_tokens)
    return {
        "mlx-lm": same_type.first_difference(tokens),
        "CPU float32": exact.first_difference(tokens),
    }


def describe(differences: dict[str, tuple[int, float] | None], num_tokens: int) -> str:
    """Say it in some words."""
    texts = [
        f"token {found[0] + 1} of {num_tokens} differs from {name} (margin {found[1]:.2f})"
        for name, found in differences.items()
        if found
    ]
    return ", ".join(texts) or f"{num_tokens} tokens equal"


def load_whole_stage(folder: Path, backend: Backend) -> Stage:
    """Load a model as a ring of one does."""
    dequantize = backend.should_dequantize(read_shape(folder, dequantize=True, float_bytes=4))
    return Stage(shard_and_load(folder, 0, 1, backend=backend, dequantize=dequantize))


def answer_of_stage(stage: Stage, num_tokens: int) -> Answer:
    """Answer the prompt as rank 0 does: a chunk, then token by token."""

    def next_logits(ids: Sequence[int], offset: int) -> mx.array:
        step = StageStep(0, slots=(0,), offsets=(offset,), counts=(len(ids),), num_tokens=len(ids))
        return stage.logits(step, stage.run(step, mx.array([ids], mx.int32)))[0]

    return _answer(next_logits, num_tokens)


def load_mlx_lm(folder: Path, dtype: Any) -> Any:
    """Load mlx-lm's own model of a folder; dtype None: as stored."""
    config = read_config(folder)
    model = make_model(config)
    weights = load_tensors(folder, lambda _: True)
    weights = model.sanitize(weights) if hasattr(model, "sanitize") else weights
    quantize_modules(model, weights, config)
    model.load_weights(list(weights.items()))
    if dtype is not None:
        model.set_dtype(dtype)
    mx.eval(model.parameters())
    return model


def answer_of_mlx_lm(folder: Path, dtype: Any, num_tokens: int) -> Answer:
    """Answer the prompt as mlx_lm.generate does."""
    model = load_mlx_lm(folder, dtype)
    cache = import_mlx_lm("models.cache").make_prompt_cache(model)
    return _answer(lambda ids, _: model(mx.array([ids]), cache=cache)[0, -1], num_tokens)


def _answer(next_logits: Any, num_tokens: int) -> Answer:
    answer, ids, offset = Answer([], []), list(PROMPT), 0
    for _ in range(num_tokens):
        logits = next_logits(ids, offset).astype(mx.float32)
        second, best = mx.sort(mx.topk(logits, 2)).tolist()
        answer.margins.append(round(best - second, 4))
        offset += len(ids)
        ids = [int(mx.argmax(logits).item())]
        answer.tokens.extend(ids)
    return answer

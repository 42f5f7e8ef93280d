"""The lines of steps: each shape class at first and again, where a step's time goes, pauses, memory, latents.

Of one model in one rank: the one that the part `model` made, or the user's. What is timed is a whole step:
layers, head, and the id of the best logit in Python.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx

from config.limits import count_cores
from distributed.backends.backend import Backend, StageRunner
from distributed.backends.choose import choose_backend, choose_products
from distributed.backends.cpu.threads import ProductThreads
from distributed.backends.memory import check_memory
from distributed.backends.stage import Stage
from distributed.planning.checkpoint import read_config
from distributed.planning.model_shape import read_shape
from distributed.planning.step import StageStep
from distributed.self_test.reporting import Report, Task, format_mb
from distributed.self_test.seeded_models import FAMILY_CONFIGS, YARN, make_model_folder
from distributed.utils import shard_and_load

DECODE_ROWS, DRAFT_COUNTS = (1, 4, 8, 16), (4, 8)
DECODE_OFFSET = 64
NUM_AGAIN = 5
KEEP_WARM_S = 0.5  # between tiny evaluations
GROWN_TOKENS = 8  # by which the context is longer at each step of the memory line
LATENT_LAYERS, LATENT_CHUNK = 4, 512
MODEL_CONFIG = {
    "rope_scaling": {**YARN, "original_max_position_embeddings": 4096},
    "max_position_embeddings": 16384,
    "q_lora_rank": None,
    "attention_bias": False,
}


def make_model(task: Task, report: Report) -> None:
    """Make the seeded model of the task's size where there is none, and report what is measured."""
    size, began = task.amounts, time.monotonic()
    if not task.model.is_dir():
        config = {**FAMILY_CONFIGS["deepseek_v2"], **MODEL_CONFIG, **size.model}
        make_model_folder(task.model, config, bits=size.bits, dtype=getattr(mx, size.dtype))
    made_s = time.monotonic() - began
    stage = load_stage(task)
    model, backend = stage.model, backend_of(task)
    config = read_config(task.model)
    text = (
        f"{config['model_type']}, {len(model.layers)} layers, {format_mb(model.weights_bytes)} in "
        f"{str(model.dtype).removeprefix('mlx.core.')} on the {backend.name}, "
        f"loaded in {time.monotonic() - began - made_s:.1f} s"
    )
    figures = {"made_s": round(made_s, 2), "weights_bytes": model.weights_bytes, "device": backend.name}
    report.line("model", text, figures)


def backend_of(task: Task) -> Backend:
    """Return what serves the model here."""
    return choose_backend(task.model, choose_products(task.settings))


def load_stage(task: Task, rank: int = 0, ring_size: int = 1, layers: range | None = None) -> Stage:
    """Load one rank's stage of the task's model, or some first layers of it.

    Raises:
        DoesNotFit: it is larger than this machine.
    """
    backend = backend_of(task)
    shape = read_shape(task.model, dequantize=True, float_bytes=4)
    dequantize = backend.should_dequantize(shape)
    needed = read_shape(task.model, dequantize=dequantize, float_bytes=backend.float_bytes)
    check_memory(task.settings, needed, (range(needed.num_layers),), backend.limit_bytes())
    if layers is not None:
        runner = backend.load(task.model, layers, is_first=True, is_last=False, dequantize=dequantize)
    else:
        runner = shard_and_load(task.model, rank, ring_size, backend=backend, dequantize=dequantize)
    backend.limit_memory(runner.model.weights_bytes)
    num_threads = max(1, count_cores() // ring_size)
    return Stage(runner, ProductThreads(num_threads, num_threads))


class Stepper:
    """Steps a stage and times it."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.model = stage, stage.model
        self._watched = _Watched(stage.runner)
        stage.runner = cast(StageRunner, self._watched)

    def step(self, num_rows: int, num_tokens: int, offset: int) -> dict[str, float]:
        """Run a step of rows whose contexts are a token longer each; return where its time went, in seconds.

        All logits of a draft are asked for. A stage may submit layers while it builds others.
        """
        offsets = tuple(offset + row for row in range(num_rows))
        step = StageStep(0, tuple(range(num_rows)), offsets, (num_tokens,) * num_rows, num_tokens)
        is_draft = num_rows == 1 and 1 < num_tokens <= 1 + max(DRAFT_COUNTS)
        wanted = [(0, column) for column in range(num_tokens)] if is_draft else None
        inputs = self._inputs(num_rows, num_tokens, offset)
        began = time.perf_counter()
        hidden = self.stage.run(step, inputs)
        done_at = time.perf_counter()
        if self.model.is_last:
            mx.argmax(self.stage.logits(step, hidden, wanted), axis=-1).tolist()
        end = time.perf_counter()
        built_at, waited_at = self._watched.built_at, self._watched.waited_at
        return {
            "build": built_at - began,
            "submit": waited_at - built_at,
            "wait": done_at - waited_at,
            "head": end - done_at,
            "total": end - began,
        }

    def median_s(
        self, count: int, num_rows: int = 1, num_tokens: int = 1, offset: int = DECODE_OFFSET
    ) -> float:
        """Return the median of some equal steps."""
        return statistics.median(self.step(num_rows, num_tokens, offset)["total"] for _ in range(count))

    def _inputs(self, num_rows: int, num_tokens: int, seed: int) -> mx.array:
        shape = (num_rows, num_tokens)
        if not self.model.is_first:
            return mx.zeros((*shape, self.model.hidden_size), self.model.dtype)
        inputs = mx.random.randint(0, self.model.vocab_size, shape, key=mx.random.key(seed)).astype(mx.int32)
        mx.eval(inputs)
        return inputs


class _Watched:
    """A stage's runner that notes when the layers were built, and when the stage began to wait for them."""

    def __init__(self, runner: StageRunner) -> None:
        self._runner, self.built_at, self.waited_at = runner, 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def forward(self, x: mx.array, begun: Any) -> mx.array:
        hidden = self._runner.forward(x, begun)
        self.built_at = time.perf_counter()
        return hidden

    def wait(self, *arrays: Any) -> None:
        self.waited_at = time.perf_counter()
        self._runner.wait(*arrays)


def run(task: Task, report: Report) -> None:
    """Report shape classes, a step's times, steps after pauses, and latents."""
    size, stepper = task.amounts, Stepper(load_stage(task))
    shapes = {
        **{f"shape-rows-{count}": (count, 1, DECODE_OFFSET) for count in DECODE_ROWS},
        **{f"shape-chunk-{count}": (1, count, 0) for count in size.chunks},
        **{f"shape-draft-{count}": (1, 1 + count, DECODE_OFFSET) for count in DRAFT_COUNTS},
    }
    for name, shape in shapes.items():
        with report.attempt(name):
            _report_shape(stepper, name, shape, report)
    with report.attempt("step"):
        _report_step(stepper, size.num_steps, report)
    for pause_s in size.pauses_s:
        with report.attempt(f"pause-{pause_s:g}s"):
            _report_pause(stepper, f"pause-{pause_s:g}s", [pause_s], report)
    with report.attempt("keep-warm"):
        naps = [min(KEEP_WARM_S, size.pauses_s[-1])] * max(1, int(size.pauses_s[-1] / KEEP_WARM_S))
        _report_pause(stepper, "keep-warm", naps, report)
    with report.attempt("latents"):
        _report_latents(task, report)


def _report_shape(stepper: Stepper, name: str, shape: tuple[int, int, int], report: Report) -> None:
    first, second = (stepper.step(*shape)["total"] for _ in range(2))
    report.times(name, {"first": first, "second": second, "later": stepper.median_s(NUM_AGAIN, *shape)})


def _report_step(stepper: Stepper, count: int, report: Report) -> None:
    stepper.median_s(NUM_AGAIN)
    found = [stepper.step(1, 1, DECODE_OFFSET) for _ in range(count)]
    report.times("step", {part: statistics.median(times[part] for times in found) for part in found[0]})


def _report_pause(stepper: Stepper, name: str, naps_s: Sequence[float], report: Report) -> None:
    """Time a step after a pause; several naps have tiny evaluations between them, and one at the end."""
    usual = stepper.median_s(NUM_AGAIN)
    for nap_s in naps_s:
        time.sleep(nap_s)
        if len(naps_s) > 1:
            mx.eval(mx.ones(1) + 1)
    late = stepper.step(1, 1, DECODE_OFFSET)["total"]
    report.times(name, {"without_a_pause": usual, "after_it": late})


def _report_latents(task: Task, report: Report) -> None:
    """Time a chunk behind a long context with both ways of latent attention (models/latent_attention.py)."""
    if read_config(task.model)["model_type"] != "deepseek_v2":
        report.line("latents", "only models of type deepseek_v2 have them")
        return
    size, found = task.amounts, {}
    chunk = min(LATENT_CHUNK, size.long_tokens // 2)
    for name, max_absorbed in (("keys_and_values", 0.0), ("absorbed", math.inf)):
        num_layers = min(LATENT_LAYERS, int(read_config(task.model)["num_hidden_layers"]) - 1)
        stage = load_stage(task, layers=range(num_layers))
        for layer in stage.model.own_layers:
            layer.self_attn.max_absorbed_tokens = max_absorbed
        stepper = Stepper(stage)
        shape = (1, chunk, size.long_tokens - chunk)
        stepper.step(*shape)
        found[name] = stepper.median_s(3, *shape) / num_layers
    report.times("latents", found, f" for a layer's chunk of {chunk} at {size.long_tokens} tokens")


def run_memory(task: Task, report: Report) -> None:
    """Report MLX's memory over steps of a growing context."""
    with report.attempt("memory"):
        stepper, count = Stepper(load_stage(task)), task.amounts.num_grown
        stepper.step(1, 1, 0)
        active, most_cache = [mx.get_active_memory()], 0
        mx.reset_peak_memory()
        for number in range(1, count + 1):
            stepper.step(1, 1, number * GROWN_TOKENS)
            active.append(mx.get_active_memory())
            most_cache = max(most_cache, mx.get_cache_memory())
        peak = mx.get_peak_memory()
        text = (
            f"{count} steps to {count * GROWN_TOKENS} tokens: active {format_mb(active[0])} to "
            f"{format_mb(active[-1])}, cache up to {format_mb(most_cache)}, peak {format_mb(peak)}"
        )
        figures = {
            "first_active_bytes": active[0],
            "last_active_bytes": active[-1],
            "max_cache_bytes": most_cache,
            "peak_bytes": peak,
        }
        report.line("memory", text, figures)

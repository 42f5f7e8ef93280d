"""A backend that takes the CPU for a GPU: MLX's own layers, in the type and packing that the weights have.

Beside it runs a device that exists in time only: each layer that is submitted occupies it for `layer_us`, one
after the other, while Python goes on, and a step waits for it. MLX then computes when a step waits, so it
takes no core from Python. A step of a new shape class first holds Python up, as a kernel does that is
compiled at its first use. The device counts how long it has nothing to do in a step: what Python does not
hide.

Real ranks run on it as `tests/services/stand_in_rank.py`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from distributed.backends.backend import StageRunner
from distributed.backends.kv_cache import KVTable, LayerCache
from distributed.backends.mlx import MlxBackend, MlxRunner
from distributed.backends.simulated import sleep_until
from distributed.models.general import StageParts
from distributed.models.stage_model import StageModel
from distributed.planning.step import StageStep

# From so many rows times tokens on, mlx-lm sorts the tokens of a mixture by expert (at most 8 of them each).
MANY_TOKENS = 8
# Attention over so many tokens uses other kernels (mlx 0.32.4, scaled_dot_product_attention.cpp).
LONG_CONTEXT = 1024


def shape_class(step: StageStep) -> tuple[object, ...]:
    """Return what decides which kernels a step needs."""
    num = step.num_rows * step.num_tokens
    is_level = len({offset + step.num_tokens for offset in step.offsets}) == 1
    is_range = step.slots == tuple(range(step.slots[0], step.slots[0] + step.num_rows))
    is_scattered = step.num_tokens == 1 and sum(map(bool, step.counts)) > 2
    return (
        min(num, 2) if num < MANY_TOKENS else MANY_TOKENS,
        min(step.num_tokens, 2),
        is_level,
        is_range,
        is_scattered,
        step.num_kv_tokens >= LONG_CONTEXT,
    )


@dataclass
class StandInDevice:
    """The queue of a GPU that exists in time only; times in nanoseconds of the monotonic clock."""

    layer_us: float = 0.0
    shape_ms: float = 0.0
    idle_us: list[int] = field(default_factory=list)  # of each step, from its frame's arrival to its end
    stalls_ns: list[int] = field(default_factory=list)  # when a new shape held Python up
    _shapes: set[tuple[object, ...]] = field(default_factory=set)
    _shape: tuple[object, ...] = ()
    _free_ns: int = 0  # when all that was submitted will be done
    _num_built: int = 0
    _is_in_step: bool = False
    _idle_ns: int = 0

    def enter(self) -> None:
        """A frame has arrived."""
        self._free_ns = max(self._free_ns, time.monotonic_ns())
        self._idle_ns, self._is_in_step = 0, True

    def begin(self, step: StageStep) -> None:
        """The graph of a step is about to be built."""
        self._num_built, self._shape = 0, shape_class(step)

    def build(self) -> None:
        """One more layer has been built, as far as its keys and values."""
        self._num_built += 1

    def submit(self) -> None:
        """All that has been built so far is handed over."""
        if self.shape_ms and self._shape not in self._shapes:
            self._shapes.add(self._shape)
            self.stalls_ns.append(time.monotonic_ns())
            time.sleep(self.shape_ms / 1000)
        self._wait_for_work(time.monotonic_ns())
        self._free_ns += int(self._num_built * self.layer_us * 1000)
        self._num_built = 0

    def wait(self) -> None:
        """Wait until all that was submitted is done; the real layers may take longer."""
        sleep_until(self._free_ns)
        self._free_ns = max(self._free_ns, time.monotonic_ns())

    def leave(self) -> None:
        """What the step gave is on its way."""
        if self._is_in_step:
            self._wait_for_work(time.monotonic_ns())
            self.idle_us.append(self._idle_ns // 1000)
            self._is_in_step = False

    def _wait_for_work(self, now: int) -> None:
        self._idle_ns += max(0, now - self._free_ns)
        self._free_ns = max(self._free_ns, now)


class CountedCache(LayerCache):
    """Tells the device of each layer; what the layer submits itself is submitted before."""

    device: StandInDevice

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        fetched = super().update_and_fetch(keys, values)
        self.device.build()
        return fetched


class CountedTable(KVTable):
    """A KV table whose steps the device sees."""

    make_layer = CountedCache

    def __init__(self, device: StandInDevice, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._device = device
        for layer in self.layers:
            assert isinstance(layer, CountedCache)
            layer.device = device

    def begin(self, step: StageStep, *, submits: bool = True) -> list[LayerCache]:
        self._device.begin(step)
        return super().begin(step, submits=submits)


class StandInRunner(MlxRunner):
    """MLX's own layers on the CPU, which take the device's time."""

    def __init__(self, model: StageModel, device: StandInDevice) -> None:
        super().__init__(model)
        self.device = device
        self.compiles_kernels = device.shape_ms > 0

    def make_table(self) -> KVTable:
        if self.model.kinds is not None:
            return super().make_table()
        return CountedTable(self.device, len(self.model.layers), self.submit, self.model.windows)

    def submit(self, *arrays: mx.array) -> None:
        self.device.submit()
        if not self.device.layer_us:
            super().submit(*arrays)

    def wait(self, *arrays: mx.array) -> None:
        super().wait(*arrays)
        self.device.wait()


class StandInGpu(MlxBackend):
    """What a Mac's ranks run, in half precision on any machine; unpacked experts need float32 on a CPU."""

    def __init__(self, device: StandInDevice | None = None) -> None:
        self.device = device or StandInDevice()

    def limit_bytes(self) -> int | None:
        return None

    def plan(self, parts: StageParts, dtype: Any, **options: Any) -> StageRunner:
        return StandInRunner(super().plan(parts, dtype, **options).model, self.device)

"""The seam: a Backend is the machine that a rank runs on, a StageRunner runs one stage's layers on it.

`mlx.py`, `cpu/backend.py`, `simulated.py` and `scripted.py` fill it; `choose.py` says which. Nobody else asks
what the machine is. The defaults here are those of a machine that computes when it is called, with memory
like any other program's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from distributed.models import StageModel, open_stage
from distributed.planning.model_shape import ModelShape
from distributed.planning.step import StageStep

if TYPE_CHECKING:
    from distributed.models.general import StageParts

Greedy = Callable[[mx.array], mx.array]


class StageRunner(ABC):
    """Runs the layers of one stage, and its head."""

    compiles_kernels = False  # at their first use, which then takes long
    can_build_ahead = False  # nothing is computed before it is waited for or submitted
    is_async = False  # the layers run on threads of MLX or on the GPU, and leave the caller's free
    # How many threads multiply from now on; None: that cannot be changed.
    use_threads: Callable[[int], None] | None = None
    # Lazily from logits (B, V) to each row's most likely id (B,) int32, -1 for a row that is not finite.
    # None: no faster way than to look at the whole row, so head and draws wait for the layers.
    greedy: Greedy | None = None
    # A tiny evaluation, for a GPU that falls asleep when idle (keep_warm.py); None: nothing falls asleep.
    touch: Callable[[], None] | None = None

    def __init__(self, model: StageModel) -> None:
        self.model = model

    @abstractmethod
    def make_table(self) -> Any:
        """Make an empty KV table of the kind that `forward` writes."""

    @abstractmethod
    def forward(self, x: mx.array, begun: Any) -> mx.array:
        """Start this stage's layers.

        Args:
            x: ids (B, T) int32 on the first stage, hidden states (B, T, D) on the others.
            begun: what `begin` of a table made by `make_table` returned.

        Returns:
            hidden states (B, T, D), after the final norm on the last stage.
        """

    @abstractmethod
    def logits(self, hidden: mx.array, rows: Sequence[int], columns: Sequence[int]) -> mx.array:
        """Return the logits (W, V) of some of the hidden states (B, T, D); last stage only."""

    def submit(self, *arrays: mx.array) -> None:
        """Start what makes these arrays, and return before they are there."""
        mx.async_eval(*arrays)

    def wait(self, *arrays: mx.array) -> None:
        """Wait until these arrays are there."""
        mx.eval(*arrays)

    def build_ahead(self, x: mx.array, table: Any, step: StageStep) -> tuple[mx.array, Callable[[], None]]:
        """Build a step of one token a row that may never come, on an input that is not there yet.

        Returns:
            What `forward` will return, lazy, and what takes the step back; the latter is dropped before the
            result is started.
        """
        raise NotImplementedError

    def drop_cache(self) -> None:
        """Give back the buffers that are kept for reuse."""
        return


class Backend(ABC):
    """What a rank's layers run on."""

    name: str  # "gpu" or "cpu", as /health tells it
    float_bytes: int | None  # of a float once loaded; None: as stored
    held_bytes: Callable[[], int] | None = None  # what the rank holds; None: its resident memory

    @abstractmethod
    def chunk_tokens(self, config: dict[str, Any]) -> int:
        """Return a prefill chunk's tokens: so few that decode rows wait little, enough to use the machine."""

    @abstractmethod
    def should_dequantize(self, shape: ModelShape) -> bool:
        """Say whether packed weights are to be unpacked; the shape is that of the unpacked ones."""

    def load(
        self,
        folder: Path,
        layers: range,
        *,
        is_first: bool,
        is_last: bool,
        dequantize: bool = False,
        dtype: str | None = None,
        keeps_windows: bool = False,
        on_progress: Callable[[float], None] | None = None,
    ) -> StageRunner:
        """Load one stage of the model in a folder, reading only its own tensors.

        Args:
            layers: the stage's layers, numbered over the whole model; not empty.
            dequantize: unpack quantized weights to dtype.
            dtype: float32, float16 or bfloat16; None: what this machine computes in.
            keeps_windows: layers with a window keep no more than it.
            on_progress: called with the share of the stage that is loaded, 0 to 1.

        Raises:
            ModelError: the folder cannot be served; the start stops with its sentence.
        """
        parts = open_stage(folder, layers, is_first=is_first, is_last=is_last, keeps_windows=keeps_windows)
        computed = getattr(mx, dtype) if dtype else self.dtype(parts.stored_dtype)
        return self.plan(parts, computed, dequantize=dequantize, on_progress=on_progress)

    @abstractmethod
    def dtype(self, stored: Any) -> Any:
        """Return what to compute in, for weights that are stored in a type."""

    @abstractmethod
    def plan(self, parts: StageParts, dtype: Any, **options: Any) -> StageRunner:
        """Read the weights and return what runs them.

        Args:
            parts: as models built them: their experts, latent attention or whole layers may be replaced.
            options: of `StageParts.read`.
        """

    def limit_bytes(self) -> int | None:
        """Return what the GPU may use; None: what is free counts."""
        return None

    def limit_memory(self, weights_bytes: int = 0, num_ranks: int = 1) -> None:
        """Keep weights in memory, and buffers for reuse in what the weights of the ranks here leave."""
        return

"""The ground that contenders stand on alike: model folder, ring size, BLAS and its threads.

Made from the settings (flags, environment, .env) with the built-in model and two ranks where nothing else is
set. Also gives out the bench's folder, which one run at a time may use. Knows no contender.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.contender import BenchError
from cluster.demo import add_demo_settings
from cluster.errors import ClusterError
from cluster.start import PREPARE, prepare_model
from config import ConfigError, Settings, load_settings
from config.limits import count_cores
from prompts.tokenizer import PromptTokenizer


@dataclass(frozen=True)
class Ground:
    """What is the same for all."""

    settings: Settings
    model_folder: Path
    num_ranks: int
    blas: str  # CPU_BLAS
    num_blas_threads: int
    folder: Path  # STATE_DIR/bench

    def make_encoder(self) -> Callable[[str], list[int]]:
        """Token ids of a chat of one turn, as the front door makes them."""
        tokenizer = PromptTokenizer(self.model_folder)

        def encode(prompt: str) -> list[int]:
            chat = tokenizer.render([{"role": "user", "content": prompt}])
            return tokenizer.encode_rendered(chat.text, literals=chat.literals)

        return encode


def make_ground(overrides: Mapping[str, str] | None = None) -> Ground:
    """Load the settings and put the model in place.

    Args:
        overrides: settings above all others.

    Raises:
        BenchError: with the reason.
    """
    overrides = add_demo_settings(overrides or {})
    try:
        settings = load_settings(overrides)
        prepare_model(settings, overrides, PREPARE)
        model_folder = settings.model_dir
    except (ConfigError, ClusterError) as error:
        raise BenchError(str(error)) from None
    threads = settings.blas_threads
    return Ground(
        settings=settings,
        model_folder=model_folder,
        num_ranks=settings.local_ranks,
        blas=settings.cpu_blas,
        num_blas_threads=max(1, count_cores() // settings.local_ranks) if threads == "auto" else int(threads),
        folder=settings.state_dir / "bench",
    )


@contextlib.contextmanager
def only_one(ground: Ground) -> Iterator[None]:
    """Hold the bench's folder; two benches at once would measure each other."""
    ground.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(ground.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BenchError(f"another bench runs with {ground.folder}") from None
    else:
        yield
    finally:
        os.close(descriptor)

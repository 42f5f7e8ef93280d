"""The settings of the ring and the engine, by group. See config/setting_groups.py for the form of a setting.

Reads no source of settings.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import FiniteFloat

from config.fields import (
    Auto,
    LayerSplit,
    OptionalPath,
    RingAddress,
    WorkerDir,
    WorkerHosts,
    WorkerPython,
    between,
    setting,
)
from config.setting_groups import RootedSettings

_ring, _engine = partial(setting, "Ring"), partial(setting, "Engine")


class RingSettings(RootedSettings):
    """The ranks, their hosts and their time limits."""

    local_ranks: int = _ring(1, "Ranks on this machine.", bounds=(1, 16), unit="ranks")
    worker_hosts: WorkerHosts = _ring(
        "",
        "Other hosts of the ring, in the order of their ranks; the service connects to them by ssh.",
        allowed="a comma list of [user@]host[:ranks][=address in the ring], localhost:ranks for more "
        "ranks of this machine, or empty for this machine alone",
    )
    ring_hostfile: OptionalPath = _ring(
        None,
        "Host file of mlx instead of WORKER_HOSTS, as mlx.distributed_config writes it. Its first host "
        "is this machine.",
    )
    ring_address: RingAddress = _ring(
        "127.0.0.1",
        "This machine's address in the ring. With other hosts, the default is the address from which it "
        "reaches the first of them.",
        allowed="the IPv4 address of an interface of this machine",
    )
    worker_dir: WorkerDir = _ring(
        "~/.local/share/mlx-ring-service",
        "Folder on the other hosts for code, virtual environment and models; made if missing.",
        allowed="a path on those hosts, absolute or below ~/",
    )
    worker_python: WorkerPython = _ring(
        "",
        "Python on the other hosts; empty: this machine's version, or else the newest from 3.11 on.",
        allowed="the name or path of a program on those hosts, or empty",
    )
    model_sync: Literal["copy", "hub"] = _ring(
        "copy",
        "How other hosts get their part of the model: this machine copies it (copy), or each host "
        "downloads it if it is a Hub model (hub).",
    )
    ring_secret_file: OptionalPath = _ring(
        None,
        "File of the secret that all ranks share; empty: ring.secret in STATE_DIR, made if missing.",
        is_secret=True,
    )
    layer_split: LayerSplit = _ring(
        "auto",
        "Number of layers of rank 0 (the last layers), rank 1, …",
        allowed="auto, or one count for each rank such as 15,15",
    )
    connect_timeout: FiniteFloat = _ring(
        45.0, "Time within which all ranks must connect.", bounds=(1, 3600), unit="seconds"
    )
    load_timeout: FiniteFloat = _ring(
        600.0, "Time within which all ranks must load their layers.", bounds=(1, 86_400), unit="seconds"
    )
    step_timeout: FiniteFloat = _ring(
        60.0, "Time after which a ring without a step is rebuilt.", bounds=(1, 86_400), unit="seconds"
    )
    shutdown_timeout: FiniteFloat = _ring(
        30.0, "Time for running requests to end at a stop.", bounds=(0, 86_400), unit="seconds"
    )


class EngineSettings(RootedSettings):
    """How the ring schedules and computes."""

    microbatches: Auto | Annotated[int, between(1, 64)] = _engine(
        "auto",
        "Microbatches in flight; one more may be on its way.",
        allowed="auto (as many as ranks, one where that is faster), or a whole number from 1 to 64",
    )
    max_rows_per_microbatch: int = _engine(
        32, "Most sequences in a microbatch.", bounds=(1, 1024), unit="rows"
    )
    prefill_chunk_tokens: Auto | Annotated[int, between(1, 65_536)] = _engine(
        "auto",
        "Most tokens of a prefill chunk.",
        unit="tokens",
        allowed="auto (512 on a GPU; without one 128, 256 with experts; fewer where a chunk would delay "
        "answers by more than 0.2 s), or a whole number from 1 to 65536",
    )
    speculation: Literal["prompt-lookup", "off"] = _engine(
        "prompt-lookup",
        "Guess the next tokens from the text so far and verify several of them in one lap, where "
        "measured costs predict a gain. The text stays the same. Never for hybrid models, nor where layers "
        "keep their windows alone.",
    )
    kv_cache_max_size: int = _engine(
        8192,
        "Most tokens in the prefix cache; with MAX_SEQUENCE_LENGTH=auto at least two whole contexts. "
        "0: none.",
        bounds=(0, 100_000_000),
        unit="tokens",
    )
    kv_cache_reserved_memory_mb: int = _engine(
        2048,
        "Memory of each rank for the KV of running sequences and the prefix cache.",
        bounds=(1, 1 << 24),
        unit="MiB",
    )
    keep_warm_minutes: FiniteFloat = _engine(
        5.0,
        "Time after the last request for which idle GPUs are kept awake by tiny evaluations, so that the "
        "next first token comes at once. 0: not at all.",
        bounds=(0, 10_080),
        unit="minutes",
        is_live=True,
    )
    cpu_layers: Literal["numpy", "mlx"] = _engine(
        "numpy",
        "What runs a dense model's float32 layers on a machine without a GPU: NumPy with a BLAS "
        "(faster), or MLX.",
    )
    cpu_products: Literal["auto", "kernels", "blas"] = _engine(
        "auto",
        "What multiplies in the NumPy layers: kernels with packed weights, compiled at the start (x86-64 "
        "with AVX2), or the BLAS. auto takes the first that works.",
    )
    cpu_blas: Literal["auto", "mkl", "openblas", "off"] = _engine(
        "auto", "The BLAS to load before MLX on Linux without a GPU."
    )
    blas_threads: Auto | Annotated[int, between(1, 1024)] = _engine(
        "auto",
        "Threads of each rank for products. With auto, products with packed weights use all cores while "
        "no other rank works.",
        allowed="auto (an equal share of the cores), or a whole number from 1 to 1024",
    )

"""The settings of the ring and the engine, by group. See config/setting_groups.py for the form of a setting.

Reads no source of settings.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import FiniteFloat

from config.fields import (
    About,
    Auto,
    LayerSplit,
    OptionalPath,
    RingAddress,
    WorkerDir,
    WorkerHosts,
    WorkerPython,
    between,
)
from config.setting_groups import RootedSettings


class RingSettings(RootedSettings):
    """The ranks, their hosts and their time limits."""

    local_ranks: Annotated[int, between(1, 16), About("Ring", "Ranks on this machine.", "ranks")] = 1
    worker_hosts: Annotated[
        WorkerHosts,
        About(
            "Ring",
            "Other hosts of the ring, in the order of their ranks; the service connects to them by ssh.",
            allowed="a comma list of [user@]host[:ranks][=address in the ring], localhost:ranks for more "
            "ranks of this machine, or empty for this machine alone",
        ),
    ] = ""
    ring_hostfile: Annotated[
        OptionalPath,
        About(
            "Ring",
            "Host file of mlx instead of WORKER_HOSTS, as mlx.distributed_config writes it. Its first host "
            "is this machine.",
        ),
    ] = None
    ring_address: Annotated[
        RingAddress,
        About(
            "Ring",
            "This machine's address in the ring. With other hosts, the default is the address from which it "
            "reaches the first of them.",
            allowed="the IPv4 address of an interface of this machine",
        ),
    ] = "127.0.0.1"
    worker_dir: Annotated[
        WorkerDir,
        About(
            "Ring",
            "Folder on the other hosts for code, virtual environment and models; made if missing.",
            allowed="a path on those hosts, absolute or below ~/",
        ),
    ] = "~/.local/share/mlx-ring-service"
    worker_python: Annotated[
        WorkerPython,
        About(
            "Ring",
            "Python on the other hosts; empty: this machine's version, or else the newest from 3.11 on.",
            allowed="the name or path of a program on those hosts, or empty",
        ),
    ] = ""
    model_sync: Annotated[
        Literal["copy", "hub"],
        About(
            "Ring",
            "How other hosts get their part of the model: this machine copies it (copy), or each host "
            "downloads it if it is a Hub model (hub).",
        ),
    ] = "copy"
    ring_secret_file: Annotated[
        OptionalPath,
        About(
            "Ring",
            "File of the secret that all ranks share; empty: ring.secret in STATE_DIR, made if missing.",
            is_secret=True,
        ),
    ] = None
    layer_split: Annotated[
        LayerSplit,
        About(
            "Ring",
            "Number of layers of rank 0 (the last layers), rank 1, …",
            allowed="auto, or one count for each rank such as 15,15",
        ),
    ] = "auto"
    connect_timeout: Annotated[
        FiniteFloat,
        between(1, 3600),
        About("Ring", "Time within which all ranks must connect.", "seconds"),
    ] = 45.0
    load_timeout: Annotated[
        FiniteFloat,
        between(1, 86_400),
        About("Ring", "Time within which all ranks must load their layers.", "seconds"),
    ] = 600.0
    step_timeout: Annotated[
        FiniteFloat,
        between(1, 86_400),
        About("Ring", "Time after which a ring without a step is rebuilt.", "seconds"),
    ] = 60.0
    shutdown_timeout: Annotated[
        FiniteFloat,
        between(0, 86_400),
        About("Ring", "Time for running requests to end at a stop.", "seconds"),
    ] = 30.0


class EngineSettings(RootedSettings):
    """How the ring schedules and computes."""

    microbatches: Annotated[
        Auto | Annotated[int, between(1, 64)],
        About(
            "Engine",
            "Microbatches in flight; one more may be on its way.",
            allowed="auto (as many as ranks, one where that is faster), or a whole number from 1 to 64",
        ),
    ] = "auto"
    max_rows_per_microbatch: Annotated[
        int, between(1, 1024), About("Engine", "Most sequences in a microbatch.", "rows")
    ] = 32
    prefill_chunk_tokens: Annotated[
        Auto | Annotated[int, between(1, 65_536)],
        About(
            "Engine",
            "Most tokens of a prefill chunk.",
            "tokens",
            allowed="auto (512 on a GPU; without one 128, 256 with experts; fewer where a chunk would delay "
            "answers by more than 0.2 s), or a whole number from 1 to 65536",
        ),
    ] = "auto"
    speculation: Annotated[
        Literal["prompt-lookup", "off"],
        About(
            "Engine",
            "Guess the next tokens from the text so far and verify several of them in one lap, where "
            "measured costs predict a gain. The text stays the same.",
        ),
    ] = "prompt-lookup"
    kv_cache_max_size: Annotated[
        int,
        between(0, 100_000_000),
        About(
            "Engine",
            "Most tokens in the prefix cache; with MAX_SEQUENCE_LENGTH=auto at least two whole contexts. "
            "0: none.",
            "tokens",
        ),
    ] = 8192
    kv_cache_reserved_memory_mb: Annotated[
        int,
        between(1, 1 << 24),
        About("Engine", "Memory of each rank for the KV of running sequences and the prefix cache.", "MiB"),
    ] = 2048
    cpu_layers: Annotated[
        Literal["numpy", "mlx"],
        About(
            "Engine",
            "What runs a dense model's float32 layers on a machine without a GPU: NumPy with a BLAS "
            "(faster), or MLX.",
        ),
    ] = "numpy"
    cpu_products: Annotated[
        Literal["auto", "kernels", "blas"],
        About(
            "Engine",
            "What multiplies in the NumPy layers: kernels with packed weights, compiled at the start (x86-64 "
            "with AVX2), or the BLAS. auto takes the first that works.",
        ),
    ] = "auto"
    cpu_blas: Annotated[
        Literal["auto", "mkl", "openblas", "off"],
        About("Engine", "The BLAS to load before MLX on Linux without a GPU."),
    ] = "auto"
    blas_threads: Annotated[
        Auto | Annotated[int, between(1, 1024)],
        About(
            "Engine",
            "Threads of each rank for products. With auto, products with packed weights use all cores while "
            "no other rank works.",
            allowed="auto (an equal share of the cores), or a whole number from 1 to 1024",
        ),
    ] = "auto"

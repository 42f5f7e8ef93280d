"""Every setting, in the groups in which people read of them.

One annotated field says all there is to say about a setting: type, bounds, default and `About`. A group is
a part of `config.settings.Settings` and never used alone. This file reads no source of settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationInfo, field_validator

from config import model_path
from config.fields import (
    About,
    AllowedHosts,
    AnyPath,
    Auto,
    CorsOrigins,
    LayerSplit,
    ListeningHost,
    LogLevel,
    ModelAliases,
    OptionalPath,
    Port,
    RingAddress,
    WorkerDir,
    WorkerHosts,
    WorkerPython,
    between,
)


class RootedSettings(BaseModel):
    """What all groups share: the folder from which relative paths are taken."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        hide_input_in_errors=True,
        defer_build=True,  # a group is never used alone
    )

    root: Path


class ModelSettings(RootedSettings):
    """The model and how long texts may be."""

    model_repo: Annotated[
        str,
        About(
            "Model",
            "The model to serve.",
            allowed="a Hugging Face Hub name (owner/name), a folder, or builtin:smollm2-135m",
        ),
    ] = "mlx-community/DeepSeek-Coder-V2-Lite-Instruct-8bit"
    model_cache_dir: Annotated[
        OptionalPath, About("Model", "Folder for downloaded models; empty: the Hugging Face cache.")
    ] = None
    model_aliases: Annotated[
        ModelAliases,
        About(
            "Model",
            "Other names under which requests may ask for the model; answers carry its own name.",
            is_live=True,
            allowed="a comma list of names, or * for any, or empty for none",
        ),
    ] = ""
    default_max_tokens: Annotated[
        int,
        between(1, 10_000_000),
        About(
            "Model",
            "Answer length where a request to /generate or a prompt file names none; on /v1/* that is the "
            "rest of the context.",
            "tokens",
            is_live=True,
        ),
    ] = 512
    max_sequence_length: Annotated[
        Auto | Annotated[int, between(2, 10_000_000)],
        About(
            "Model",
            "Most tokens of prompt and answer together. auto: the model's own length, at most 32768, and at "
            "most what KV_CACHE_RESERVED_MEMORY_MB holds for two such requests. A number is taken as it is, "
            "even beyond the model's own length.",
            "tokens",
            allowed="auto, or a whole number from 2 to 10000000",
        ),
    ] = 4096

    control_tokens_in_text: Annotated[
        Literal["off", "on"],
        About(
            "Model",
            "Whether a control token that a chat's message spells counts as one (on), or is text (off).",
        ),
    ] = "off"

    @field_validator("model_repo")
    @classmethod
    def _model_repo_is_well_formed(cls, value: str, info: ValidationInfo) -> str:
        return model_path.check_model_repo(value, info.data["root"])


class ApiSettings(RootedSettings):
    """The HTTP front door."""

    api_host: Annotated[
        ListeningHost,
        About(
            "API",
            "Address the HTTP front door listens on.",
            allowed="an address or a host name, without http:// or a port",
        ),
    ] = "127.0.0.1"
    api_port: Annotated[Port, About("API", "Port of the HTTP front door.")] = 8100
    api_keys_file: Annotated[
        OptionalPath,
        About(
            "API",
            "File of accepted API keys, one a line, # comments; empty: no key is asked for.",
            is_secret=True,
        ),
    ] = None
    allowed_hosts: Annotated[
        AllowedHosts,
        About(
            "API",
            "Further names in Host headers that are served, such as a proxy's; loopback names, IP addresses, "
            "*.local, host.docker.internal, this machine's names and API_HOST always are.",
            allowed="a comma list of names, *.example.org for all names below it, .example.org for these and "
            "itself, or * for any, or empty for none",
        ),
    ] = ""
    cors_origins: Annotated[
        CorsOrigins,
        About(
            "API",
            "Web pages of other origins that may call the API.",
            allowed="a comma list of origins such as https://example.org, or * for all, or empty for none",
        ),
    ] = ""
    max_prompt_len_bytes: Annotated[
        int,
        between(1, 1 << 30),
        About(
            "API",
            "Longest text of a prompt or of all messages on /generate; /v1/* is limited by tokens and "
            "MAX_BODY_BYTES.",
            "bytes",
            is_live=True,
        ),
    ] = 4096
    max_body_bytes: Annotated[
        int, between(1024, 1 << 30), About("API", "Largest HTTP request body.", "bytes", is_live=True)
    ] = 1 << 20
    request_timeout: Annotated[
        FiniteFloat,
        between(0.1, 86_400),
        About("API", "A caller waits this long for an answer before it gets a 504.", "seconds", is_live=True),
    ] = 120.0
    disconnect_grace_seconds: Annotated[
        FiniteFloat,
        between(0, 86_400),
        About(
            "API",
            "A request whose caller has left is cancelled after this time; on /v1 without an Idempotency-Key "
            "at once.",
            "seconds",
            is_live=True,
        ),
    ] = 10.0


class StateSettings(RootedSettings):
    """The file queue and what it keeps."""

    state_dir: Annotated[
        AnyPath, About("State", "Folder of the spool, logs, run files and built-in models.")
    ] = Path("var")
    max_queue_depth: Annotated[
        int,
        between(1, 1_000_000),
        About("State", "Most requests waiting; more are refused with 429.", "requests", is_live=True),
    ] = 1000
    max_queue_mb: Annotated[
        int,
        between(1, 1 << 20),
        About("State", "Most room the waiting requests may take.", "MiB", is_live=True),
    ] = 256
    spool_durability: Annotated[
        Literal["power", "process"],
        About("State", "What accepted requests survive: a power cut, or the death of any process."),
    ] = "power"
    poll_interval: Annotated[
        FiniteFloat,
        between(0.001, 60),
        About(
            "State", "The spool is scanned this often in case a doorbell was lost.", "seconds", is_live=True
        ),
    ] = 0.1
    result_retention_hours: Annotated[
        FiniteFloat,
        between(0.1, 8760),
        About("State", "Finished answers can be fetched this long.", "hours", is_live=True),
    ] = 24.0
    result_retention_mb: Annotated[
        int,
        between(0, 1 << 30),
        About(
            "State",
            "Most room finished requests may take; the oldest go early, but none in 5 minutes. 0: no limit.",
            "MiB",
            is_live=True,
        ),
    ] = 1024


class RingSettings(RootedSettings):
    """The ranks, where they run and how long they may take."""

    local_ranks: Annotated[int, between(1, 16), About("Ring", "Ranks on this machine.", "ranks")] = 1
    worker_hosts: Annotated[
        WorkerHosts,
        About(
            "Ring",
            "Further hosts of the ring, reached by ssh, in the order of their ranks.",
            allowed="a comma list of [user@]host[:ranks][=address in the ring], localhost:ranks among them, "
            "or empty for this machine alone",
        ),
    ] = ""
    ring_hostfile: Annotated[
        OptionalPath,
        About(
            "Ring",
            "Host file of mlx in place of WORKER_HOSTS, as mlx.distributed_config writes it; "
            "its first host is this machine.",
        ),
    ] = None
    ring_address: Annotated[
        RingAddress,
        About(
            "Ring",
            "This machine's address for the ranks of the ring; with other hosts the one by which it reaches "
            "the first of them, unless it is set.",
            allowed="the IPv4 address of an interface of this machine",
        ),
    ] = "127.0.0.1"
    worker_dir: Annotated[
        WorkerDir,
        About(
            "Ring",
            "Folder on the other hosts for code, virtual environment and models; made at need.",
            allowed="a path there, absolute or below ~/",
        ),
    ] = "~/.local/share/mlx-ring-service"
    worker_python: Annotated[
        WorkerPython,
        About(
            "Ring",
            "Python of the other hosts; empty: this machine's version, else the newest from 3.11 on.",
            allowed="the name or path of a program there, or empty",
        ),
    ] = ""
    model_sync: Annotated[
        Literal["copy", "hub"],
        About(
            "Ring",
            "How other hosts get their part of the model: copied from this machine, or fetched from the Hub "
            "by each (where the model is one of the Hub's).",
        ),
    ] = "copy"
    ring_secret_file: Annotated[
        OptionalPath,
        About(
            "Ring",
            "File of the secret all ranks share; empty: ring.secret in STATE_DIR, made at need.",
            is_secret=True,
        ),
    ] = None
    layer_split: Annotated[
        LayerSplit,
        About(
            "Ring",
            "Layers of rank 0 (the last ones), rank 1, …",
            allowed="auto, or one count for each rank such as 15,15",
        ),
    ] = "auto"
    connect_timeout: Annotated[
        FiniteFloat,
        between(1, 3600),
        About("Ring", "All ranks must be connected within this time.", "seconds"),
    ] = 45.0
    load_timeout: Annotated[
        FiniteFloat,
        between(1, 86_400),
        About("Ring", "All ranks must have loaded their layers within this time.", "seconds"),
    ] = 600.0
    step_timeout: Annotated[
        FiniteFloat,
        between(1, 86_400),
        About("Ring", "A ring that makes no step for this long is rebuilt.", "seconds"),
    ] = 60.0
    shutdown_timeout: Annotated[
        FiniteFloat,
        between(0, 86_400),
        About("Ring", "Running requests get this long to end at a stop.", "seconds"),
    ] = 30.0


class EngineSettings(RootedSettings):
    """How the ring computes."""

    microbatches: Annotated[
        Auto | Annotated[int, between(1, 64)],
        About(
            "Engine",
            "Groups of rows that travel round the ring at once; one more may be on its way.",
            allowed="auto (as many as ranks, one where that is faster), or a whole number from 1 to 64",
        ),
    ] = "auto"
    max_rows_per_microbatch: Annotated[
        int, between(1, 1024), About("Engine", "Most sequences that step together.", "rows")
    ] = 32
    prefill_chunk_tokens: Annotated[
        Auto | Annotated[int, between(1, 65_536)],
        About(
            "Engine",
            "A long prompt is read in pieces of this size.",
            "tokens",
            allowed="auto (512 on a GPU; without one 128, 256 with experts; fewer where that holds answers "
            "up for 0.2 s), or a whole number from 1 to 65536",
        ),
    ] = "auto"
    speculation: Annotated[
        Literal["prompt-lookup", "off"],
        About(
            "Engine",
            "Guess what comes next from the text so far and verify several tokens in one lap, where measured "
            "costs say that it gains; the text stays the same.",
        ),
    ] = "prompt-lookup"
    kv_cache_max_size: Annotated[
        int, between(0, 100_000_000), About("Engine", "Tokens the prefix cache keeps.", "tokens")
    ] = 8192
    kv_cache_reserved_memory_mb: Annotated[
        int,
        between(1, 1 << 24),
        About(
            "Engine", "Memory of each rank for the KV of running sequences and prefix cache together.", "MiB"
        ),
    ] = 2048
    cpu_layers: Annotated[
        Literal["numpy", "mlx"],
        About(
            "Engine",
            "What runs a dense model's float32 layers on a machine without a GPU: NumPy between the BLAS's "
            "products (faster), or MLX as everywhere else.",
        ),
    ] = "numpy"
    cpu_products: Annotated[
        Literal["auto", "kernels", "blas"],
        About(
            "Engine",
            "What multiplies in the layers that NumPy runs: kernels that are compiled at the start, with "
            "packed weights (x86-64 with AVX2), or the BLAS; auto takes the first that can be used.",
        ),
    ] = "auto"
    cpu_blas: Annotated[
        Literal["auto", "mkl", "openblas", "off"],
        About("Engine", "BLAS that is loaded before MLX on Linux without a GPU."),
    ] = "auto"
    blas_threads: Annotated[
        Auto | Annotated[int, between(1, 1024)],
        About(
            "Engine",
            "Threads of each rank for products. With auto, those with packed weights take all cores while no "
            "other rank works.",
            allowed="auto (the cores shared out), or a whole number from 1 to 1024",
        ),
    ] = "auto"


class ProcessSettings(RootedSettings):
    """What each process writes and may open."""

    log_level: Annotated[
        LogLevel, About("Process", "Least severe log lines that are written.", is_live=True)
    ] = "INFO"
    log_format: Annotated[Literal["text", "json"], About("Process", "Form of the log lines.")] = "text"
    log_file: Annotated[
        OptionalPath, About("Process", "File that gets all log lines besides standard error; rotated.")
    ] = None
    file_descriptor_soft_limit: Annotated[
        int, between(64, 1 << 20), About("Process", "Open files each process asks for.", "files")
    ] = 2048
    file_descriptor_hard_limit: Annotated[
        int,
        between(64, 1 << 20),
        About("Process", "Hard limit of open files each process asks for.", "files"),
    ] = 4096

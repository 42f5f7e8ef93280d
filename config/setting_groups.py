"""The settings of the model, the API, the state and the process, by group.

One annotated field defines a setting: type, bounds, default and `About`. A group is a part of
`config.settings.Settings` and is never used alone. config/ring_setting_groups.py has the other groups. Reads
no source of settings.
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
    ListeningHost,
    LogLevel,
    ModelAliases,
    OptionalPath,
    Port,
    between,
)


class RootedSettings(BaseModel):
    """The base of all groups: the folder from which relative paths start."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        hide_input_in_errors=True,
        defer_build=True,  # a group is never used alone
    )

    root: Path


class ModelSettings(RootedSettings):
    """The model and the lengths of its texts."""

    model_repo: Annotated[
        str,
        About(
            "Model",
            "The model to serve.",
            allowed="a Hugging Face Hub name (owner/name), a folder, builtin:smollm2-135m, or scripted:FILE",
        ),
    ] = "mlx-community/DeepSeek-Coder-V2-Lite-Instruct-8bit"
    model_cache_dir: Annotated[
        OptionalPath, About("Model", "Folder for downloaded models; empty: the Hugging Face cache.")
    ] = None
    model_aliases: Annotated[
        ModelAliases,
        About(
            "Model",
            "Other names that requests may use for the model; answers have its own name.",
            is_live=True,
            allowed="a comma list of names, or * for any, or empty for none",
        ),
    ] = ""
    default_max_tokens: Annotated[
        int,
        between(1, 10_000_000),
        About(
            "Model",
            "Most tokens of an answer where a request to /generate or a prompt file names no limit. On /v1/* "
            "the limit is the rest of the context.",
            "tokens",
            is_live=True,
        ),
    ] = 512
    max_sequence_length: Annotated[
        Auto | Annotated[int, between(2, 10_000_000)],
        About(
            "Model",
            "Most tokens of prompt and answer together. auto: the model's own length, at most 32768, and at "
            "most what KV_CACHE_RESERVED_MEMORY_MB holds for two such requests. A number may exceed the "
            "model's own length.",
            "tokens",
            allowed="auto, or a whole number from 2 to 10000000",
        ),
    ] = 4096

    control_tokens_in_text: Annotated[
        Literal["off", "on"],
        About(
            "Model",
            "How to read a control token in a chat's message: as a control token (on), or as text (off).",
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
            "Address on which the HTTP front door listens.",
            allowed="an address or a host name, without http:// or a port",
        ),
    ] = "127.0.0.1"
    api_port: Annotated[Port, About("API", "Port of the HTTP front door.")] = 8100
    api_keys_file: Annotated[
        OptionalPath,
        About(
            "API",
            "File of API keys, one a line, with # comments; empty: no key is required.",
            is_secret=True,
        ),
    ] = None
    allowed_hosts: Annotated[
        AllowedHosts,
        About(
            "API",
            "More names to accept in Host headers, such as a proxy's. Loopback names, IP addresses, *.local, "
            "host.docker.internal, this machine's names and API_HOST are always accepted.",
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
            "Longest text of a prompt or of all messages on /generate. Tokens and MAX_BODY_BYTES limit "
            "/v1/*.",
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
        About("API", "Longest wait for an answer; then the client gets a 504.", "seconds", is_live=True),
    ] = 120.0
    disconnect_grace_seconds: Annotated[
        FiniteFloat,
        between(0, 86_400),
        About(
            "API",
            "Time after which a request is cancelled when its client has disconnected. On /v1 without an "
            "Idempotency-Key it is cancelled at once.",
            "seconds",
            is_live=True,
        ),
    ] = 10.0


class StateSettings(RootedSettings):
    """The file queue and its limits."""

    state_dir: Annotated[
        AnyPath, About("State", "Folder of the spool, logs, run files and built-in models.")
    ] = Path("var")
    max_queue_depth: Annotated[
        int,
        between(1, 1_000_000),
        About("State", "Most waiting requests; more are refused with 429.", "requests", is_live=True),
    ] = 1000
    max_queue_mb: Annotated[
        int,
        between(1, 1 << 20),
        About("State", "Most disk space of the waiting requests.", "MiB", is_live=True),
    ] = 256
    spool_durability: Annotated[
        Literal["power", "process"],
        About("State", "Accepted requests survive a power cut (power), or a crash of any process (process)."),
    ] = "power"
    poll_interval: Annotated[
        FiniteFloat,
        between(0.001, 60),
        About(
            "State", "Time between scans of the spool, in case a doorbell was lost.", "seconds", is_live=True
        ),
    ] = 0.1
    result_retention_hours: Annotated[
        FiniteFloat,
        between(0.1, 8760),
        About("State", "Time for which a finished answer can be fetched.", "hours", is_live=True),
    ] = 24.0
    result_retention_mb: Annotated[
        int,
        between(0, 1 << 30),
        About(
            "State",
            "Most disk space of finished requests. The oldest are removed early, but none within 5 minutes "
            "of its end. 0: no limit.",
            "MiB",
            is_live=True,
        ),
    ] = 1024


class ProcessSettings(RootedSettings):
    """The logs and the limits of each process."""

    log_level: Annotated[LogLevel, About("Process", "Least severe level to log.", is_live=True)] = "INFO"
    log_format: Annotated[Literal["text", "json"], About("Process", "Form of the log lines.")] = "text"
    log_file: Annotated[
        OptionalPath, About("Process", "File for all log lines, in addition to standard error; rotated.")
    ] = None
    file_descriptor_soft_limit: Annotated[
        int, between(64, 1 << 20), About("Process", "Soft limit of open files of each process.", "files")
    ] = 2048
    file_descriptor_hard_limit: Annotated[
        int,
        between(64, 1 << 20),
        About("Process", "Hard limit of open files of each process.", "files"),
    ] = 4096

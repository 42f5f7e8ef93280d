"""The settings of the model, the API, the state and the process, by group.

One field defines a setting: its type, default, bounds and `About`. A group is a part of
`config.settings.Settings` and is never used alone. config/ring_setting_groups.py has the other groups. Reads
no source of settings.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationInfo, field_validator

from config import model_path
from config.fields import (
    AllowedHosts,
    AnyPath,
    Auto,
    CorsOrigins,
    ListeningHost,
    LogLevel,
    ModelAliases,
    OptionalPath,
    between,
    setting,
)

_model, _api = partial(setting, "Model"), partial(setting, "API")
_state, _process = partial(setting, "State"), partial(setting, "Process")


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

    model_repo: str = _model(
        "mlx-community/DeepSeek-Coder-V2-Lite-Instruct-8bit",
        "The model to serve.",
        allowed="a Hugging Face Hub name (owner/name), a folder, builtin:smollm2-135m, or scripted:FILE",
    )
    model_cache_dir: OptionalPath = _model(
        None, "Folder for downloaded models; empty: the Hugging Face cache."
    )
    model_aliases: ModelAliases = _model(
        "",
        "Other names that requests may use for the model; answers have its own name.",
        is_live=True,
        allowed="a comma list of names, or * for any, or empty for none",
    )
    default_max_tokens: int = _model(
        512,
        "Most tokens of an answer where a request to /generate or a prompt file names no limit. On /v1/* "
        "the limit is the rest of the context.",
        bounds=(1, 10_000_000),
        unit="tokens",
        is_live=True,
    )
    max_sequence_length: Auto | Annotated[int, between(2, 10_000_000)] = _model(
        4096,
        "Most tokens of prompt and answer together. auto: the model's own length, at most 32768, and at "
        "most what KV_CACHE_RESERVED_MEMORY_MB holds for two such requests. A number may exceed the "
        "model's own length.",
        unit="tokens",
        allowed="auto, or a whole number from 2 to 10000000",
    )
    sampling_defaults: Literal["model", "neutral"] = _model(
        "model",
        "Sampling parameters of requests that name none, except on /generate: those of the model's "
        "generation_config.json (model), or greedy (neutral).",
    )
    control_tokens_in_text: Literal["off", "on"] = _model(
        "off", "How to read a control token in a chat's message: as a control token (on), or as text (off)."
    )
    tool_format: Literal[
        "auto",
        "generic",
        "hermes",
        "qwen3_coder",
        "seed_oss",
        "glm",
        "glm47",
        "minimax_m2",
        "kimi_k2",
        "deepseek_v3",
        "deepseek_v31",
        "deepseek_v32",
        "mistral",
        "mistral_v3",
        "nemotron_v2",
        "lfm2",
        "cohere",
        "gemma4",
        "llama3",
        "harmony",
    ] = _model(
        "auto",
        "How the model writes tool calls (docs/tools.md). auto: as its chat template does, else generic, a "
        "form that the prompt describes.",
    )

    @field_validator("model_repo")
    @classmethod
    def _model_repo_is_well_formed(cls, value: str, info: ValidationInfo) -> str:
        return model_path.check_model_repo(value, info.data["root"])


class ApiSettings(RootedSettings):
    """The HTTP front door."""

    api_host: ListeningHost = _api(
        "127.0.0.1",
        "Address on which the HTTP front door listens.",
        allowed="an address or a host name, without http:// or a port",
    )
    api_port: int = _api(8100, "Port of the HTTP front door.", bounds=(1, 65535))
    api_keys_file: OptionalPath = _api(
        None,
        "File of API keys, one a line, with # comments; empty: no key is required. An edit of the file holds "
        "at once (docs/security.md).",
        is_secret=True,
    )
    key_max_in_flight: int = _api(
        0,
        "Most requests without a result of one API key; more are refused with 429. 0: no limit. A line of "
        "API_KEYS_FILE may have its own.",
        bounds=(0, 1_000_000),
        unit="requests",
        is_live=True,
    )
    key_requests_per_minute: int = _api(
        0,
        "Most requests of one API key that are accepted in 60 seconds; more are refused with 429. 0: no "
        "limit. A line of API_KEYS_FILE may have its own.",
        bounds=(0, 1_000_000),
        unit="requests",
        is_live=True,
    )
    allowed_hosts: AllowedHosts = _api(
        "",
        "More names to accept in Host headers, such as a proxy's. Loopback names, IP addresses, *.local, "
        "host.docker.internal, this machine's names and API_HOST are always accepted.",
        allowed="a comma list of names, *.example.org for all names below it, .example.org for these and "
        "itself, or * for any, or empty for none",
    )
    cors_origins: CorsOrigins = _api(
        "",
        "Web pages of other origins that may call the API.",
        allowed="a comma list of origins such as https://example.org, or * for all, or empty for none",
    )
    max_prompt_len_bytes: int = _api(
        4096,
        "Longest text of a prompt or of all messages on /generate. Tokens and MAX_BODY_BYTES limit /v1/*.",
        bounds=(1, 1 << 30),
        unit="bytes",
        is_live=True,
    )
    max_body_bytes: int = _api(
        1 << 20, "Largest HTTP request body.", bounds=(1024, 1 << 30), unit="bytes", is_live=True
    )
    request_timeout: FiniteFloat = _api(
        120.0,
        "Longest wait for an answer; then the client gets a 504.",
        bounds=(0.1, 86_400),
        unit="seconds",
        is_live=True,
    )
    disconnect_grace_seconds: FiniteFloat = _api(
        10.0,
        "Time after which a request is cancelled when its client has disconnected. On /v1 without an "
        "Idempotency-Key it is cancelled at once.",
        bounds=(0, 86_400),
        unit="seconds",
        is_live=True,
    )


class StateSettings(RootedSettings):
    """The file queue and its limits."""

    state_dir: AnyPath = _state(Path("var"), "Folder of the spool, logs, run files and built-in models.")
    max_queue_depth: int = _state(
        1000,
        "Most waiting requests; more are refused with 429.",
        bounds=(1, 1_000_000),
        unit="requests",
        is_live=True,
    )
    max_queue_mb: int = _state(
        256, "Most disk space of the waiting requests.", bounds=(1, 1 << 20), unit="MiB", is_live=True
    )
    spool_durability: Literal["power", "process"] = _state(
        "power", "Accepted requests survive a power cut (power), or a crash of any process (process)."
    )
    poll_interval: FiniteFloat = _state(
        0.1,
        "Time between scans of the spool, in case a doorbell was lost.",
        bounds=(0.001, 60),
        unit="seconds",
        is_live=True,
    )
    result_retention_hours: FiniteFloat = _state(
        24.0,
        "Time for which a finished answer can be fetched.",
        bounds=(0.1, 8760),
        unit="hours",
        is_live=True,
    )
    result_retention_mb: int = _state(
        1024,
        "Most disk space of finished requests. The oldest are removed early, but none within 5 minutes "
        "of its end. 0: no limit.",
        bounds=(0, 1 << 30),
        unit="MiB",
        is_live=True,
    )
    max_file_mb: int = _state(200, "Largest uploaded file.", bounds=(1, 1 << 20), unit="MiB", is_live=True)
    max_files_mb: int = _state(
        4096,
        "Most disk space of all uploaded files and outputs of batches; more uploads are refused.",
        bounds=(1, 1 << 30),
        unit="MiB",
        is_live=True,
    )
    max_batch_lines: int = _state(
        50_000, "Most lines of a batch.", bounds=(1, 10_000_000), unit="lines", is_live=True
    )
    file_retention_days: FiniteFloat = _state(
        30.0,
        "Time for which files, and batches that have ended, are kept. 0: until they are deleted.",
        bounds=(0, 36_500),
        unit="days",
        is_live=True,
    )


class ProcessSettings(RootedSettings):
    """The logs and the limits of each process."""

    log_level: LogLevel = _process("INFO", "Least severe level to log.", is_live=True)
    log_format: Literal["text", "json"] = _process("text", "Form of the log lines.")
    log_file: OptionalPath = _process(None, "File for all log lines, in addition to standard error; rotated.")
    file_descriptor_soft_limit: int = _process(
        2048, "Soft limit of open files of each process.", bounds=(64, 1 << 20), unit="files"
    )
    file_descriptor_hard_limit: int = _process(
        4096, "Hard limit of open files of each process.", bounds=(64, 1 << 20), unit="files"
    )

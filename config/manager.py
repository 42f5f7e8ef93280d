"""The one Settings class, and the loader that fills it.

Precedence: command line, environment, `.env`, `config.json`, default. A key is written in capitals
everywhere; the attribute is the same name in small letters. Relative paths are taken from the folder that
holds `.env` and `config.json`. This room knows what a setting may be, and nothing of what the others do
with it; it never imports MLX.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import FiniteFloat, PrivateAttr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from config import model_path
from config.checks import relation_problems, start_problems
from config.errors import Problem, SettingsError
from config.fields import (
    About,
    AnyPath,
    Auto,
    CorsOrigins,
    LayerSplit,
    ListeningHost,
    LogLevel,
    OptionalPath,
    Port,
    RingAddress,
    about,
    between,
    format_value,
    is_setting,
    json_settings,
    parse_layer_counts,
    split_list,
)
from config.layers import collect, validation_problems
from config.sources import DEFAULT, Entry, Origin

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
MASK = "********"


class Settings(BaseSettings):
    """Every effective setting; frozen. Made by `load_settings`, which also checks them against each other."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True
    )

    root: Path
    _origins: Mapping[str, Origin] = PrivateAttr(default_factory=dict)

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
    default_max_tokens: Annotated[
        int,
        between(1, 10_000_000),
        About("Model", "Answer length where a request names none.", "tokens", is_live=True),
    ] = 512
    max_sequence_length: Annotated[
        int,
        between(2, 10_000_000),
        About("Model", "Most tokens of prompt and answer together.", "tokens"),
    ] = 4096

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
        About("API", "Longest text of a prompt or of all messages.", "bytes", is_live=True),
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
            "API", "A request whose caller has left is cancelled after this time.", "seconds", is_live=True
        ),
    ] = 10.0

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

    local_ranks: Annotated[int, between(1, 16), About("Ring", "Ranks on this machine.", "ranks")] = 1
    worker_hosts: Annotated[
        str,
        About("Ring", "Further hosts of the ring; not served yet.", allowed="empty in this release"),
    ] = ""
    ring_address: Annotated[
        RingAddress,
        About(
            "Ring",
            "Address on which the ranks connect to each other.",
            allowed="the IPv4 address of an interface of this machine",
        ),
    ] = "127.0.0.1"
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

    microbatches: Annotated[
        Auto | Annotated[int, between(1, 64)],
        About(
            "Engine",
            "Microbatches in flight around the ring.",
            allowed="auto (as many as ranks), or a whole number from 1 to 64",
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
            allowed="auto (512 on a GPU, 128 without), or a whole number from 1 to 65536",
        ),
    ] = "auto"
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
    cpu_blas: Annotated[
        Literal["auto", "mkl", "openblas", "off"],
        About("Engine", "BLAS that is loaded before MLX on Linux without a GPU."),
    ] = "auto"
    blas_threads: Annotated[
        Auto | Annotated[int, between(1, 1024)],
        About(
            "Engine",
            "BLAS threads of each rank.",
            allowed="auto (the cores shared out), or a whole number from 1 to 1024",
        ),
    ] = "auto"

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

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave the reading of sources to `config.layers`, which remembers the line of each value."""
        return (init_settings,)

    @field_validator("model_repo")
    @classmethod
    def _model_repo_is_well_formed(cls, value: str, info: ValidationInfo) -> str:
        return model_path.check_model_repo(value, info.data["root"])

    @property
    def spool_dir(self) -> Path:
        """The file queue."""
        return self.state_dir / "spool"

    @property
    def run_dir(self) -> Path:
        """Status files of the running service."""
        return self.state_dir / "run"

    @property
    def log_dir(self) -> Path:
        """Logs of the processes that the supervisor starts."""
        return self.state_dir / "logs"

    @property
    def ring_secret_path(self) -> Path:
        """The file of the ring's secret, chosen or default."""
        return self.ring_secret_file or self.state_dir / "ring.secret"

    @property
    def model_dir(self) -> Path:
        """The folder of the model; raises ModelNotReady where the Hub's model is not on this machine."""
        return model_path.locate_model(
            self.model_repo, root=self.root, state_dir=self.state_dir, cache_dir=self.model_cache_dir
        )

    @property
    def model_name(self) -> str:
        """The short public name of the model."""
        return model_path.short_name(self.model_repo)

    @property
    def layer_counts(self) -> tuple[int, ...] | None:
        """LAYER_SPLIT as numbers by rank; None for auto."""
        return None if self.layer_split == "auto" else parse_layer_counts(self.layer_split)

    @property
    def cors_origin_list(self) -> tuple[str, ...]:
        """CORS_ORIGINS as single origins."""
        return split_list(self.cors_origins)

    @classmethod
    def all_keys(cls) -> tuple[str, ...]:
        """Every key, in the order of the class."""
        return tuple(name.upper() for name, field in cls.model_fields.items() if is_setting(field))

    @classmethod
    def about(cls, key: str) -> About:
        """What is told about a key."""
        return about(cls.model_fields[key.lower()])

    def value(self, key: str) -> Any:
        """The effective value of a key."""
        return getattr(self, key.lower())

    def shown(self, key: str) -> str:
        """The effective value as text, masked where it is a secret."""
        text = format_value(self.value(key))
        return MASK if text and self.about(key).is_secret else text

    def origin(self, key: str) -> Origin:
        """Where the effective value of a key was written."""
        return self._origins.get(key, DEFAULT)

    def public(self) -> dict[str, str | int | float | None]:
        """Effective settings by key, without the secret ones, ready for JSON."""
        return json_settings(
            {key: self.value(key) for key in self.all_keys() if not self.about(key).is_secret}
        )

    def require_single_host(self) -> None:
        """Refuse a ring over several hosts. Raises: SettingsError, for whoever starts the service."""
        problems = [problem for problem in start_problems(self) if problem.key == "WORKER_HOSTS"]
        if problems:
            raise SettingsError(problems)


def load_settings(
    overrides: Mapping[str, str] | None = None,
    *,
    root: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read all sources and return the effective settings.

    Args:
        overrides: the command line's values, by key.
        root: the folder of `.env` and `config.json`; the repository by default.
        environ: the environment; the process's own by default.
    Raises: SettingsError with every problem at once, for the process's entry point to print.
    """
    folder = (root or REPOSITORY_ROOT).resolve()
    fields = {name.upper(): field for name, field in Settings.model_fields.items() if is_setting(field)}
    entries, problems = collect(folder, overrides or {}, os.environ if environ is None else environ, fields)
    # A file of which nothing could be read would make the relations between its values look wrong.
    is_whole = all(problem.key for problem in problems)
    try:
        settings = _make(folder, _without(entries, problems))
    except ValidationError as error:
        problems += validation_problems(error, entries, fields)
        settings = _make(folder, _without(entries, problems))
    if is_whole:
        problems += relation_problems(settings, {problem.key for problem in problems})
    if problems:
        raise SettingsError(problems)
    return settings


def _without(entries: Mapping[str, Entry], problems: Sequence[Problem]) -> dict[str, Entry]:
    wrong = {problem.key for problem in problems}
    return {key: entry for key, entry in entries.items() if key not in wrong}


def _make(root: Path, entries: Mapping[str, Entry]) -> Settings:
    values: dict[str, Any] = {key.lower(): entry.value for key, entry in entries.items()}
    settings = Settings(root=root, **values)
    settings._origins = {key: entry.origin for key, entry in entries.items()}
    return settings

"""Reads the secret that all ranks of a ring share, and makes it once where RING_SECRET_FILE is not set.

The file holds one line of at least 32 characters, readable by its owner only. Knows nothing of how the ranks
prove that they have the secret.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from config.disk_trouble import describe_refused
from config.errors import SettingsError

if TYPE_CHECKING:
    from config.settings import Settings

NUM_SECRET_BYTES = 32
MIN_SECRET_LENGTH = 32


def load_ring_secret(settings: Settings) -> str:
    """Return the ring's secret. Raises SettingsError where it is missing, too short or readable by others."""
    path = settings.ring_secret_path
    try:
        if settings.ring_secret_file is None and not path.exists():
            _make_secret(path)
    except OSError as error:
        sentence = f"the ring's secret cannot be made: {describe_refused(error, path)}"
        raise _refusal(settings, sentence) from error
    try:
        mode = path.stat().st_mode
        secret = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise _refusal(settings, f"{path} cannot be read as a secret: {error}") from error
    if mode & 0o077:
        raise _refusal(settings, f"other users can read {path}; run: chmod 600 {path}")
    if len(secret) < MIN_SECRET_LENGTH:
        raise _refusal(
            settings,
            f"the secret in {path} is shorter than {MIN_SECRET_LENGTH} characters; run: "
            f"openssl rand -hex {NUM_SECRET_BYTES} > {path}",
        )
    return secret


def _make_secret(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(NUM_SECRET_BYTES) + "\n")
        # A link fails where the file exists: of two processes at once, one makes the secret.
        os.link(temporary, path)
    except FileExistsError:
        return
    finally:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()


def _refusal(settings: Settings, sentence: str) -> SettingsError:
    return SettingsError([settings.problem("RING_SECRET_FILE", sentence)])

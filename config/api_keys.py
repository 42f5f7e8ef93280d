"""Reads API_KEYS_FILE: a key a line, with a name and limits of its own where it needs them.

    KEY|sha256:HEX [name=NAME] [max_in_flight=N] [requests_per_minute=N]

HEX is the key's SHA-256, so that the file need not contain the key. Empty lines and lines that begin with #
are skipped. A limit of 0 is none; where a line names no limit, the default of the settings counts. Messages
name file and line, and never a word of the line: it may be a key. Knows nothing of clients.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from config.errors import ConfigError

OWNER_LENGTH = 16  # of a digest: the owner in request files
HASHED = "sha256:"
ALLOWED = (
    "KEY or sha256: and 64 hexadecimal digits, then any of name=NAME (letters, digits and . _ @ + -), "
    "max_in_flight=N, requests_per_minute=N"
)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"[0-9]{1,7}")
_OPTIONS = {
    "name": re.compile(r"[A-Za-z0-9._@+-]{1,64}"),
    "max_in_flight": _NUMBER,
    "requests_per_minute": _NUMBER,
}


class KeysUnreadable(ConfigError):
    """API_KEYS_FILE is missing or unreadable, has no key, or a wrong line; the message says which."""

    code = "keys_unreadable"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An accepted key by its SHA-256 digest. `text` is the key, where the file contains it; a limit of None
    is the default.
    """

    digest: str
    text: str | None = field(default=None, repr=False)
    name: str = ""
    max_in_flight: int | None = None
    requests_per_minute: int | None = None

    @property
    def owner(self) -> str:
        """The owner of the key's requests, so that no file contains the key."""
        return self.digest[:OWNER_LENGTH]

    @property
    def label(self) -> str:
        """The key for people."""
        return self.name or self.owner


def hash_key(key: str) -> str:
    """Return a key's digest."""
    return hashlib.sha256(key.encode()).hexdigest()


def make_key(name: str) -> tuple[str, str]:
    """Return a new key, and its line without the key. Raises ValueError for a name that is not allowed."""
    key = f"sk-{secrets.token_urlsafe(32)}"
    line = f"{HASHED}{hash_key(key)} name={name}"
    _parse(line.split(" "))
    return key, line


def read_api_keys(path: Path) -> list[ApiKey]:
    """Return the keys in the file's order, each once.

    Raises:
        KeysUnreadable: unreadable, no key, or a line that is not allowed.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise KeysUnreadable(f"API_KEYS_FILE: {path} is not UTF-8 text") from None
    except OSError as error:
        raise KeysUnreadable(f"API_KEYS_FILE: {error}") from error
    keys: dict[str, tuple[int, ApiKey]] = {}  # by digest, and by name
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            key = _parse(line.split())
            for same in filter(None, (key.digest, key.name)):
                earlier, there = keys.setdefault(same, (number, key))
                if there != key:
                    raise ValueError(f"this key or name is in line {earlier} already")
        except ValueError as error:
            raise KeysUnreadable(f"API_KEYS_FILE: {path}:{number}: {error}") from None
    if not keys:
        raise KeysUnreadable(f"API_KEYS_FILE: {path} holds no key; write one key a line")
    return list(dict.fromkeys(key for _, key in keys.values()))


def find_keys_trouble(path: Path | None) -> str | None:
    """Why a running service does not follow its file; None where it does, or needs no keys."""
    try:
        if path is not None:
            read_api_keys(path)
    except KeysUnreadable as error:
        return f"{error}; until this is right, the running front door keeps the earlier keys"
    return None


def _parse(words: list[str]) -> ApiKey:
    """Read a line. Raises ValueError without any of its words."""
    is_hashed = words[0].startswith(HASHED)
    digest = words[0].removeprefix(HASHED).lower() if is_hashed else hash_key(words[0])
    options = [word.partition("=")[::2] for word in words[1:]]
    is_allowed = [_DIGEST.fullmatch(digest) is not None]
    is_allowed += [name in _OPTIONS and bool(_OPTIONS[name].fullmatch(value)) for name, value in options]
    if not all(is_allowed):
        raise ValueError(f"word {is_allowed.index(False) + 1} is not allowed; a line is {ALLOWED}")
    given = dict(options)
    if len(given) < len(options):
        raise ValueError("an option is given twice")
    name = given.pop("name", "")
    return ApiKey(
        digest,
        None if is_hashed else words[0],
        name,
        **{option: int(value) for option, value in given.items()},
    )

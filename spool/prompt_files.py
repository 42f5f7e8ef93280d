"""Turns prompt files that a person copies into incoming/ into requests.

    incoming/{anything}.json   {"prompt": "…"} and optionally max_tokens, temperature, top_p, top_k, min_p,
                               stop, seed, ignore_eos, frequency_penalty, presence_penalty,
                               repetition_penalty, logit_bias, priority (as in POST /generate; null is
                               missing), raw (true: no chat template)

A file is read when two scans found the same size and time, so it may be copied slowly; incomplete JSON gets
some seconds more. The request's id is a hash of the file's name and content, so a crash half-way makes no
second request. The log has the id, and for a wrong file, which moves to bad/, the reason; never the prompt.
Knows no limits of the model: rank 0 checks those.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spool.errors import SpoolError, system_trouble
from spool.fsio import NotPlainFile
from spool.messages import Request
from spool.quarantine import Quarantine
from spool.sampling_params import NUMBER_FIELDS, make_params, read_logit_bias, read_stop
from spool.spool import Spool

MAX_PROMPT_FILE_BYTES = 16 * 2**20
SETTLE_SECONDS = 0.2  # a file that did not change for this time is read
PATIENCE_SECONDS = 5.0  # incomplete JSON that did not change for this time is an error
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptFileDefaults:
    """The values that a prompt file need not name. model is the served model's short name."""

    model: str
    max_tokens: int


class NotJson(ValueError):
    """The file is not JSON, or still incomplete."""


@dataclass
class _Sighting:
    """The first sight of a file in its present state. has_failed: it was read and was not JSON."""

    mark: tuple[int, int, int]
    since: float
    has_failed: bool = False


class PromptFiles:
    """Takes in the files in incoming/ that are not requests. Without defaults it quarantines all of them."""

    def __init__(self, spool: Spool, quarantine: Quarantine) -> None:
        self._spool = spool
        self._quarantine = quarantine
        self._seen: dict[str, _Sighting] = {}
        self._logged: set[str] = set()  # each refusal once

    def take_in(self, names: list[str], defaults: PromptFileDefaults | None) -> None:
        """Process the foreign names that one scan of incoming/ found."""
        self._seen = {name: self._seen[name] for name in names if name in self._seen}
        self._logged.intersection_update(names)
        for name in names:
            path = self._spool.folder.incoming / name
            if self._quarantine.is_immovable(path):
                continue
            if defaults is None:
                self._quarantine.take(path, "it is not a request's file name")
                continue
            try:
                self._read(path, defaults)
            except FileNotFoundError:
                continue
            except (NotPlainFile, ValueError) as error:
                self._quarantine.take(path, str(error))
            except (OSError, SpoolError) as error:
                self._log_once(name, f"cannot be accepted now: {_reason(error)}")

    def _read(self, path: Path, defaults: PromptFileDefaults) -> None:
        info = self._spool.fs.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise NotPlainFile("not a plain file")
        if not self._is_settled(path.name, _mark(info)):
            return
        if not path.name.endswith(".json"):
            raise ValueError("a prompt file's name must end with .json")
        try:
            request = read_prompt(path.name, self._spool.fs.read(path, MAX_PROMPT_FILE_BYTES), defaults)
        except NotJson:
            if self._seen[path.name].has_failed:
                raise
            self._seen[path.name].has_failed = True
            return
        self._accept(path, _mark(info), request)

    def _is_settled(self, name: str, mark: tuple[int, int, int]) -> bool:
        now = time.monotonic()
        sighting = self._seen.get(name)
        if sighting is None or sighting.mark != mark:
            self._seen[name] = _Sighting(mark, now)
            return False
        return now - sighting.since >= (PATIENCE_SECONDS if sighting.has_failed else SETTLE_SECONDS)

    def _accept(self, path: Path, mark: tuple[int, int, int], request: Request) -> None:
        """Submit the request, then remove the file: after a crash in between, the same id is found."""
        if self._spool.state(request.id) is None:
            self._spool.submit(request)
        else:
            with system_trouble("accept a prompt file"):
                self._spool.make_sure()
        _log.info("accepted %a from incoming/ as request %s", path.name, request.id)
        if _mark(self._spool.fs.stat(path)) != mark:
            return  # a new file has replaced it
        try:
            self._spool.fs.unlink(path)
        except OSError as error:
            self._quarantine.give_up(path, f"is request {request.id} and cannot be removed: {error.strerror}")

    def _log_once(self, name: str, reason: str) -> None:
        if name not in self._logged:
            self._logged.add(name)
            _log.warning("%a in incoming/ %s", name, reason)


def read_prompt(name: str, data: bytes, defaults: PromptFileDefaults) -> Request:
    """Make a request of a prompt file's name and content.

    Raises:
        NotJson: the file is not JSON.
        ValueError: a field is wrong; the message repeats none of the file's content.
    """
    id = hashlib.sha256(os.fsencode(name) + b"\0" + data).hexdigest()[:32]
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotJson("the file is not JSON") from error
    if not isinstance(body, dict) or not body.keys() <= _FIELDS.keys():
        raise ValueError(f"the file must be a JSON object with the fields {', '.join(_FIELDS)} only")
    asked, wrong = _read_fields(body)
    if wrong or "prompt" not in asked:
        raise ValueError(f"missing or wrong fields: {', '.join(wrong) or 'prompt'}")
    return Request(
        id,
        make_params(asked, max_tokens=defaults.max_tokens, seed=int(id[:13], 16)),
        asked["prompt"],
        None,
        None,
        defaults.model,
        priority=asked.get("priority", 5),
        created_unix=time.time(),
        is_chat=not asked.get("raw", False),
    )


def _read_fields(body: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the values by field, and the names of wrong fields; null counts as missing, except as prompt."""
    asked, wrong = {}, []
    for field, value in body.items():
        if value is None and field != "prompt":
            continue
        try:
            asked[field] = _FIELDS[field](value)
        except ValueError:
            wrong.append(field)
    return asked, wrong


def _mark(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_ino, info.st_size, info.st_mtime_ns


def _reason(error: Exception) -> str:
    return error.strerror or "" if isinstance(error, OSError) else str(error)


def _text(value: object) -> str:
    """Return a non-empty text that UTF-8 can encode."""
    if not isinstance(value, str) or not value:
        raise ValueError
    value.encode()  # UnicodeEncodeError is a ValueError
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _stop(value: object) -> tuple[str, ...]:
    return tuple(_text(stop) for stop in read_stop(value))


_FIELDS: dict[str, Callable[[object], Any]] = {
    "prompt": _text,
    **{name: field.read for name, field in NUMBER_FIELDS.items()},
    "stop": _stop,
    "logit_bias": read_logit_bias,
    "ignore_eos": _flag,
    "raw": _flag,
}

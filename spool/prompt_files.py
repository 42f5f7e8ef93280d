"""Prompt files that a person drops into incoming/ become requests.

    incoming/{anything}.json   {"prompt": "…"} and, if wanted, max_tokens, temperature, top_p, top_k, min_p,
                               stop, seed, ignore_eos, priority (as in POST /generate; null is none),
                               raw (true: no chat template)

A file is taken in once its size and time stayed the same from one scan to a later one, so that it may be
copied slowly; one that is no whole JSON is given some seconds more. Its request's id is a hash of its name
and content, so a death half way makes no second request of it; the log tells the id. A wrong one goes to
bad/, the reason to the log. Nothing here ever waits or writes of a prompt into the log. Limits of the model
are not known here: rank 0 checks them.
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
from spool.sampling_params import NUMBER_FIELDS, make_params, read_stop
from spool.spool import Spool

MAX_PROMPT_FILE_BYTES = 16 * 2**20
SETTLE_SECONDS = 0.2  # unchanged for so long, a file is looked into
PATIENCE_SECONDS = 5.0  # and for so long, one that is no whole JSON is believed to stay so
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptFileDefaults:
    """What a prompt file need not say. model is the served model's name as requests have it."""

    model: str
    max_tokens: int


class NotWhole(ValueError):
    """No JSON, or not yet."""


@dataclass
class _Sighting:
    """A file as it was first seen so. has_failed: it was looked into and was no JSON yet."""

    mark: tuple[int, int, int]
    since: float
    has_failed: bool = False


class PromptFiles:
    """Takes in what lies in incoming/ under no name of ours. Without defaults all of it is quarantined."""

    def __init__(self, spool: Spool, quarantine: Quarantine) -> None:
        self._spool = spool
        self._quarantine = quarantine
        self._seen: dict[str, _Sighting] = {}
        self._refused: set[str] = set()  # told once

    def take_in(self, names: list[str], defaults: PromptFileDefaults | None) -> None:
        """Look at everything foreign that one scan found."""
        if not names and not self._seen and not self._refused:
            return  # as after nearly every bell
        self._seen = {name: self._seen[name] for name in names if name in self._seen}
        self._refused.intersection_update(names)
        for name in names:
            path = self._spool.folder.incoming / name
            if self._quarantine.is_immovable(path):
                continue
            if defaults is None:
                self._quarantine.take(path, "not a name of ours")
                continue
            try:
                self._look_at(path, defaults)
            except FileNotFoundError:
                continue
            except (NotPlainFile, ValueError) as error:
                self._quarantine.take(path, str(error))
            except (OSError, SpoolError) as error:
                self._tell_once(name, f"cannot be taken in at present: {_reason(error)}")

    def _look_at(self, path: Path, defaults: PromptFileDefaults) -> None:
        info = self._spool.fs.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise NotPlainFile("not a plain file")
        if not self._is_settled(path.name, _mark(info)):
            return
        if not path.name.endswith(".json"):
            raise ValueError("not a name of ours, and a prompt file's name ends with .json")
        try:
            request = read_prompt(path.name, self._spool.fs.read(path, MAX_PROMPT_FILE_BYTES), defaults)
        except NotWhole:
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
        """Submit, and only then remove the file: dying in between, the same id is found."""
        if self._spool.state(request.id) is None:
            self._spool.submit(request)
        else:
            with system_trouble("take in a prompt file"):
                self._spool.make_sure()
        _log.info("took in %a from incoming/ as request %s", path.name, request.id)
        if _mark(self._spool.fs.stat(path)) != mark:
            return  # a new one was put in its place
        try:
            self._spool.fs.unlink(path)
        except OSError as error:
            self._quarantine.give_up(path, f"is request {request.id} and cannot be removed: {error.strerror}")

    def _tell_once(self, name: str, reason: str) -> None:
        if name not in self._refused:
            self._refused.add(name)
            _log.warning("%a in incoming/ %s", name, reason)


def read_prompt(name: str, data: bytes, defaults: PromptFileDefaults) -> Request:
    """Make a request of a prompt file's name and content.

    Raises:
        NotWhole: no JSON.
        ValueError: a field is wrong; the message repeats nothing of the file.
    """
    id = hashlib.sha256(os.fsencode(name) + b"\0" + data).hexdigest()[:32]
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotWhole("not JSON") from error
    if not isinstance(body, dict) or not body.keys() <= _FIELDS.keys():
        raise ValueError(f"not an object of some of the fields {', '.join(_FIELDS)}")
    asked, wrong = _read_fields(body)
    if wrong or "prompt" not in asked:
        raise ValueError(f"missing or wrong: {', '.join(wrong) or 'prompt'}")
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
    """Return the values by field, and the fields that are wrong; null is none, but no prompt."""
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
    """Return a text with something in it that UTF-8 can hold."""
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
    "ignore_eos": _flag,
    "raw": _flag,
}

"""Sets up logging for a process: text or JSON lines on standard error, and in LOG_FILE where one is chosen.

Text: `2026-11-23 14:32:10.123 INFO rank 0: message`. JSON: `time level process message`, the members of
`extra={"fields": {…}}`, and `exception` where there is a traceback. Prompt text is never logged; that is
the callers' duty.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

from config.disk_trouble import describe_os_error, is_passing
from config.errors import Problem, SettingsError
from config.rotating_file import RotatingFile

if TYPE_CHECKING:
    from config.settings import Settings

# These log every request they make or every file they look at, at INFO.
CHATTY_LOGGERS = ("httpx", "httpx2", "httpcore", "huggingface_hub", "filelock", "urllib3", "asyncio")


class TextFormatter(logging.Formatter):
    """One line a record, after which a traceback may follow."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        time = datetime.fromtimestamp(record.created).isoformat(sep=" ", timespec="milliseconds")
        line = f"{time} {record.levelname} {self._process}: {_one_line(record.getMessage())}"
        return line if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"


class JsonFormatter(logging.Formatter):
    """One JSON object a record."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        data = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "process": self._process,
            "message": record.getMessage(),
        }
        if record.exc_info is not None:
            data["exception"] = self.formatException(record.exc_info)
        fields = getattr(record, "fields", {})
        return json.dumps({**data, **{key: fields[key] for key in fields if key not in data}}, default=str)


class StandardErrorHandler(logging.StreamHandler[TextIO]):
    """Writes records on standard error, which may be a file on a full disk or a pipe that nobody reads."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Lose a line that the system refuses, without a word: there is nowhere to say it."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class RotatingFileHandler(logging.Handler):
    """Writes records into a RotatingFile."""

    def __init__(self, file: RotatingFile) -> None:
        super().__init__()
        self._file = file
        self._trouble: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; what keeps it from the file is said once on standard error and stops nothing."""
        line = self.format(record)
        try:
            self._file.write_line(line)
        except OSError as error:
            trouble = describe_os_error(error)
            if trouble != self._trouble:
                say(f"{self._file.path} cannot be written: {trouble}; log lines are lost there")
            self._trouble = trouble
        else:
            self._trouble = None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def configure_logging(settings: Settings, *, process: str) -> None:
    """Send this process's log lines where the settings say, in place of any earlier set-up.

    Args:
        process: the name that stands on each line: "rank 0", "api", "supervisor".
    Raises: SettingsError where LOG_FILE can never be written; a full disk costs lines, and no start.
    """
    handlers: list[logging.Handler] = [StandardErrorHandler()]
    if settings.log_file is not None:
        handlers.append(_file_handler(settings))
    formatter = JsonFormatter(process) if settings.log_format == "json" else TextFormatter(process)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    set_level(settings.log_level)
    logging.captureWarnings(True)


def say(message: object) -> None:
    """Print a line on standard error, for a process that has no log yet; lost where it cannot be written."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def let_go_of_lost_lines() -> None:
    """Drop what standard error refuses; left to the end, it would change the process's exit code to 120."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def set_level(level: str | None) -> None:
    """Write lines from this level on; None leaves it as it is."""
    if level is None:
        return
    root = logging.getLogger()
    root.setLevel(level)
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(
            max(root.level, logging.WARNING) if root.level > logging.DEBUG else root.level
        )


def _file_handler(settings: Settings) -> RotatingFileHandler:
    assert settings.log_file is not None
    file = RotatingFile(settings.log_file)
    try:
        file.open()
    except OSError as error:
        if is_passing(error):  # the handler says so, and tries at each line
            return RotatingFileHandler(file)
        origin = str(settings.origin("LOG_FILE"))
        sentence = f"LOG_FILE = {settings.log_file} cannot be written: {error.strerror}"
        raise SettingsError([Problem(origin, sentence, "LOG_FILE")]) from error
    return RotatingFileHandler(file)


def _one_line(message: str) -> str:
    return message.replace("\r", "\\r").replace("\n", "\\n")

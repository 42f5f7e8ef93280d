"""Sets up logging for a process: text or JSON lines on standard error, and in LOG_FILE where it is set.

Text: `2026-11-23 14:32:10.123 INFO rank 0: message`. JSON: `time level process message`, the members of
`extra={"fields": {…}}`, and `exception` for a traceback. Callers must never log prompt text.
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
from config.errors import SettingsError
from config.rotating_file import RotatingFile

if TYPE_CHECKING:
    from config.settings import Settings

# These log every request they make or every file they look at, at INFO.
CHATTY_LOGGERS = ("httpx", "httpx2", "httpcore", "huggingface_hub", "filelock", "urllib3", "asyncio")


class TextFormatter(logging.Formatter):
    """Formats a record as one line, and a traceback after it."""

    default_msec_format = "%s.%03d"

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {process}: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """Write a record's line; a line break in its message cannot forge a second one."""
        record.message = record.message.replace("\r", "\\r").replace("\n", "\\n")
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object."""

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
    """Writes records to standard error, which may be a file on a full disk or a closed pipe."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Drop a line that the system refuses: there is no place to report it."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class RotatingFileHandler(logging.Handler):
    """Writes records into a RotatingFile."""

    def __init__(self, file: RotatingFile) -> None:
        super().__init__()
        self._file = file
        self._trouble: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; report an error once on standard error, and go on."""
        line = self.format(record)
        try:
            self._file.write_line(line)
        except OSError as error:
            trouble = describe_os_error(error)
            if trouble != self._trouble:
                say(f"{self._file.path} cannot be written: {trouble}; log lines are lost")
            self._trouble = trouble
        else:
            self._trouble = None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def configure_logging(settings: Settings, *, process: str) -> None:
    """Set this process's logging up from the settings, and replace any earlier set-up.

    Args:
        process: the name on each line: "rank 0", "api", "supervisor".
    Raises: SettingsError where LOG_FILE can never be written; a full disk loses lines but stops no start.
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
    """Print a line on standard error, for a process without a log; drop it where that fails."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def let_go_of_lost_lines() -> None:
    """Drop lines that standard error refuses: at exit they would change the exit code to 120."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def set_level(level: str | None) -> None:
    """Set the least severe level to log; None changes nothing."""
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
        if is_passing(error):  # the handler reports it, and retries at each line
            return RotatingFileHandler(file)
        sentence = f"LOG_FILE = {settings.log_file} cannot be written: {error.strerror}"
        raise SettingsError([settings.problem("LOG_FILE", sentence)]) from error
    return RotatingFileHandler(file)

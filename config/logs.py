"""Sets up logging for a process: text or JSON lines on standard error, and in LOG_FILE where one is chosen.

Text: `2026-11-23 14:32:10.123 INFO rank 0: message`. JSON: `time level process message`, the members of
`extra={"fields": {…}}`, and `exception` where there is a traceback. Prompt text is never logged; that is
the callers' duty.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from config.errors import Problem, SettingsError
from config.rotating_file import RotatingFile

if TYPE_CHECKING:
    from config.manager import Settings

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


class RotatingFileHandler(logging.Handler):
    """Writes records into a RotatingFile."""

    def __init__(self, file: RotatingFile) -> None:
        super().__init__()
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a full disk is reported on standard error and stops nothing."""
        try:
            self._file.write_line(self.format(record))
        except OSError:
            self.handleError(record)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def configure_logging(settings: Settings, *, process: str) -> None:
    """Send this process's log lines where the settings say, in place of any earlier set-up.

    Args:
        process: the name that stands on each line: "rank 0", "api", "supervisor".
    Raises: SettingsError where LOG_FILE cannot be written.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
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
    try:
        return RotatingFileHandler(RotatingFile(settings.log_file))
    except OSError as error:
        origin = str(settings.origin("LOG_FILE"))
        sentence = f"LOG_FILE = {settings.log_file} cannot be written: {error.strerror}"
        raise SettingsError([Problem(origin, sentence, "LOG_FILE")]) from error


def _one_line(message: str) -> str:
    return message.replace("\r", "\\r").replace("\n", "\\n")

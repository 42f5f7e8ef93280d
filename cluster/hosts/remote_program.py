"""Makes the text of a program of remote_scripts/ with its question. Knows nothing of how it is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent / "remote_scripts"


def make_program(name: str, question: Mapping[str, Any]) -> bytes:
    """A program of remote_scripts/ followed by the call of its `main`."""
    source = (SCRIPTS / f"{name}.py").read_text(encoding="utf-8")
    return f"{source}\n\nmain(json.loads({json.dumps(question)!r}))\n".encode()

"""The text of a program of cluster/hosts/remote_scripts with its question. Knows nothing of how it is
sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SENT = Path(__file__).resolve().parent / "remote_scripts"


def make_program(name: str, question: Mapping[str, Any]) -> bytes:
    """A program of cluster/hosts/remote_scripts with the call of its `main`."""
    source = (SENT / f"{name}.py").read_text(encoding="utf-8")
    return f"{source}\n\nmain(json.loads({json.dumps(question)!r}))\n".encode()

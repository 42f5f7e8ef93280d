"""A short run of chaos with real processes: what was accepted is answered once, and nothing is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.oracle import VERDICTS
from config import REPOSITORY_ROOT as ROOT

pytestmark = pytest.mark.long

LIMIT_S = 580.0


def test_random_kills_lose_nothing(tmp_path: Path) -> None:
    """Rows 7 and 32: a dozen kills."""
    words = ("--minutes", "4", "--kills", "12", "--seed", "11", "--pause", "0.5", "1.5")
    command = [sys.executable, "-m", "chaos", *words, "--folder", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    journal = json.loads((tmp_path / "journal.json").read_text(encoding="utf-8"))
    assert len(journal["kills"]) >= 3
    assert journal["accepted"] > len(journal["kills"])
    assert not any(journal["counts"][what] for what in VERDICTS)
    assert (journal["left_in_queue"], journal["left_processes"]) == (0, 0)

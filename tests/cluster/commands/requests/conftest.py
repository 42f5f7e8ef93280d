"""Settings and spool of a service that answers with a fake engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from config import Settings, load_settings
from spool import Spool


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    model = tmp_path / "tiny"
    model.mkdir()
    values = {"STATE_DIR": str(tmp_path / "state"), "MODEL_REPO": str(model), "SPOOL_DURABILITY": "process"}
    return load_settings(values, root=tmp_path, environ={})


@pytest.fixture
def spool(settings: Settings) -> Spool:
    return Spool.open(settings.spool_dir, durability="process")

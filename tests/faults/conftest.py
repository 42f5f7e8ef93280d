"""The model of the rings that faults hit."""

from pathlib import Path

import pytest

from tests.fakes.checkpoints import shared_checkpoint


@pytest.fixture(scope="session")
def model() -> Path:
    return shared_checkpoint("llama")

"""Three hosts for the cluster's tests: fresh ones for a test, or one set for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.on_hosts.namespaces import Hosts, why_not


@pytest.fixture(scope="session")
def can_make_hosts() -> None:
    """Skip where this machine cannot make hosts, with the reason."""
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture
def hosts(can_make_hosts: None, tmp_path: Path) -> Iterator[Hosts]:
    """Three fresh hosts."""
    with Hosts(tmp_path / "hosts") as made:
        yield made


@pytest.fixture(scope="module")
def shared_hosts(can_make_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Three hosts that all tests of a file use one after the other."""
    with Hosts(tmp_path_factory.mktemp("hosts")) as made:
        yield made

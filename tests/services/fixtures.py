"""Fixtures that many files share: a spool and its owner, a front door and the openai client before it.

What they need is imported when it is used: most tests need none of it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import openai

    from spool import Spool, SpoolOwner
    from tests.services.frontdoor_service import Service


@pytest.fixture
def spool(tmp_path: Path) -> "Spool":
    """An empty spool that syncs nothing."""
    from spool import Spool

    return Spool.open(tmp_path / "spool", durability="process")


@pytest.fixture
def owner(spool: "Spool") -> "Iterator[SpoolOwner]":
    """Rank 0's side of the spool."""
    from tests.fakes.spool_fakes import open_owner

    with open_owner(spool) as owner:
        yield owner


@pytest.fixture(scope="module")
def shared_service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[Service]":
    """A front door for a whole file, which may name its SETTINGS and KEYS (lines of API_KEYS_FILE)."""
    from tests.services.frontdoor_service import running_service

    folder, ours = tmp_path_factory.mktemp("service"), dict(getattr(request.module, "SETTINGS", {}))
    keys = getattr(request.module, "KEYS", None)
    if keys is not None:
        (folder / "keys").write_text(keys)
        ours["API_KEYS_FILE"] = str(folder / "keys")
    with running_service(folder, ours) as made:
        yield made


@pytest.fixture
def service(shared_service: "Service") -> "Service":
    """That front door, with nothing of an earlier test in it."""
    return shared_service.start_over()


@pytest.fixture(scope="module")
def client(shared_service: "Service") -> "Iterator[openai.OpenAI]":
    """The official client, without its retries."""
    import openai

    with openai.OpenAI(base_url=f"{shared_service.url}/v1", api_key="any", max_retries=0) as client:
        yield client

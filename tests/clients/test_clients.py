"""Real clients before a real ring of two ranks: each flow of each client, as its users run it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import REPOSITORY_ROOT as ROOT
from config import load_settings
from distributed.prepare import prepare
from tests.clients.clients import CLIENTS
from tests.clients.script import RULES
from tests.services.frontdoor_service import serving
from tests.services.ring_service import RingService

pytestmark = pytest.mark.long

PAGE = (ROOT / "docs" / "clients.md").read_text("utf-8")
BLOCKS = re.findall(r"^### ([\w-]+)(?:(?!^#).)*?```(python|js)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
FLOWS = [(client, flow) for client in CLIENTS for flow in client.flows()]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a scripted service with room for agents, and its model's folder."""
    folder = tmp_path_factory.mktemp("clients")
    (folder / "script.json").write_text(json.dumps(RULES))
    values = {
        "MODEL_REPO": f"scripted:{folder / 'script.json'}",
        "STATE_DIR": str(folder / "state"),
        "MAX_SEQUENCE_LENGTH": "auto",
        "SPOOL_DURABILITY": "process",
    }
    settings = load_settings(values, root=folder, environ={})
    model = prepare(settings)
    with RingService(folder / "state", model, 2, **values), serving(settings) as url:
        yield url, model


@pytest.fixture(scope="module")
def ran(
    request: pytest.FixtureRequest, service: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What came of each flow of a client."""
    url, model = service
    found: dict[str, str] = request.param.run(
        url, tmp_path_factory.mktemp("home"), {"MODEL": "scripted-script", "TOKENIZER": str(model)}
    )
    return found


@pytest.mark.parametrize(
    ("ran", "flow"), FLOWS, indirect=["ran"], ids=[f"{client.name}-{flow}" for client, flow in FLOWS]
)
def test_a_client_works(ran: dict[str, str], flow: str) -> None:
    """It gets the answers of the script: texts, typed values, tool calls, errors of the right class."""
    assert ran[flow] == ""


@pytest.mark.parametrize(("name", "language", "text"), BLOCKS, ids=[f"{b[0]}-{b[1]}" for b in BLOCKS])
def test_a_program_of_the_page_runs(
    service: tuple[str, Path], tmp_path: Path, name: str, language: str, text: str
) -> None:
    """As it stands, with this service's address and model."""
    driver = f"{name.replace('-', '_')}_{language[:2]}"
    (client,) = [client for client in CLIENTS if client.name == driver]
    ours = text.replace("http://127.0.0.1:8100", service[0]).replace("smollm2-135m", "scripted-script")
    printed = client.run_text(ours, service[0], tmp_path)
    assert "Paris" in printed or "Ada" in printed

"""Real clients before a real ring of two ranks: each flow of each client, as its users run it."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from config import load_settings
from distributed.prepare import prepare
from tests.clients.agents import KEY, RECIPES, fill_recipe
from tests.clients.clients import CLIENTS, Client
from tests.clients.script import RULES
from tests.services.frontdoor_service import serving
from tests.services.ring_service import RingService

pytestmark = pytest.mark.long

MODEL = "scripted-script"
FLOWS = [(client, flow) for client in CLIENTS for flow in client.flows()]
WITH_PROGRAM = [client for client in CLIENTS if (found := RECIPES.get(client.recipe_name)) and found.programs]


@dataclass(frozen=True)
class Served:
    """The addresses of a scripted service with room for agents, and its model's folder."""

    url: str
    locked_url: str  # wants the key of the recipes
    model: Path


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One ring behind two front doors."""
    folder = tmp_path_factory.mktemp("clients")
    (folder / "script.json").write_text(json.dumps(RULES))
    (folder / "keys").write_text(f"{KEY}\n")
    values = {
        "MODEL_REPO": f"scripted:{folder / 'script.json'}",
        "STATE_DIR": str(folder / "state"),
        "MAX_SEQUENCE_LENGTH": "auto",
        "SPOOL_DURABILITY": "process",
    }
    settings = load_settings(values, root=folder, environ={})
    locked = load_settings({**values, "API_KEYS_FILE": str(folder / "keys")}, root=folder, environ={})
    model = prepare(settings)
    with (
        RingService(folder / "state", model, 2, **values),
        serving(settings) as url,
        serving(locked) as locked_url,
    ):
        yield Served(url, locked_url, model)


@pytest.fixture(scope="module")
def run_flows(
    service: Served, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Client], dict[str, str]]:
    """Run all flows of a client, once; a command that takes its settings from a recipe needs the key."""

    @functools.cache
    def run(client: Client) -> dict[str, str]:
        is_locked = client.recipe_name in RECIPES and client not in WITH_PROGRAM
        url = service.locked_url if is_locked else service.url
        recipe = fill_recipe(client.recipe_name, url, MODEL) if is_locked else None
        words = {"MODEL": MODEL, "TOKENIZER": str(service.model)}
        return client.run(url, tmp_path_factory.mktemp("home"), recipe, words)

    return run


@pytest.mark.parametrize(("client", "flow"), FLOWS, ids=[f"{client.name}-{flow}" for client, flow in FLOWS])
def test_a_client_works(run_flows: Callable[[Client], dict[str, str]], client: Client, flow: str) -> None:
    """It gets the answers of the script: texts, typed values, tool calls, errors of the right class."""
    assert run_flows(client)[flow] == ""


@pytest.mark.parametrize("client", WITH_PROGRAM, ids=lambda client: client.recipe_name)
def test_a_program_of_the_page_runs(service: Served, tmp_path: Path, client: Client) -> None:
    """As it stands, with this service's address and model."""
    url = service.locked_url
    printed = client.run_program(fill_recipe(client.recipe_name, url, MODEL), url, tmp_path)
    assert "Paris" in printed or "Ada" in printed


def test_the_pages_line_for_curl_works(service: Served) -> None:
    """With what this machine's curl makes of it."""
    script = fill_recipe("curl", service.locked_url, MODEL).script
    ended = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True)
    assert "Paris" in ended.stdout

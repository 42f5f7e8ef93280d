"""`connect`: the recipes of docs/clients.md with the values of a service, and what it says beside them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from cluster.commands import connect
from cluster.commands.command_line import main
from cluster.commands.recipes import EXAMPLE_MODEL, EXAMPLE_URL, Recipe, Values, read_recipes
from cluster.processes import ProcessIdentity
from cluster.supervisor.service import Service
from cluster.terminal import Terminal
from config import load_settings
from tests.clients.agents import AGENTS
from tests.clients.clients import CLIENTS

RECIPES = read_recipes(connect.PAGE)
STOPPED = Service({}, {}, None)
every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def show(folder: Path, name: str, service: Service = STOPPED, **values: str) -> str:
    """What `connect NAME` prints with these settings."""
    ours = {"MODEL_REPO": "org/Some-Model", "STATE_DIR": str(folder / "state"), **values}
    target = connect.find_target(load_settings(ours, root=folder, environ={}), service)
    printed = io.StringIO()
    assert connect.show_client(target, Terminal(printed), name) == 0
    return printed.getvalue()


def test_every_section_of_the_page_has_its_row() -> None:
    """In the same order, so that a recipe is found from the table."""
    text = connect.PAGE.read_text("utf-8").partition("\n## Recipes\n")[2].partition("\n## ")[0]
    sections = [line.removeprefix("### ") for line in text.splitlines() if line.startswith("### ")]
    assert sections == list(RECIPES)


def test_tests_run_what_the_page_says_they_run() -> None:
    """Each recipe that has a driver counts as tried by tests, and no other."""
    said = {name for name, recipe in RECIPES.items() if recipe.tried.startswith("by tests")}
    drivers = {"curl", *(client.recipe_name for client in CLIENTS), *(each.recipe for each in AGENTS)}
    assert said == drivers & RECIPES.keys()


@every_recipe
def test_a_recipe_takes_all_values_of_a_service(recipe: Recipe) -> None:
    """Nothing of the example stays: no address, no model, no context, no key."""
    filled = recipe.fill(Values("http://10.0.0.7:81", "Some-Model", "org/Some-Model", 9999, "YOUR_KEY"))
    for stale in (EXAMPLE_URL, EXAMPLE_MODEL, ":8100", "32768", "=any", "SmolLM2"):
        assert stale not in filled.text
    assert f"export {recipe.key_name}=YOUR_KEY\n" in filled.text
    assert "10.0.0.7:81" in filled.text or "host.docker.internal:81" in filled.text
    assert "```" not in filled.plain_text


def test_files_programs_and_lines_of_a_shell_are_told_apart() -> None:
    """Tests take a client's settings from them."""
    assert list(RECIPES["opencode"].files) == ["~/.config/opencode/opencode.json"]
    assert RECIPES["opencode"].script == "export OPENAI_API_KEY=any\nopencode"
    assert [kind for kind, _ in RECIPES["ai-sdk"].programs] == ["js"]


def test_without_keys_any_word_is_one(tmp_path: Path) -> None:
    """The recipe can be pasted as it stands."""
    printed = show(tmp_path, "openai")
    assert "export OPENAI_API_KEY=any\n" in printed
    assert "the service needs none" in printed


def test_a_key_of_the_file_is_never_printed(tmp_path: Path) -> None:
    """The variable is named, and the file."""
    (tmp_path / "keys").write_text("very-secret\n")
    printed = show(tmp_path, "claude-code", API_KEYS_FILE=str(tmp_path / "keys"))
    assert "very-secret" not in printed
    assert "export ANTHROPIC_AUTH_TOKEN=YOUR_KEY\n" in printed
    assert f"a key of {tmp_path / 'keys'} into ANTHROPIC_AUTH_TOKEN" in printed


@pytest.mark.parametrize(
    ("name", "context", "is_short"),
    [("qwen-code", "4096", True), ("qwen-code", "32768", False), ("openai", "4096", False)],
)
def test_it_says_whether_the_context_is_too_short(
    tmp_path: Path, name: str, context: str, is_short: bool
) -> None:
    """And what to set, before the model is on this machine too."""
    printed = show(tmp_path, name, MAX_SEQUENCE_LENGTH=context)
    assert ("TOO SHORT" in printed) == is_short
    assert not is_short or "MAX_SEQUENCE_LENGTH=auto" in printed


def test_the_running_service_wins_over_the_settings(tmp_path: Path) -> None:
    """Its address and its context are what a client meets."""
    ring = {"context": {"max_tokens": 5000, "bound": "memory", "model_tokens": 8192}}
    service = Service({"api": {"host": "127.0.0.1", "port": 9001}}, ring, ProcessIdentity(1, 1.0))
    printed = show(tmp_path, "opencode", service, MAX_SEQUENCE_LENGTH="auto")
    assert "http://127.0.0.1:9001/v1" in printed
    assert '"context": 5000' in printed
    assert "KV_CACHE_RESERVED_MEMORY_MB" in printed
    assert "it does not run" not in printed


def test_other_machines_get_an_address_of_this_one(tmp_path: Path) -> None:
    """If the service listens on every address."""
    assert "from other machines http://" in show(tmp_path, "curl", API_HOST="0.0.0.0", API_PORT="81")
    assert "for this machine only" in show(tmp_path, "curl")
    assert "Address:" not in show(tmp_path, "curl", API_HOST="10.0.0.7")


@pytest.mark.parametrize(
    ("name", "near"),
    [("claude", "claude-code"), ("opencod", "opencode"), ("cn", "continue"), ("zz", "lists")],
)
def test_an_unknown_client_is_refused_with_its_neighbours(
    capsys: pytest.CaptureFixture[str], name: str, near: str
) -> None:
    """With the exit code of wrong flags."""
    assert main(["connect", name]) == 2
    assert near in capsys.readouterr().err


def test_without_a_name_it_lists_the_clients(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each."""
    assert main(["connect"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == list(RECIPES)


def test_it_writes_nothing(tmp_path: Path) -> None:
    """Not even the folder of the service's state."""
    assert main(["connect", "curl", "--state-dir", str(tmp_path / "state")]) == 0
    assert list(tmp_path.iterdir()) == []

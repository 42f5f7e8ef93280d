"""`connect`: prints what to enter in a client, with the values of this service; writes nothing.

docs/clients.md has the recipes. Address, model and context are those of the running service; while none runs,
those of the settings. Prints no key.
"""

from __future__ import annotations

import difflib
import socket
from dataclasses import dataclass

from cluster import ports
from cluster.commands.recipes import EXAMPLE_REPO, Recipe, Values, read_recipes
from cluster.errors import ClusterError
from cluster.supervisor.service import Service
from cluster.terminal import Terminal, make_table
from config import REPOSITORY_ROOT, ModelNotReady, Settings
from config.context_length import MOST_AUTO_TOKENS, ContextLength, limit_context, read_model_tokens

PAGE = REPOSITORY_ROOT / "docs" / "clients.md"
ROOM_FOR_WORK = 4096  # tokens of files and answers, beside an agent's first prompt
NOT_RUNNING = "Service: it does not run (./launch.sh start); these are the values of the settings"
EVERY_ADDRESS = ("0.0.0.0", "::")
LOOPBACK = ("localhost", "127.", "::1")  # beginnings


class UnknownClient(ClusterError):
    """No recipe has this name."""

    exit_code = 2


@dataclass(frozen=True)
class Target:
    """The service that a client is to reach."""

    settings: Settings
    host: str
    port: int
    context: ContextLength
    is_running: bool

    @property
    def values(self) -> Values:
        """What the recipes say of it."""
        settings = self.settings
        return Values(
            url=ports.make_url(self.host, self.port),
            model=settings.model_name,
            repo=EXAMPLE_REPO if ":" in settings.model_repo else settings.model_repo,
            context=self.context.max_tokens,
            key="YOUR_KEY" if settings.api_keys_file else None,
        )


def find_target(settings: Settings, service: Service) -> Target:
    """Return the running service, or what the settings would start."""
    is_running = service.holder is not None
    host, port = (is_running and service.api_address) or (settings.api_host, settings.api_port)
    said = ContextLength.from_json(service.ring.get("context")) if is_running else None
    context = said or limit_context(settings, _find_model_tokens(settings))
    return Target(settings, host, port, context, is_running)


def _find_model_tokens(settings: Settings) -> int | None:
    """Return the model's own length, and that of a large model for one that is not on this machine yet."""
    try:
        folder = settings.model_dir
    except ModelNotReady:
        return MOST_AUTO_TOKENS
    return read_model_tokens(folder) if folder.is_dir() else MOST_AUTO_TOKENS


def list_clients(terminal: Terminal) -> int:
    """Print a line for each client; 0."""
    recipes = read_recipes(PAGE).values()
    rows = [["NAME", "CLIENT", "TRIED"], *([each.name, each.client, each.tried] for each in recipes)]
    for line in make_table(rows):
        terminal.line(line)
    return 0


def show_client(target: Target, terminal: Terminal, name: str) -> int:
    """Print one client's recipe; 0.

    Raises:
        UnknownClient: with the names that resemble it.
    """
    recipe = find_recipe(name)
    lines = [f"{recipe.client}; tried: {recipe.tried}", "", recipe.fill(target.values).plain_text, ""]
    for line in (*lines, *describe_target(target, recipe)):
        terminal.line(line)
    return 0


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        UnknownClient: no recipe has it.
    """
    recipes = read_recipes(PAGE)
    if found := recipes.get(name.lower()):
        return found
    near = [each.name for each in recipes.values() if name.lower() in f"{each.name} {each.client}".lower()]
    near = near or difflib.get_close_matches(name.lower(), recipes)
    hint = f"did you mean {' or '.join(near)}?" if near else "./launch.sh connect lists the clients"
    raise UnknownClient(f"connect: no client has the name {name!r}; {hint}")


def describe_target(target: Target, recipe: Recipe) -> list[str]:
    """Return what a person needs to know beside the recipe."""
    lines = [] if target.is_running else [NOT_RUNNING]
    if target.host in EVERY_ADDRESS:
        lines.append(f"Address: from other machines {_describe_own_urls(target.port)}")
    elif target.host.startswith(LOOPBACK):
        lines.append("Address: for this machine only; API_HOST opens it to others (docs/security.md)")
    if file := target.settings.api_keys_file:
        lines.append(f"Key: put a key of {file} into {recipe.key_name}, in place of YOUR_KEY")
    else:
        lines.append(f"Key: the service needs none; {recipe.key_name} may be any word")
    return [*lines, _describe_context(target.context, recipe)]


def _describe_own_urls(port: int) -> str:
    name = socket.gethostname()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks for the way out
            address = probe.getsockname()[0]
        except OSError:
            return ports.make_url(name, port)
    return f"{ports.make_url(address, port)} or {ports.make_url(name, port)}"


def _describe_context(context: ContextLength, recipe: Recipe) -> str:
    needed = recipe.first_prompt + ROOM_FOR_WORK
    if not recipe.first_prompt or context.max_tokens >= needed:
        return f"Context: {context.describe()}"
    return (
        f"Context: TOO SHORT: {context.max_tokens} tokens; the first prompt of {recipe.name} takes about "
        f"{recipe.first_prompt}, and its work needs {ROOM_FOR_WORK} or more beside it "
        f"({context.hint})"
    )

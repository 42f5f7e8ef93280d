"""The recipes of docs/clients.md: what to enter in each client.

The page is written for a service at EXAMPLE_URL with EXAMPLE_MODEL; `Recipe.fill` puts another's values in
their place. Knows nothing of settings or of a running service.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

EXAMPLE_URL = "http://127.0.0.1:8100"
EXAMPLE_MODEL = "smollm2-135m"
EXAMPLE_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
EXAMPLE_CONTEXT = "32768"
_CONTAINER_URL = "http://host.docker.internal:8100"
_ROW = re.compile(r"^\| \[([\w-]+)\]\(#\1\) \|" + r" ([^|]*) \|" * 3, re.MULTILINE)
_SECTION = re.compile(r"^### ([\w-]+)\n(.*?)(?=^#{2,3} |\Z)", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"(?:^`([^`\n]+)`[^\n]*:\n\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^```\w*\n", re.MULTILINE)
_KEY = re.compile(r"(?<=export )(\w+)=any$", re.MULTILINE)
_INSTALL = re.compile(r"^(?:pip|npm) install .*\n", re.MULTILINE)


@dataclass(frozen=True)
class Values:
    """What a recipe says of one service; `key` is None where no key is needed."""

    url: str
    model: str
    repo: str
    context: int
    key: str | None = None


@dataclass(frozen=True)
class Recipe:
    """One client: its row in the page's table, and the text of its section."""

    name: str
    client: str
    tried: str
    first_prompt: int
    text: str

    @property
    def key_name(self) -> str:
        """The environment variable from which the client takes its key."""
        found = _KEY.search(self.text)
        assert found, f"{self.name} has no line `export NAME=any`"
        return found[1]

    @property
    def plain_text(self) -> str:
        """The text without its fences, to read in a terminal."""
        return _FENCE.sub("", self.text).strip()

    @cached_property
    def files(self) -> Mapping[str, str]:
        """The files that the client reads, by the path that the page gives them."""
        return {path: text for path, _, text in _BLOCK.findall(self.text) if path}

    @property
    def programs(self) -> tuple[tuple[str, str], ...]:
        """The programs in languages of their own: language and text."""
        blocks = _BLOCK.findall(self.text)
        return tuple((kind, text) for path, kind, text in blocks if not path and kind != "bash")

    @property
    def script(self) -> str:
        """The lines for a shell, without those that install the client."""
        blocks = (text for _, kind, text in _BLOCK.findall(self.text) if kind == "bash")
        return _INSTALL.sub("", "".join(blocks)).rstrip()

    def fill(self, values: Values) -> Recipe:
        """Return the recipe for a service."""
        texts = {
            EXAMPLE_URL: values.url,
            _CONTAINER_URL: f"http://host.docker.internal:{values.url.rpartition(':')[2]}",
            EXAMPLE_MODEL: values.model,
            EXAMPLE_REPO: values.repo,
            EXAMPLE_CONTEXT: str(values.context),
        }
        text = re.sub("|".join(map(re.escape, texts)), lambda found: texts[found[0]], self.text)
        if values.key is not None:
            text = _KEY.sub(rf"\1={values.key}", text)
        return Recipe(self.name, self.client, self.tried, self.first_prompt, text)


def read_recipes(page: Path) -> dict[str, Recipe]:
    """Return the page's recipes by name, in its order."""
    text = page.read_text("utf-8")
    sections = dict(_SECTION.findall(text.partition("\n## Recipes\n")[2].partition("\n## ")[0]))
    return {
        name: Recipe(name, client, tried, int(first.replace(",", "")) if first != "-" else 0, sections[name])
        for name, client, tried, first in _ROW.findall(text)
    }

"""Client libraries and programs, each with its packages and a driver that runs its flows.

Each has an environment of its own in .venv/clients, made by pip or npm when a test first needs it. A driver
runs with a home folder of its own, and a proxy that refuses, so it reaches no other server.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.commands.recipes import Recipe
from config import REPOSITORY_ROOT as ROOT

DRIVERS = Path(__file__).parent / "drivers"
PYPI, NPM = "https://pypi.org/simple/pip/", "https://registry.npmjs.org/openai"
INSTALL_SECONDS = 900.0
RUN_SECONDS = 170.0
FLOW = re.compile(r"^(?:def|export async function) ([a-z]\w*)\(", re.MULTILINE)


@dataclass(frozen=True)
class Client:
    """One client.

    Args:
        driver: a file of drivers/; in JavaScript the packages are npm's, else PyPI's.
        packages: with the oldest version that is known to work.
        recipe: its name on the page, if that differs from the driver's.
    """

    driver: str
    packages: tuple[str, ...]
    recipe: str = ""

    @property
    def name(self) -> str:
        return self.driver.partition(".")[0]

    @property
    def recipe_name(self) -> str:
        return self.recipe or self.name.removesuffix("_py").removesuffix("_cli").replace("_", "-")

    @property
    def is_python(self) -> bool:
        return self.driver.endswith(".py")

    def flows(self) -> list[str]:
        """Return the names of the driver's flows."""
        return FLOW.findall((DRIVERS / self.driver).read_text("utf-8"))

    def run(self, url: str, home: Path, recipe: Recipe | None, words: Mapping[str, str]) -> dict[str, str]:
        """Run all flows; return each name with its error, empty where it works.

        Args:
            recipe: the client's, for this service; drivers of commands take their settings from it.
            words: more environment variables.
        """
        if recipe is not None:
            said = json.dumps({"files": recipe.files, "script": recipe.script})
            words = {"RECIPE": said, recipe.key_name: "any", **words}
        folder = self._install()
        if not self.is_python:  # modules are looked for beside the file
            for file in DRIVERS.glob("*.mjs"):
                shutil.copy(file, folder)
        program = DRIVERS / "run.py" if self.is_python else folder / "run.mjs"
        printed = self._execute((program, self.name), url, home, words)
        found: dict[str, str] = json.loads(printed.splitlines()[-1])
        return found

    def run_program(self, recipe: Recipe, url: str, home: Path) -> str:
        """Run the recipe's program with its one variable; return what it printed."""
        ((_, text),) = recipe.programs
        program = home / "program.py" if self.is_python else self._install() / "program.mjs"
        program.write_text(text, encoding="utf-8")
        return self._execute((program,), url, home, {"OPENAI_API_KEY": "", recipe.key_name: "any"})

    def _execute(
        self, words: Sequence[str | Path], url: str, home: Path, environment: Mapping[str, str]
    ) -> str:
        folder = self._install()
        ended = subprocess.run(
            [folder / "bin" / "python" if self.is_python else "node", *words],
            cwd=home,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "LANG": "C.UTF-8",
                "HTTPS_PROXY": "http://127.0.0.1:9",
                "OPENAI_API_KEY": "any",  # the key of the recipes
                "OPENAI_BASE_URL": f"{url}/v1",
                "ANTHROPIC_API_KEY": "any",
                "ANTHROPIC_BASE_URL": url,
                "HF_HUB_OFFLINE": "1",
                "LITELLM_LOCAL_MODEL_COST_MAP": "true",
                "LLM_USER_PATH": str(home / "llm"),
                "PYTHONDONTWRITEBYTECODE": "1",
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=RUN_SECONDS,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def _install(self) -> Path:
        """Return the client's environment; make it where it is missing."""
        # Resolved: scripts of an environment name its folder, and .venv may be a link.
        folder, wanted = (ROOT / ".venv" / "clients" / self.name).resolve(), "\n".join(self.packages)
        installed = folder / "packages.installed"
        if not installed.exists() or installed.read_text("utf-8") != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            self._install_into(folder)
            installed.write_text(wanted, encoding="utf-8")
        return folder

    def _install_into(self, folder: Path) -> None:
        if self.is_python:
            _run_to_end(PYPI, sys.executable, "-m", "venv", folder)
            _run_to_end(PYPI, folder / "bin" / "pip", "install", "--quiet", *self.packages)
            return
        if shutil.which("npm") is None:
            pytest.skip(f"{self.name} needs Node.js with npm, which is not installed")
        folder.mkdir(parents=True)
        _run_to_end(NPM, "npm", "install", "--no-audit", "--no-fund", "--prefix", folder, *self.packages)


def _run_to_end(registry: str, *words: str | Path) -> None:
    """Run a command; skip the test where it fails and the registry cannot be reached."""
    ended = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=INSTALL_SECONDS, check=False)
    if ended.returncode == 0:
        return
    try:
        urllib.request.urlopen(registry, timeout=10).close()
    except OSError as error:
        pytest.skip(f"{registry} cannot be reached: {error}")
    raise AssertionError(ended.stdout + ended.stderr)


CLIENTS = (
    Client("openai_py.py", ("openai>=3.57", "pydantic>=2.12")),
    Client("openai_js.mjs", ("openai@>=6.49", "zod@>=4")),
    Client("ai_sdk_js.mjs", ("ai@^6.0.326", "@ai-sdk/openai-compatible@^2.0.92", "zod@>=4"), "ai-sdk"),
    Client("ai_sdk_openai_js.mjs", ("ai@^6.0.326", "@ai-sdk/openai@^3.0.141", "zod@>=4")),
    Client("anthropic_py.py", ("anthropic>=2.14", "pydantic>=2.12")),
    Client("anthropic_js.mjs", ("@anthropic-ai/sdk@>=1.14", "zod@>=4")),
    Client("ai_sdk_anthropic_js.mjs", ("ai@^6.0.326", "@ai-sdk/anthropic@^3.0.140", "zod@>=4")),
    Client("langchain_anthropic_py.py", ("langchain-anthropic>=1.7", "langchain>=1.5")),
    Client("langchain_py.py", ("langchain-openai>=1.7.4", "langchain>=1.5", "langgraph>=1.2")),
    Client("langchain_js.mjs", ("@langchain/openai@>=1.5.8", "langchain@>=1.5", "zod@>=4")),
    Client("litellm_py.py", ("litellm>=1.108.7",)),
    Client("litellm_proxy.py", ("litellm[proxy]>=1.108.7",)),
    Client("instructor_py.py", ("instructor>=1.17",)),
    Client("outlines_py.py", ("outlines[openai]>=1.3.3",)),
    Client("guidance_py.py", ("guidance>=0.3.1", "openai>=3.57")),
    Client("pydantic_ai_py.py", ("pydantic-ai-slim[openai]>=2.68",)),
    Client("openai_agents_py.py", ("openai-agents>=0.24",)),
    Client("openai_agents_js.mjs", ("@openai/agents@>=0.20", "openai@>=6.49", "zod@>=4")),
    Client("smolagents_py.py", ("smolagents[openai]>=1.26",)),
    Client("llama_index_py.py", ("llama-index-llms-openai-like>=0.8.1",)),
    Client("dspy_py.py", ("dspy>=3.4.1",)),
    Client("llm_cli.py", ("llm>=0.36",)),
    Client("interpreter_cli.py", ("open-interpreter>=0.4.3", "setuptools<81"), "open-interpreter"),
    Client("ollama_py.py", ("ollama>=0.6.3",)),
    Client("ollama_js.mjs", ("ollama@>=0.6.4",)),
    Client("langchain_ollama_py.py", ("langchain-ollama>=1.1", "langchain>=1.5", "langgraph>=1.2")),
    Client("llm_ollama_cli.py", ("llm>=0.36", "llm-ollama>=0.19")),
    Client("lm_eval_cli.py", ("lm-eval[api]>=0.4.13", "transformers>=5")),
)

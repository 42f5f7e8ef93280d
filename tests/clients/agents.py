"""Coding agents, as a person installs and starts them: package, recipe, and one task without questions.

The recipe of docs/clients.md gives the settings and the command; what a test needs beside it stands here.
Each is installed once, in the user's cache, from npm or PyPI. In a test it has a home folder of its own, so
it meets no settings of this machine, and a proxy that refuses, so it reaches no other server.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import pytest

from cluster.commands.connect import PAGE
from cluster.commands.recipes import EXAMPLE_REPO, Recipe, Values, read_recipes

RECIPES = read_recipes(PAGE)
INSTALL_SECONDS = 900.0
RUN_SECONDS = 180.0
KEY = "any"  # as the recipes have it


def fill_recipe(name: str, url: str, model: str) -> Recipe:
    """Return a recipe of the page for a service of a test."""
    return RECIPES[name].fill(Values(url, model, EXAMPLE_REPO, context=32768))


@dataclass(frozen=True)
class Agent:
    """One agent. The texts of its tools' arguments may hold $file and $final, the answer.

    Args:
        name: of its program.
        package: as its registry names it; with == it is PyPI's, else npm's.
        recipe: its name on the page.
        arguments: more of the recipe's last command; the task follows.
        settings: a file in its home folder beside the recipe's, and what it says, as JSON.
        reads, edits: its tools, and their arguments; an agent without tools writes `edits` as text.
        ends: the call with which it ends; else it says the answer.
        num_turns_before: assistant turns in its first prompt.
        asides: the answers to what it asks beside the task, by text of those prompts.
    """

    name: str
    package: str
    recipe: str
    arguments: Sequence[str]
    edits: tuple[str, Any]
    reads: tuple[str, Any] | None = None
    ends: tuple[str, Any] | None = None
    settings: tuple[str, Any] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    num_turns_before: int = 0
    asides: Mapping[str, str] = field(default_factory=dict)

    def install(self) -> Path:
        """Return the agent's program; skip the test where it cannot be installed."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        named = re.sub("[/=]+", "-", self.package).lstrip("@")  # mini-swe-agent misreads a path with =
        folder = cache / "mlx-ring-service" / "clients" / named
        program = folder / ("bin" if self._is_python else "node_modules/.bin") / self.name
        if not program.exists():
            self._install_into(folder)
        return program

    def run(self, url: str, model: str, file: Path, home: Path, task: str) -> str:
        """Give the agent a task in the file's folder; return what it printed."""
        program, recipe = self.install(), fill_recipe(self.recipe, url, model)
        files = {name.removeprefix("~/"): text for name, text in recipe.files.items()}
        if self.settings is not None:
            files[self.settings[0]] = json.dumps(self.settings[1])
        for name, text in files.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(text)
        home.mkdir(exist_ok=True)
        ended = subprocess.run(
            ["bash", "-ec", f"{recipe.script} {shlex.join([*self.arguments, task])}"],
            cwd=file.parent,
            env={
                "PATH": f"{program.parent}:{os.environ['PATH']}",
                "HOME": str(home),
                "TERM": "dumb",
                "LANG": "C.UTF-8",
                "DO_NOT_TRACK": "1",
                "HTTPS_PROXY": "http://127.0.0.1:9",
                **self.environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=RUN_SECONDS,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout
        return ended.stdout

    @property
    def _is_python(self) -> bool:
        return "==" in self.package

    def _install_into(self, folder: Path) -> None:
        if not self._is_python and shutil.which("npm") is None:
            pytest.skip(f"{self.name} needs npm, which is not installed")
        folder.parent.mkdir(parents=True, exist_ok=True)
        if self._is_python:  # its programs name its folder, which cannot be renamed
            self._run_to_end(sys.executable, "-m", "venv", folder)
            self._run_to_end(folder / "bin" / "pip", "install", "--quiet", self.package)
            return
        made = Path(tempfile.mkdtemp(prefix=".npm-", dir=folder.parent))
        self._run_to_end("npm", "install", "--no-audit", "--no-fund", "--prefix", made, self.package)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)

    def _run_to_end(self, *words: str | Path) -> None:
        ended = subprocess.run(
            words, capture_output=True, encoding="utf-8", timeout=INSTALL_SECONDS, check=False
        )
        if ended.returncode != 0:
            pytest.skip(f"{self.package} cannot be installed: {ended.stderr.strip()[-300:]}")


OPENCODE = Agent(
    name="opencode",
    package="opencode-ai@1.18.33",
    recipe="opencode",
    arguments=("run",),
    settings=(
        ".config/opencode/config.json",
        {"autoupdate": False, "share": "disabled", "permission": {"*": "allow"}},
    ),
    environment={"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_LSP_DOWNLOAD": "1"},
    reads=("read", {"filePath": "$file"}),
    edits=("edit", {"filePath": "$file", "oldString": "'hi'", "newString": "'hello'"}),
    asides={"You are a title generator": "A greeting"},
)
QWEN_CODE = Agent(
    name="qwen",
    package="@qwen-code/qwen-code@0.15.10",
    recipe="qwen-code",
    arguments=("--approval-mode", "yolo"),
    settings=(".qwen/settings.json", {"privacy": {"usageStatisticsEnabled": False}}),
    environment={"HTTPS_PROXY": ""},  # it would send everything there
    reads=("read_file", {"file_path": "$file"}),
    edits=("edit", {"file_path": "$file", "old_string": "'hi'", "new_string": "'hello'"}),
    num_turns_before=1,
    asides={"memory extraction subagent": "Nothing to keep."},
)
CONTINUE = Agent(
    name="cn",
    package="@continuedev/cli@1.5.47",
    recipe="continue",
    arguments=("--auto", "--print"),
    environment={"CONTINUE_TELEMETRY_ENABLED": "0", "CI": "1"},
    reads=("Read", {"filepath": "$file"}),
    edits=("Edit", {"file_path": "$file", "old_string": "'hi'", "new_string": "'hello'"}),
)
CLINE = Agent(
    name="cline",
    package="cline@3.0.65",
    recipe="cline",
    arguments=("--json",),
    environment={"CLINE_NO_AUTO_UPDATE": "1", "CLINE_SESSION_BACKEND_MODE": "local"},  # no daemon
    reads=("read_files", {"files": [{"path": "$file"}]}),
    edits=("editor", {"path": "$file", "old_text": "'hi'", "new_text": "'hello'"}),
)
AIDER = Agent(
    name="aider",
    package="aider-chat==0.86.2",
    recipe="aider",
    arguments=(
        "--yes-always",
        "--no-git",
        "--no-check-update",
        "--no-show-model-warnings",
        "--no-show-release-notes",
        "--no-pretty",
        "--analytics-disable",
        "hello.py",
        "--message",
    ),
    edits=("", "It prints hello.\n\nhello.py\n```\ndef greet():\n    print('hello')\n```\n"),
    num_turns_before=3,  # an example that it shows the model
)
CLAUDE_CODE = Agent(
    name="claude",
    package="@anthropic-ai/claude-code@2.1.197",
    recipe="claude-code",
    arguments=("--output-format", "json", "--permission-mode", "acceptEdits", "--print"),
    environment={"DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"},
    reads=("Read", {"file_path": "$file"}),
    edits=("Edit", {"file_path": "$file", "old_string": "'hi'", "new_string": "'hello'"}),
)
CODEX = Agent(
    name="codex",
    package="@openai/codex@0.171.0",
    recipe="codex",
    arguments=("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
    reads=("exec_command", {"cmd": "cat $file"}),
    # Without a tool for it, codex offers the command apply_patch.
    edits=(
        "exec_command",
        {
            "cmd": "apply_patch <<'EOF'\n*** Begin Patch\n*** Update File: $file\n@@ def greet():\n"
            "-    print('hi')\n+    print('hello')\n*** End Patch\nEOF"
        },
    ),
)
PI = Agent(
    name="pi",
    package="@mariozechner/pi-coding-agent@0.73.1",
    recipe="pi",
    arguments=("--offline", "--print"),
    reads=("read", {"path": "$file"}),
    edits=("edit", {"path": "$file", "edits": [{"oldText": "'hi'", "newText": "'hello'"}]}),
)
MINI_SWE_AGENT = Agent(
    name="mini",
    package="mini-swe-agent==2.4.6",
    recipe="mini-swe-agent",
    arguments=("--yolo", "--exit-immediately", "--task"),
    environment={"LITELLM_LOCAL_MODEL_COST_MAP": "true"},
    reads=("bash", {"command": "cat $file"}),
    edits=("bash", {"command": "sed -i.bak s/hi/hello/ $file"}),
    ends=("bash", {"command": "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; echo $final"}),
)
AGENTS = (OPENCODE, QWEN_CODE, CONTINUE, CLINE, PI, AIDER, MINI_SWE_AGENT, CLAUDE_CODE, CODEX)


def make_rules(agent: Agent, file: Path, task: str, final: str) -> list[dict[str, Any]]:
    """Return the script of an agent that reads the file, edits it, and answers."""
    rules: list[dict[str, Any]] = [{"anywhere": text, "say": say} for text, say in agent.asides.items()]
    first = agent.num_turns_before
    if agent.reads is None:
        return [*rules, {"when": task, "after": first, "say": agent.edits[1]}]

    def call(tool: str, arguments: Any) -> str:
        """Write a call in the form that a model without tools of its own is asked for."""
        text = Template(json.dumps({"name": tool, "arguments": arguments})).substitute(file=file, final=final)
        return f"<tool_call>\n{text}\n</tool_call>"

    return [
        *rules,
        {"when": task, "after": first, "say": call(*agent.reads)},
        {"when": "hi", "after": first + 1, "say": call(*agent.edits)},
        {"after": first + 2, "say": call(*agent.ends) if agent.ends else final},
    ]

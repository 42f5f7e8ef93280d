"""Coding agents, as a person installs and starts them: package, settings, and one task without questions.

Each is installed once, in the user's cache, from npm or PyPI. In a test it has a home folder of its own, so
it meets no settings of this machine, and a proxy that refuses, so it reaches no other server.
"""

from __future__ import annotations

import json
import os
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

INSTALL_SECONDS = 900.0
RUN_SECONDS = 180.0
KEY = "any"


@dataclass(frozen=True)
class Agent:
    """One agent. Texts may hold $url, $model, $key, $task, $home, $file.

    Args:
        package: as its registry names it; with == it is PyPI's, else npm's.
        settings: a file in its home folder, and what it says, as JSON.
        reads, edits: its tools, and their arguments; an agent without tools writes `edits` as text.
        num_turns_before: assistant turns in its first prompt.
        asides: the answers to what it asks beside the task, by text of those prompts.
    """

    name: str
    package: str
    arguments: Sequence[str]
    edits: tuple[str, Any]
    reads: tuple[str, Any] | None = None
    settings: tuple[str, Any] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    num_turns_before: int = 0
    asides: Mapping[str, str] = field(default_factory=dict)

    def install(self) -> Path:
        """Return the agent's program; skip the test where it cannot be installed."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "mlx-ring-service" / "clients" / self.package.replace("/", "-").lstrip("@")
        program = folder / ("bin" if self._is_python else "node_modules/.bin") / self.name
        if not program.exists():
            self._install_into(folder)
        return program

    def run(self, url: str, model: str, file: Path, home: Path, task: str) -> str:
        """Give the agent a task in the file's folder; return what it printed."""
        program = self.install()
        words = {"url": url, "model": model, "key": KEY, "task": task, "home": str(home), "file": str(file)}
        home.mkdir()
        if self.settings is not None:
            name, said = self.settings
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(Template(json.dumps(said)).substitute(words))
        ended = subprocess.run(
            [program, *(Template(argument).substitute(words) for argument in self.arguments)],
            cwd=file.parent,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "TERM": "dumb",
                "LANG": "C.UTF-8",
                "DO_NOT_TRACK": "1",
                "HTTPS_PROXY": "http://127.0.0.1:9",
                **{name: Template(value).substitute(words) for name, value in self.environment.items()},
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
    arguments=("run", "--model", "local/$model", "$task"),
    settings=(
        ".config/opencode/opencode.json",
        {
            "autoupdate": False,
            "share": "disabled",
            "permission": {"*": "allow"},
            "provider": {
                "local": {
                    "npm": "@ai-sdk/openai-compatible",
                    "options": {"baseURL": "$url/v1", "apiKey": "$key"},
                    "models": {"$model": {"limit": {"context": 32768, "output": 4096}}},
                }
            },
        },
    ),
    environment={"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_LSP_DOWNLOAD": "1"},
    reads=("read", {"filePath": "$file"}),
    edits=("edit", {"filePath": "$file", "oldString": "'hi'", "newString": "'hello'"}),
    asides={"You are a title generator": "A greeting"},
)
QWEN_CODE = Agent(
    name="qwen",
    package="@qwen-code/qwen-code@0.15.10",
    arguments=("--auth-type", "openai", "--approval-mode", "yolo", "$task"),
    settings=(".qwen/settings.json", {"privacy": {"usageStatisticsEnabled": False}}),
    environment={
        "OPENAI_API_KEY": "$key",
        "OPENAI_BASE_URL": "$url/v1",
        "OPENAI_MODEL": "$model",
        "HTTPS_PROXY": "",  # it would send everything there
    },
    reads=("read_file", {"file_path": "$file"}),
    edits=("edit", {"file_path": "$file", "old_string": "'hi'", "new_string": "'hello'"}),
    num_turns_before=1,
    asides={"memory extraction subagent": "Nothing to keep."},
)
CONTINUE = Agent(
    name="cn",
    package="@continuedev/cli@1.5.47",
    arguments=("--config", "$home/config.yaml", "--auto", "--print", "$task"),
    settings=(
        "config.yaml",
        {
            "name": "local",
            "version": "1.0.0",
            "schema": "v1",
            "models": [
                {
                    "name": "$model",
                    "provider": "openai",
                    "model": "$model",
                    "apiBase": "$url/v1",
                    "apiKey": "$key",
                    "capabilities": ["tool_use"],
                    "roles": ["chat", "edit"],
                }
            ],
        },
    ),
    environment={"CONTINUE_TELEMETRY_ENABLED": "0", "CI": "1"},
    reads=("Read", {"filepath": "$file"}),
    edits=("Edit", {"file_path": "$file", "old_string": "'hi'", "new_string": "'hello'"}),
)
CLINE = Agent(
    name="cline",
    package="cline@3.0.65",
    arguments=("--data-dir", "$home/data", "-P", "openai-compatible", "-m", "$model", "--json", "$task"),
    settings=(
        "data/settings/providers.json",
        {
            "version": 1,
            "lastUsedProvider": "openai-compatible",
            "modes": {},
            "providers": {
                "openai-compatible": {
                    "settings": {
                        "provider": "openai-compatible",
                        "apiKey": "$key",
                        "model": "$model",
                        "baseUrl": "$url/v1",
                    },
                    "updatedAt": "2026-01-01T00:00:00.000Z",
                    "tokenSource": "manual",
                }
            },
        },
    ),
    environment={"CLINE_NO_AUTO_UPDATE": "1"},
    reads=("read_files", {"files": [{"path": "$file"}]}),
    edits=("editor", {"path": "$file", "old_text": "'hi'", "new_text": "'hello'"}),
)
AIDER = Agent(
    name="aider",
    package="aider-chat==0.86.2",
    arguments=(
        "--model=openai/$model",
        "--openai-api-base=$url/v1",
        "--openai-api-key=$key",
        "--yes-always",
        "--no-git",
        "--no-check-update",
        "--no-show-model-warnings",
        "--no-show-release-notes",
        "--no-pretty",
        "--analytics-disable",
        "--message=$task",
        "hello.py",
    ),
    edits=("", "It prints hello.\n\nhello.py\n```\ndef greet():\n    print('hello')\n```\n"),
    num_turns_before=3,  # an example that it shows the model
)
CODEX = Agent(
    name="codex",
    package="@openai/codex@0.171.0",
    arguments=(
        "exec",
        "--skip-git-repo-check",
        "--dangerously-bypass-approvals-and-sandbox",
        '--config=model_providers.local={name="local", base_url="$url/v1", env_key="LOCAL_KEY"}',
        "--config=model_provider=local",
        "--model=$model",
        "$task",
    ),
    environment={"LOCAL_KEY": "$key"},
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
CLAUDE_CODE = Agent(
    name="claude",
    package="@anthropic-ai/claude-code@2.1.332",
    arguments=("--print", "$task", "--output-format", "json", "--permission-mode", "acceptEdits"),
    environment={
        "ANTHROPIC_BASE_URL": "$url",
        "ANTHROPIC_AUTH_TOKEN": "$key",
        "ANTHROPIC_MODEL": "$model",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    },
    reads=("Read", {"file_path": "$file"}),
    edits=("Edit", {"file_path": "$file", "old_string": "'hi'", "new_string": "'hello'"}),
)
AGENTS = (OPENCODE, QWEN_CODE, CONTINUE, CLINE, AIDER, CODEX, CLAUDE_CODE)


def make_rules(agent: Agent, file: Path, task: str, final: str) -> list[dict[str, Any]]:
    """Return the script of an agent that reads the file, edits it, and answers."""
    rules: list[dict[str, Any]] = [{"anywhere": text, "say": say} for text, say in agent.asides.items()]
    first = agent.num_turns_before
    if agent.reads is None:
        return [*rules, {"when": task, "after": first, "say": agent.edits[1]}]
    return [
        *rules,
        {"when": task, "after": first, "say": _write_call(*agent.reads, file)},
        {"when": "hi", "after": first + 1, "say": _write_call(*agent.edits, file)},
        {"after": first + 2, "say": final},
    ]


def _write_call(tool: str, arguments: Any, file: Path) -> str:
    """Write a call in the form that a model without tools of its own is asked for."""
    call = Template(json.dumps({"name": tool, "arguments": arguments})).substitute(file=file)
    return f"<tool_call>\n{call}\n</tool_call>"

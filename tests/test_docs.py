"""README, CHANGELOG and docs name files, functions, commands and settings that exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from cluster.commands.command_line import make_parser
from cluster.commands.project_commands import DELEGATED
from config import REPOSITORY_ROOT as ROOT
from config import Settings, load_settings
from config.fields import format_value
from config.retired import RETIRED_KEYS

ROOMS = ("config", "spool", "prompts", "frontdoor", "distributed", "cluster", "bench")
ENTRY_POINTS = ("api", "server")
TREE_ONLY_FOLDERS = ("tests", "docs", ".ci")
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
each_document = pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))


def headings(text: str) -> set[str]:
    """Anchors of a page's headings, as code hosts make them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_document
def test_links_lead_to_files_and_headings_that_exist(path: Path) -> None:
    """Every link that is no web address names a file, and after # a heading of it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), target
        assert not anchor or anchor in headings(linked.read_text(encoding="utf-8")), target


def test_the_readme_has_at_most_200_lines() -> None:
    """What a newcomer need not know has a page of its own."""
    assert len(README.splitlines()) <= 200


@each_document
def test_prose_is_wrapped(path: Path) -> None:
    """Lines have at most 130 columns, outside tables, code and the generated page of benchmarks."""
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    if path.name != "benchmarks.md":
        assert not [line for line in text.splitlines() if len(line) > 130 and not line.startswith("|")]


def commands_in(text: str) -> set[str]:
    """What is written after ./launch.sh, in code and in running text."""
    found = re.findall(r"\./launch\.sh ([^`\n]+)", text)
    return {re.split(r"\s{2,}|\s+#|[.,:;)](?:\s|$)|\s─", words)[0] for words in found}


@each_document
def test_commands_exist_with_their_flags(path: Path) -> None:
    """Every ./launch.sh command that is shown can be parsed."""
    for words in commands_in(path.read_text(encoding="utf-8")):
        if words.startswith(("with ", "COMMAND", "──")):
            continue
        options, rest = make_parser().parse_known_args(shlex.split(words))
        assert not rest or options.command in DELEGATED, words


@each_document
def test_settings_exist(path: Path) -> None:
    """Every name in capitals with an underscore, in backticks, is a setting, or was one."""
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?:=[^`]*)?`", text))
    assert named <= {*Settings.all_keys(), *RETIRED_KEYS}


def test_defaults_in_the_readme_are_those_of_the_class() -> None:
    """The short table of settings repeats defaults, so they are compared."""
    rows = re.findall(r"^\| `([A-Z_]+)` \| `?([^`|]+?)`? \|", README, re.MULTILINE)
    assert len(rows) > 10
    for key, default in rows:
        wanted = Settings.model_fields[key.lower()].default
        assert default == (format_value(wanted) or "none"), key


def test_the_settings_for_agents_can_be_copied_as_they_stand(tmp_path: Path) -> None:
    """The README's lines for `.env`, comments and all, are settings that go together."""
    section = README.partition("## Coding agents and chat pages")[2]
    (tmp_path / ".env").write_text(section.partition("```bash\n")[2].partition("```")[0], encoding="utf-8")
    settings = load_settings(root=tmp_path, environ={})
    assert (settings.max_sequence_length, settings.model_alias_list) == ("auto", ("*",))


def tree_paths() -> list[str]:
    """The paths of the README's file tree."""
    tree = README.partition("## What is where")[2].partition("```text\n")[2].partition("```")[0]
    paths, room = [], ""
    for line in tree.splitlines():
        name = line.split()[0]
        room = room if line.startswith(" ") else name
        paths.append(room + name if line.startswith(" ") else name)
    return paths


def test_the_tree_names_every_room_and_nothing_that_is_not_there() -> None:
    """Each top-level folder and file has its line, each line its file."""
    paths = tree_paths()
    for path in paths:
        assert (ROOT / path).exists(), path
        assert (ROOT / path).is_dir() == path.endswith("/"), path
    assert {f"{name}/" for name in (*ROOMS, *TREE_ONLY_FOLDERS)} <= set(paths)
    files = {path.name for path in ROOT.iterdir() if path.suffix in (".py", ".sh", ".txt", ".toml", ".md")}
    assert files - {"README.md"} <= set(paths)


def defined_names(path: Path) -> set[str]:
    """Functions, classes and methods (Class.method) of a source file."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            parts = (part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {f"{node.name}.{part.name}" for part in parts}
    return names


@each_document
def test_files_and_functions_that_are_named_exist(path: Path) -> None:
    """`room/file.py` and `room/file.py: Class.method` in backticks are in the code."""
    text = path.read_text(encoding="utf-8")
    for name, function in re.findall(r"`((?:\w+/)+\w+\.py|api\.py|server\.py)(?:: ([\w.]+))?`", text):
        assert (ROOT / name).is_file(), name
        assert not function or function in defined_names(ROOT / name), f"{name}: {function}"


def test_no_file_names_a_place_of_one_machine() -> None:
    """Absolute paths of whoever wrote a file mean nothing elsewhere."""
    place = re.compile(r"(?<![\w.])/(?:work|root|Users|home)/")
    folders = [ROOT / name for name in (*ROOMS, *TREE_ONLY_FOLDERS)]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.is_file()]
    own = (".git", ".env", "config.json")
    texts = [path for path in files if "__pycache__" not in path.parts and path.name not in own]
    assert not [path for path in texts if place.search(path.read_text(encoding="utf-8", errors="replace"))]

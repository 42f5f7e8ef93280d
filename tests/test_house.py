"""The folders of the code: each imports only what docs/architecture.md allows, no module waits for itself,
each says what it is.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from config import REPOSITORY_ROOT as ROOT

MLX_PACKAGES = {"mlx", "mlx_lm"}
PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}


def read_table() -> dict[str, set[str]]:
    """The page's table of folders: what each may import, by dotted name."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `([\w/.]+)` \|[^|]+\|([^|]+)\|$", page.partition("## The folders")[2], re.MULTILINE
    )
    return {
        _dotted(name): {_dotted(other) for other in re.findall(r"`([\w/.]+)`", cell)} for name, cell in rows
    }


def _dotted(name: str) -> str:
    return name.removesuffix(".py").strip("/").replace("/", ".")


FOLDERS = read_table()
# What must not import MLX, the folders below included.
WITHOUT_MLX = ("config", "spool", "prompts", "frontdoor", "cluster", "distributed.planning", "api")


@cache
def modules() -> dict[str, Path]:
    """Every module of the product, by dotted name; a package by its folder's."""
    tops = {name.partition(".")[0] for name in FOLDERS}
    paths = [path for top in sorted(tops) for path in (*ROOT.glob(f"{top}.py"), *(ROOT / top).rglob("*.py"))]
    names = [path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in paths]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module that a file imports anywhere in it, type checking included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def folder_of(module: str) -> str:
    """The folder, or the entry point, of a module."""
    return (
        module if modules()[module].name == "__init__.py" or "." not in module else module.rpartition(".")[0]
    )


def imported_by(folder: str) -> set[str]:
    """The modules of ours that the files of one folder import, those of its subfolders left out."""
    files = [path for name, path in modules().items() if folder_of(name) == folder]
    return {name for path in files for name in imports(path) if name in modules()}


def test_the_table_names_every_folder() -> None:
    """Each folder with code of ours has its row, and no other has one."""
    assert {folder_of(name) for name in modules()} == set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_what_its_row_allows(folder: str) -> None:
    """Also inside functions; nobody imports an entry point or a test."""
    found = {folder_of(name) for name in imported_by(folder)} - {folder}
    # `from a import b` names the package a as well as the module a.b.
    found -= {name for name in found if any(other.startswith(f"{name}.") for other in found | {folder})}
    assert found <= FOLDERS[folder]


def test_no_module_imports_itself_in_a_circle() -> None:
    """At no time, that is: a circle behind `if TYPE_CHECKING` or in a function is one, too."""
    files = {name: path for name, path in modules().items() if path.name != "__init__.py"}
    graph = {name: imports(path) & files.keys() - {name} for name, path in modules().items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("folder", [name for name in FOLDERS if (ROOT / name.replace(".", "/")).is_dir()])
def test_a_folder_says_what_it_does_and_does_not_know(folder: str) -> None:
    """In the docstring of its `__init__`."""
    text = ast.get_docstring(ast.parse(modules()[folder].read_text(encoding="utf-8"))) or ""
    assert len(text.splitlines()) >= 3
    assert re.search(r"\b[Kk]nows?\b", text)


@pytest.mark.parametrize("room", WITHOUT_MLX)
def test_what_must_not_import_mlx_does_not(room: str) -> None:
    """Only what runs on a rank imports MLX."""
    for name, path in modules().items():
        if name == room or name.startswith(f"{room}."):
            assert not {other.partition(".")[0] for other in imports(path)} & MLX_PACKAGES, name


def test_only_backends_ask_what_the_machine_is() -> None:
    """Whether there is a GPU, and what follows from it, is behind `Backend` and `StageRunner`."""
    question = re.compile(r"has_gpu\(|default_device|mx\.metal|cpu_products|works_aside")
    for name, path in modules().items():
        is_of_rank = name == "server" or name.startswith("distributed.")
        if is_of_rank and not name.startswith("distributed.backends"):
            assert not question.search(path.read_text(encoding="utf-8")), name


def test_nothing_imports_pickle() -> None:
    """What comes over a wire or from a file is never executed."""
    for path in (*modules().values(), *(ROOT / "tests").rglob("*.py")):
        assert not {other.partition(".")[0] for other in imports(path)} & PICKLING, path

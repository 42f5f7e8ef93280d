"""mlx-lm's parts come through one seam and without transformers, and mlx-lm has all that we use of it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from config import REPOSITORY_ROOT as ROOT
from distributed.planning.families.served import FAMILIES
from tests.fakes.checkpoints import make_checkpoint

FOLDERS = ("config", "spool", "prompts", "frontdoor", "distributed", "cluster", "bench", "chaos", "tests")
IMPORT = re.compile(r"^\s*(?:import|from)\s+mlx_lm\b|import_module\(\s*f?[\"']mlx_lm\b", re.MULTILINE)
# It runs mlx_lm.server in a process of its own.
MAY_IMPORT = ROOT / "bench" / "peer_rank.py"
# Imports parts and looks for names in them: {"models.mla": ["MultiLinear", ...], ...}.
USE = """
import json, sys
from prompts.mlx_lm_import import import_mlx_lm
uses = json.loads(sys.argv[1])
parts = {part: import_mlx_lm(part) for part in uses}
assert "transformers" not in sys.modules
print([f"{part}.{name}" for part in uses for name in uses[part] if not hasattr(parts[part], name)])
"""
# What a rank imports and loads.
RANK = """
import sys
from pathlib import Path
import server
import distributed.worker
print(sorted({"spool", "jinja2", "prompts.tokenizer"} & set(sys.modules)))
import distributed.rank
from distributed.backends.choose import choose_backend
from prompts.tokenizer import PromptTokenizer
choose_backend(products="blas").load(Path(sys.argv[1]), range(4), is_first=True, is_last=True)
PromptTokenizer(Path(sys.argv[1]))
print(sorted({"transformers", "torch", "mlx_lm.utils", "mlx_lm.generate"} & set(sys.modules)))
"""


def sources() -> list[Path]:
    """Every Python file of the project."""
    paths = (path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))
    return [ROOT / "api.py", ROOT / "server.py", *paths]


def part_of(node: ast.AST) -> str | None:
    """The part that a call of the seam names, if this is one."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return None
    if node.func.id != "import_mlx_lm" or not isinstance(node.args[0], ast.Constant):
        return None
    return str(node.args[0].value)


def uses_in(path: Path) -> Iterator[tuple[str, str]]:
    """Each part of mlx-lm and name in it that a file uses."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    parts = {
        target.id: part
        for node in nodes
        if isinstance(node, ast.Assign) and (part := part_of(node.value))
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in nodes:
        if isinstance(node, ast.Attribute):
            owner = node.value
            part = parts.get(owner.id) if isinstance(owner, ast.Name) else part_of(owner)
            if part:
                yield part, node.attr


def run(program: str, argument: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, argument], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_no_file_imports_mlx_lm_past_the_seam() -> None:
    """One import of the package itself would load transformers in its process."""
    found = [path for path in sources() if IMPORT.search(path.read_text(encoding="utf-8"))]
    assert found == [MAY_IMPORT]


def test_mlx_lm_has_all_that_is_used_of_it() -> None:
    """Every module and name that the code and the families' table use, without transformers."""
    uses: defaultdict[str, set[str]] = defaultdict(set)
    for family in FAMILIES.values():
        uses[f"models.{family.runs_as}"] |= {"Model", "ModelArgs"}
    for path in sources():
        for part, name in uses_in(path):
            # The self-test compares with mlx-lm's own loop, in a process of its own.
            if part != "generate" or path.parent.name != "self_test":
                uses[part].add(name)
    assert "initialize_rope" in uses["models.rope_utils"]
    assert run(USE, json.dumps({part: sorted(names) for part, names in uses.items()})) == "[]"


def test_a_rank_imports_no_transformers(tmp_path: Path) -> None:
    """Neither its program nor a model and its tokenizer need it; one behind rank 0 needs no spool either."""
    assert run(RANK, str(make_checkpoint(tmp_path, "deepseek_v2"))).split() == ["[]", "[]"]

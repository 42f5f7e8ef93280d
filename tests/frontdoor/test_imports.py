"""What takes requests starts without MLX and without the slow libraries around it."""

import subprocess
import sys

import pytest

MLX = {"mlx", "mlx_lm", "transformers", "torch", "distributed"}
BLOCKER = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in %r:
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Block())
import %s
"""


@pytest.mark.parametrize(
    ("module", "blocked"),
    [("api", MLX), ("spool", MLX | {"fastapi"}), ("config", MLX | {"fastapi", "huggingface_hub"})],
)
def test_nothing_slow_is_imported(module: str, blocked: set[str]) -> None:
    """A machine that only takes requests needs no weights; every process reads the settings first."""
    subprocess.run([sys.executable, "-W", "error", "-c", BLOCKER % (blocked, module)], check=True)

"""The front door and the spool start without MLX and without the slow libraries around it."""

import subprocess
import sys

BLOCKER = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"mlx", "mlx_lm", "transformers", "torch", "distributed"}:
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Block())
"""


def test_no_mlx_is_imported() -> None:
    """A machine that only takes requests needs neither MLX nor the weights."""
    subprocess.run([sys.executable, "-W", "error", "-c", f"{BLOCKER}import api"], check=True)

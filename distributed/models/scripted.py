"""Make the folder of `MODEL_REPO=scripted:FILE` (config/scripted.py has the form of the file).

A config of model type `scripted`, a copy of the file, the tokenizer and chat template of
builtin:smollm2-135m, and a few bytes in the place of weights. `distributed/backends/scripted.py` answers.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from distributed.models.builtin import write_builtin_tokenizer
from distributed.models.simulated import write_placeholders
from distributed.planning.families.model_config import SCRIPTED_TYPE

SCRIPT_NAME = "script.json"
NUM_LAYERS = 32  # so many ranks are possible
END_ID = 2  # <|im_end|>


def make_scripted(script: Path, folder: Path) -> None:
    """Make the folder of a scripted model, as a whole or not at all; do nothing where it holds this script.

    Raises:
        ModelError: the package with the tokenizer is not installed.
    """
    content = script.read_bytes()
    if (folder / SCRIPT_NAME).is_file() and (folder / SCRIPT_NAME).read_bytes() == content:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    write_builtin_tokenizer("smollm2-135m", made)
    _write_config(made)
    write_placeholders(NUM_LAYERS, made)
    (made / SCRIPT_NAME).write_bytes(content)
    if folder.exists():
        old = made.with_name(f"{made.name}-old")
        folder.rename(old)
        shutil.rmtree(old)
    made.rename(folder)


def _write_config(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    config = {
        "model_type": SCRIPTED_TYPE,
        "num_hidden_layers": NUM_LAYERS,
        "hidden_size": 1,
        "vocab_size": len(tokenizer["model"]["vocab"]),
        "num_attention_heads": 1,
        "head_dim": 1,
        "tie_word_embeddings": False,
        "eos_token_id": END_ID,
        "max_position_embeddings": 1 << 20,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [END_ID, 0]}))

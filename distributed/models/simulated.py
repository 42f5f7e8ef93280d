"""Make the folder of `MODEL_REPO=simulated:…` (config/simulated.py says what its numbers mean).

A config of model type `simulated`, a tokenizer with a made-up vocabulary, and a few bytes in the place of
weights, so that planning, HELLO and the front door meet a model folder like any other. What such a model
answers stands in `distributed/backends/simulated.py`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from config.simulated import SimulatedModel
from distributed.planning.families.model_config import SIMULATED_TYPE

CONFIG_KEY = "simulated_model_repo"
END_TOKEN = "<|end|>"
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
COMMON_WORDS = (
    "the of and to in is it you that he was for on are with as his they at be this from have or by one had "
    "not but what all were when we there can an your which their said if do will each about how up out them "
    "then she many some so these would other into has more her two like him see time could no make than "
    "first been its who now people my made over did down only way find use may water long little very after "
    "words called just where most know get through back much before go good new write our used me man too "
    "any day same right look think also around another came come work three word must because does part even "
    "place well such here take why things help put years different away again off went old number explain "
    "step seen year worked cared story detailed report careful essay radio play travel guide history speech"
)


def make_simulated(model_repo: str, folder: Path) -> None:
    """Make the folder of a simulated model, as a whole or not at all; does nothing where it is there."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    model = SimulatedModel.from_name(model_repo)
    _write_config(model_repo, model, made)
    _write_tokenizer(model.vocab, made)
    write_placeholders(model.layers, made)
    try:
        made.rename(folder)
    except OSError:  # somebody else made it meanwhile
        shutil.rmtree(made)
        assert folder.is_dir()


def write_placeholders(num_layers: int, folder: Path) -> None:
    """Write a file in the place of weights: 64 values a layer for the planner, next to nothing else."""
    weights = {f"model.layers.{i}.input_layernorm.weight": mx.zeros(64) for i in range(num_layers)}
    others = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    weights |= {name: mx.zeros(1) for name in others}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})


def _write_config(model_repo: str, model: SimulatedModel, folder: Path) -> None:
    config = {
        "model_type": SIMULATED_TYPE,
        CONFIG_KEY: model_repo,
        "num_hidden_layers": model.layers,
        "hidden_size": model.hidden,
        "vocab_size": model.vocab,
        "num_attention_heads": 1,
        "head_dim": 1,
        "tie_word_embeddings": False,
        "eos_token_id": 0,
        "max_position_embeddings": 1 << 20,
    }
    (folder / "config.json").write_text(json.dumps(config))


def _write_tokenizer(vocab_size: int, folder: Path) -> None:
    """Write a byte-level tokenizer: letters, common words, and made-up words up to the vocabulary's size."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {END_TOKEN: 0} | {letter: 1 + i for i, letter in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in COMMON_WORDS.split():
        spaced = f"Ġ{word}"
        for end in range(1, len(spaced)):
            if spaced[: end + 1] not in vocab:
                vocab[spaced[: end + 1]] = len(vocab)
                merges.append((spaced[:end], spaced[end]))
    first = len(vocab)
    assert first < vocab_size, (first, vocab_size)
    vocab |= {f"Ġw{number}": first + number for number in range(vocab_size - first)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_TOKEN, special=True, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_TOKEN, "pad_token": END_TOKEN}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))


def first_made_up_id(vocab_size: int) -> int:
    """Return the lowest id that an answer can have: the upper half of the vocabulary is made-up words."""
    return vocab_size // 2 if vocab_size >= 4096 else vocab_size - 128

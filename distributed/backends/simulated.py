"""Simulated stages: timed waits in the place of layers; everything else of the ring is real.

`make_simulated` writes a model folder of `MODEL_REPO=simulated:…` (config/simulated.py says what its numbers
mean): a config of model type `simulated`, a tokenizer with a made-up vocabulary, and a few bytes in the place
of weights, so that planning, HELLO and the front door meet a model folder like any other. `SimulatedStage`
waits where a stage would compute, asleep until a deadline of the monotonic clock, so that eight ranks take
two cores no more than eight machines would.

Its answers are wrong on purpose and right in one sense: a token is a function of all ids before it, computed
through the hidden states and through every stage's KV, so a test sees at once when a slot, an offset, a
prefix copy or a stage was mixed up. `expected_ids` says what they must be; it does not depend on the ring.

    hidden[0] = id of the token          hidden[1] = sum over the layers so far of S(position), modulo M
    S(position) = sum over positions p up to here of (id(p) + 1) x (40503 p + 12289), modulo M: a stage's KV
    next id = first made-up id + hidden[1] of the last layer modulo the number of made-up ids
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from config.simulated import SimulatedModel
from distributed.backends.stage import Stage
from distributed.models.stage_model import StageModel
from distributed.planning.checkpoint import read_config
from distributed.planning.kv_sizes import grown
from distributed.planning.step import Resize, StageStep

MODEL_TYPE = "simulated"
CONFIG_KEY = "simulated_model_repo"
MODULUS = 1_000_003  # its sums are exact in float32
KV_BYTES_PER_TOKEN = 8
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

Int64Array = NDArray[np.int64]


def is_simulated(folder: Path) -> bool:
    """Say whether a model folder holds waits in the place of a model."""
    return bool(read_config(folder)["model_type"] == MODEL_TYPE)


def read_simulated(folder: Path) -> SimulatedModel:
    """Read what a simulated model's folder describes."""
    return SimulatedModel.from_name(read_config(folder)[CONFIG_KEY])


def make_simulated(model_repo: str, folder: Path) -> None:
    """Make the folder of a simulated model, as a whole or not at all; does nothing where it is there."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    model = SimulatedModel.from_name(model_repo)
    _write_config(model_repo, model, made)
    _write_tokenizer(model.vocab, made)
    # A layer is 64 values for the planner, everything else next to nothing.
    weights = {f"model.layers.{i}.input_layernorm.weight": mx.zeros(64) for i in range(model.layers)}
    others = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    mx.save_safetensors(
        str(made / "model.safetensors"), weights | {name: mx.zeros(1) for name in others}, {"format": "mlx"}
    )
    try:
        made.rename(folder)
    except OSError:  # somebody else made it meanwhile
        shutil.rmtree(made)
        assert folder.is_dir()


def _write_config(model_repo: str, model: SimulatedModel, folder: Path) -> None:
    config = {
        "model_type": MODEL_TYPE,
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


def expected_ids(model: SimulatedModel, token_ids: Sequence[int], num_tokens: int) -> list[int]:
    """Return the greedy answer to a prompt, in whatever ring."""
    ids = list(token_ids)
    for _ in range(num_tokens):
        total = int(_marks(np.array(ids), np.arange(len(ids))).sum()) % MODULUS
        ids.append(_next_id(model, np.int64(model.layers * total % MODULUS)))
    return ids[len(token_ids) :]


def _marks(ids: Int64Array, positions: Int64Array) -> Int64Array:
    return (ids + 1) * (positions * 40503 + 12289) % MODULUS


def _next_id(model: SimulatedModel, digest: Any) -> Any:
    # The square, as two digests whose difference stays the same would give the same ids for ever otherwise.
    first = first_made_up_id(model.vocab)
    return first + digest * digest % MODULUS % (model.vocab - first)


def load_simulated_stage(folder: Path, layers: range, *, rank: int, ring_size: int) -> SimulatedStage:
    """Make the stage of one rank; rank 0 has the last layers."""
    return SimulatedStage(read_simulated(folder), layers, rank, ring_size)


class SimulatedStage(Stage):
    """Waits as long as its layers would take; its KV is one sum for each token of each row."""

    def __init__(self, simulated: SimulatedModel, layers: range, rank: int, ring_size: int) -> None:
        super().__init__(
            StageModel(
                inner=None,
                head=self._head if rank == 0 else None,
                layers=layers,
                is_first=rank == ring_size - 1,
                is_last=rank == 0,
                num_layers_total=simulated.layers,
                hidden_size=simulated.hidden,
                vocab_size=simulated.vocab,
                dtype=mx.float32,
                weights_bytes=4 * 64 * len(layers),
            )
        )
        self._simulated, self._rank = simulated, rank
        self._sums: dict[int, Int64Array] = {}  # by table: (rows, tokens)

    def run(self, step: StageStep, inputs: mx.array, meanwhile: Callable[[], None] | None = None) -> mx.array:
        """Wait for the layers; see Stage.run."""
        num_layers = len(self.model.layers)
        cost_us = self._simulated.stage_us(
            rank=self._rank, num_layers=num_layers, num_rows=step.num_rows, num_tokens=step.num_tokens
        )
        deadline_ns = time.monotonic_ns() + int(cost_us * 1000)
        values = np.asarray(inputs)
        ids = (values if self.model.is_first else values[..., 0]).astype(np.int64)
        digests = np.zeros_like(ids) if self.model.is_first else values[..., 1].astype(np.int64)
        hidden = np.zeros((*ids.shape, self._simulated.hidden), np.float32)
        hidden[..., 0] = ids
        hidden[..., 1] = (digests + num_layers * self._write_kv(step, ids)) % MODULUS
        output = mx.array(hidden)
        mx.eval(output)
        if meanwhile is not None:
            meanwhile()
        sleep_until(deadline_ns)
        return output

    def _write_kv(self, step: StageStep, ids: Int64Array) -> Int64Array:
        """Bring this step's tokens into the table; returns the sum up to each of them, (B, T)."""
        for resize in step.resizes:
            self._resize(resize)
        last_row = max((*step.slots, *(copy.to_slot for copy in step.copies)))
        table = self._room(step.table, last_row + 1, step.num_kv_tokens)
        for copy in step.copies:
            source = self._sums[copy.from_table]
            table[copy.to_slot, : copy.num_tokens] = source[copy.from_slot, : copy.num_tokens]
        slots, offsets = np.array(step.slots)[:, None], np.array(step.offsets)[:, None]
        positions = offsets + np.arange(step.num_tokens)  # (B, T)
        before = np.where(offsets > 0, table[slots, np.maximum(offsets - 1, 0)], 0)
        sums = (before + np.cumsum(_marks(ids, positions), axis=1)) % MODULUS
        is_real = np.arange(step.num_tokens) < np.array(step.counts)[:, None]
        rows, columns = np.nonzero(is_real)
        table[slots[rows, 0], positions[rows, columns]] = sums[rows, columns]
        return sums

    def _resize(self, order: Resize) -> None:
        old = self._sums.get(order.table, np.zeros((0, 0), np.int64))
        kept = (old[list(order.slots)] if order.slots else old)[: order.num_rows, : order.num_tokens]
        new = self._sums[order.table] = np.zeros((order.num_rows, order.num_tokens), np.int64)
        new[: kept.shape[0], : kept.shape[1]] = kept

    def _room(self, number: int, num_rows: int, num_tokens: int) -> Int64Array:
        old = self._sums.get(number, np.zeros((0, 0), np.int64))
        shape = grown((old.shape[0], old.shape[1]), num_rows, num_tokens)
        if number not in self._sums or old.shape != shape:
            self._resize(Resize(number, *shape))
        return self._sums[number]

    def _head(self, hidden: mx.array) -> mx.array:
        """Return logits (B, V) of which the next id's is far above all others."""
        num_rows = hidden.shape[0]
        deadline_ns = time.monotonic_ns() + int(self._simulated.draw_us(num_rows) * 1000)
        logits = np.zeros((num_rows, self._simulated.vocab), np.float32)
        digests = np.asarray(hidden)[:, 1].astype(np.int64)
        logits[np.arange(num_rows), _next_id(self._simulated, digests)] = 100.0
        output = mx.array(logits)
        mx.eval(output)
        sleep_until(deadline_ns)
        return output

    @property
    def kv_num_bytes(self) -> int:
        return sum(table.nbytes for table in self._sums.values())

    def measure_kv(self) -> None:
        """Nothing is compiled here, and what a token takes is known."""
        self.kv_bytes_per_token = KV_BYTES_PER_TOKEN

    def drop_tables(self) -> None:
        """Forget all KV."""
        self._sums.clear()


def sleep_until(deadline_ns: int) -> None:
    """Sleep until a moment of the monotonic clock; a signal's handler may run meanwhile."""
    while (left_ns := deadline_ns - time.monotonic_ns()) > 0:
        time.sleep(left_ns / 1e9)

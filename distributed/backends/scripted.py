"""Scripted stages: they pass token ids on in the place of hidden states, and the last one follows a script.

`config/scripted.py` describes the script, `distributed/models/scripted.py` makes the model folder. Each
stage's KV holds the ids of its rows, so the next token depends on KV tables, offsets, prefix copies and
stages as with a real model, and an answer continues after a crash from its tokens alone. Knows the turns of
ChatML.

    hidden[0] = id of the token
    logits    = 100 for the script's next token, less for shorter pieces of its text; for a grammar that
                forbids both, less for what ends an answer or closes JSON; the rest by id
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from config.scripted import ANSWERING_ROLE, Rule, Turn, find_rule, read_script
from distributed.backends.backend import StageRunner
from distributed.backends.cpu.backend import CpuBackend
from distributed.backends.simulated import SimulatedTable, sleep_until
from distributed.models.scripted import END_ID, SCRIPT_NAME
from distributed.models.stage_model import StageModel
from distributed.planning.checkpoint import read_config
from distributed.planning.step import StageStep

Int64Array = NDArray[np.int64]

START_ID = 1  # <|im_start|>
MAX_PIECE_LETTERS = 16
# What completes JSON soonest, in a string and outside of one.
CLOSING_LETTERS = {True: '"', False: '}]"0:,'}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*("?)')


@dataclass(frozen=True)
class Line:
    """The scripted answer to a prompt, in the vocabulary's letters; each token by its first letter."""

    text: str
    tokens: dict[int, int]
    pause_us: int


class Prompter:
    """Finds the script's next token from all tokens so far; keeps nothing but what it can find again."""

    def __init__(self, tokenizer: Tokenizer, rules: Sequence[Rule]) -> None:
        self._tokenizer, self._rules = tokenizer, rules
        self._opening = self._encode(f"{ANSWERING_ROLE}\n")
        self._closing = {
            is_inside: [self._encode(letter)[0] for letter in letters]
            for is_inside, letters in CLOSING_LETTERS.items()
        }
        self._line_of = lru_cache(maxsize=64)(self._find_line)

    def logits(self, ids: Int64Array) -> tuple[dict[int, float], int]:
        """Return the logits of tokens that may come next, and the pause before them in microseconds."""
        start = self._find_open_turn(ids)
        line = self._line_of(ids[:start].tobytes())
        if start is not None:
            written = self._spell(ids[start + 1 + len(self._opening) :])
        else:
            written = self._spell(ids)
            lengths = range(min(len(line.text), len(written)), -1, -1)
            written = line.text[: next(n for n in lengths if written.endswith(line.text[:n]))]
        return self._closers(written) | self._pieces(line, written), line.pause_us

    def _find_open_turn(self, ids: Int64Array) -> int | None:
        """Return where the turn of the answer begins; None: the prompt has no turns."""
        starts = np.flatnonzero(ids == START_ID)
        if not len(starts):
            return None
        last = int(starts[-1])
        return last if ids[last + 1 :][: len(self._opening)].tolist() == self._opening else None

    def _find_line(self, prompt: bytes) -> Line:
        ids = np.frombuffer(prompt, np.int64)
        starts = np.flatnonzero(ids == START_ID)
        rule = find_rule(self._rules, [self._read_turn(part) for part in np.split(ids, starts) if len(part)])
        tokens, text = {}, ""
        for token in self._encode(rule.say):
            tokens[len(text)] = token
            text += self._tokenizer.id_to_token(token)
        return Line(text, tokens, rule.pause_us)

    def _read_turn(self, ids: Int64Array) -> Turn:
        if ids[0] != START_ID:
            return Turn("", self._tokenizer.decode(ids.tolist(), skip_special_tokens=False))
        is_body = ids != END_ID
        role, _, text = self._tokenizer.decode(ids[1:][is_body[1:]].tolist()).partition("\n")
        return Turn(role, text)

    def _pieces(self, line: Line, written: str) -> dict[int, float]:
        """Return what continues the script: its own token, and shorter pieces of its text for a grammar."""
        if not line.text.startswith(written):
            return {}
        place = len(written)
        rest = line.text[place : place + MAX_PIECE_LETTERS]
        if not rest:
            return {END_ID: 100.0}
        found = [(self._tokenizer.token_to_id(rest[:n]), 60.0 + n) for n in range(1, len(rest) + 1)]
        own = {line.tokens[place]: 100.0} if place in line.tokens else {}
        return {token: logit for token, logit in found if token is not None} | own

    def _closers(self, written: str) -> dict[int, float]:
        is_inside = any(not match[1] for match in _STRING.finditer(written))
        tokens = [END_ID, *self._closing[is_inside]]
        return {token: 40.0 - index for index, token in enumerate(tokens)}

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _spell(self, ids: Int64Array) -> str:
        return "".join(self._tokenizer.id_to_token(token) or "" for token in ids.tolist())


class ScriptedBackend(CpuBackend):
    """A machine that follows the script in the model folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._vocab_size = int(read_config(folder)["vocab_size"])

    def load(self, folder: Path, layers: range, **options: Any) -> ScriptedRunner:
        is_first, is_last = options["is_first"], options["is_last"]
        model = StageModel(
            inner=None,
            head=None,
            layers=layers,
            is_first=is_first,
            is_last=is_last,
            hidden_size=1,
            vocab_size=self._vocab_size,
            dtype=mx.float32,
            weights_bytes=4 * 64 * len(layers),
        )
        if not is_last:
            return ScriptedRunner(model)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return ScriptedRunner(model, Prompter(tokenizer, read_script(folder / SCRIPT_NAME)))


class ScriptedRunner(StageRunner):
    """Keeps and passes on the ids of the rows; on the last stage the prompter speaks."""

    def __init__(self, model: StageModel, prompter: Prompter | None = None) -> None:
        super().__init__(model)
        self._prompter = prompter
        self._others = -np.arange(model.vocab_size, dtype=np.float32) / model.vocab_size
        self._step, self._kv = StageStep(0, (), (), (), 0), np.zeros((0, 0), np.int64)

    def make_table(self) -> SimulatedTable:
        return SimulatedTable()

    def forward(self, x: mx.array, begun: tuple[StageStep, Int64Array]) -> mx.array:
        """Write this step's ids into the KV and pass them on; exact in float32."""
        self._step, self._kv = begun
        ids = np.asarray(x).reshape(self._step.num_rows, self._step.num_tokens).astype(np.int64)
        for row, (slot, start, count) in enumerate(
            zip(self._step.slots, self._step.offsets, self._step.counts, strict=True)
        ):
            self._kv[slot, start : start + count] = ids[row, :count]
        return mx.array(ids[..., None].astype(np.float32))

    def logits(self, hidden: mx.array, rows: Sequence[int], columns: Sequence[int]) -> mx.array:
        """Return logits (W, V) for the step that `forward` ran last."""
        assert self._prompter is not None, "only the last stage has the script"
        begin_ns, pause_us = time.monotonic_ns(), 0
        logits = np.tile(self._others, (len(rows), 1))
        for index, (row, column) in enumerate(zip(rows, columns, strict=True)):
            end = self._step.offsets[row] + column + 1
            found, row_pause_us = self._prompter.logits(self._kv[self._step.slots[row], :end])
            logits[index, list(found)] = list(found.values())
            pause_us = max(pause_us, row_pause_us)
        sleep_until(begin_ns + pause_us * 1000)
        return mx.array(logits)

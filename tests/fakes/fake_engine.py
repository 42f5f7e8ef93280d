"""A rank 0 without a model: claims real requests from a real spool and answers them with words it makes up.

The answer depends on the request alone: `answer_pieces` says what it will be, `logprobs_of` its logprobs.
Words in the prompt steer it: [hold] waits for `release()` before the second token, [fail] ends in an error,
[paced] leaves 5 ms between tokens, [too long] is refused. With `max_open` 0 everything waits. `texts` has
answers of a test's own, by a word that the prompt contains, cut into tokens of three characters.
"""

import selectors
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from config.context_length import ContextLength
from config.run_files import write_json
from spool import (
    Claim,
    LogHeader,
    Request,
    Result,
    Spool,
    SpoolOwner,
    TokenLogprob,
    TokenLogWriter,
    TokenRecord,
    Usage,
)

MAX_PIECES = 40
PACE_SECONDS = 0.005
POLL_SECONDS = 0.05


def answer_pieces(request: Request) -> tuple[list[str], str]:
    """Return the pieces of the answer, one a token, and its finish reason."""
    pieces = ["Grüße", ", ", "wörld", "! 🎉 "] + [f"n{index} " for index in range(MAX_PIECES)]
    pieces = pieces[: min(request.params.max_tokens, MAX_PIECES)]
    reason = "length" if request.params.max_tokens <= MAX_PIECES else "stop"
    text = "".join(pieces)
    ends = [at for at in (text.find(stop) for stop in request.params.stop) if at >= 0]
    if not ends:
        return pieces, reason
    kept, room = [], min(ends)
    for piece in pieces:
        kept.append(piece[: max(room, 0)])
        room -= len(piece)
        if room <= 0:
            break
    return kept, "stop"


def logprobs_of(token_ids: Sequence[int], num_alternatives: int | None) -> tuple[TokenLogprob, ...] | None:
    """Return made-up logprobs: -token id / 1000, the alternatives are the ids below it."""
    if num_alternatives is None:
        return None
    return tuple(
        TokenLogprob(
            token,
            -token / 1000,
            tuple((other, -other / 1000) for other in range(token - 1, token - 1 - num_alternatives, -1)),
        )
        for token in token_ids
    )


def prompt_logprobs_of(request: Request) -> tuple[TokenLogprob, ...] | None:
    """Return made-up logprobs of a prompt, as rank 0 does: nothing comes before the first token."""
    token_ids = request.token_ids or ()
    found = logprobs_of(token_ids, request.params.prompt_logprobs)
    return found and (TokenLogprob(token_ids[0], None), *found[1:])


@dataclass
class Open:
    """An answer under way."""

    claim: Claim
    log: TokenLogWriter
    pieces: list[str]
    reason: str
    next_at: float = 0.0


class FakeEngine:
    """Use as a context manager; runs in a thread of its own."""

    def __init__(self, spool: Spool, run_dir: Path, *, max_open: int = 64) -> None:
        self.max_open = max_open
        self._owner = SpoolOwner(spool)
        self._run_dir = run_dir
        self._answers: list[Open] = []
        self._released = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._is_stopping = False
        self._has_new_room = False
        self._thread = threading.Thread(target=self._run, name="fake engine", daemon=True)
        self.claimed: list[Request] = []
        self.texts: dict[str, str] = {}
        self.accepted_unix: dict[str, float] = {}
        self.claimed_unix: dict[str, float] = {}
        self.token_unix: dict[str, list[float]] = {}

    def __enter__(self) -> "FakeEngine":
        self._owner.acquire()
        self._owner.recover()
        self._bell = self._owner.listen()
        self.say("ready")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopping = True
        self._wake.send(b"x")
        self._thread.join(timeout=10)
        self._bell.close()
        self._owner.close()
        self._wake.close()
        self._woken.close()

    def release(self) -> None:
        """Let held answers go on."""
        self._released.set()
        self._wake.send(b"x")

    def start_over(self, max_open: int) -> None:
        """Forget what was claimed and released; nothing may be open."""
        assert not self._answers
        self._released.clear()
        self.claimed.clear()
        self.texts.clear()
        self.max_open = max_open
        self.say("ready")

    def open_up(self, max_open: int) -> None:
        """Work on this many requests at once from now on."""
        self.max_open = max_open
        self._wake.send(b"x")

    def say(self, phase: str, **members: Any) -> None:
        """Write rank 0's status."""
        now = time.time()
        rank = {"rank": 0, "host": "127.0.0.1", "pid": 1, "first_layer": 0, "num_layers": 30}
        rank |= {"weights_bytes": 10**8, "memory_bytes": 2 * 10**8, "busy_ratio": 0.5, "num_steps": 7}
        totals = {"prompt_tokens": 11, "generation_tokens": 22, "cached_tokens": 3, "requests": {"stop": 4}}
        status = {
            "updated_unix": now,
            "epoch": 1,
            "phase": phase,
            "reason": None,
            "started_unix": now,
            "model": "tiny",
            "ring_size": 1,
            "step": 7,
            "last_lap_unix": now,
            "ranks": [rank],
            "queue": {"num_waiting": 0, "num_running": 0, "oldest_wait_s": 0.0},
            "kv": {"max_tokens": 100, "num_tokens": 25, "num_preemptions": 6},
            "totals": totals,
            "results": {"num_bytes": 12288, "removed_by_age": 2, "removed_by_size": 5},
        }
        write_json(self._run_dir / "ring.json", {**status, **members})

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._bell.fileno(), selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._is_stopping:
                for key, _ in selector.select(self._patience()):
                    if key.fileobj is self._woken:
                        self._woken.recv(16)
                self._bell.drain()
                self._take_in()
                self._step()

    def _patience(self) -> float:
        if self._has_new_room:
            return 0.0
        ready = [answer.next_at for answer in self._answers if not self._is_held(answer)]
        return max(0.0, min(ready) - time.monotonic()) if ready else POLL_SECONDS

    def _take_in(self) -> None:
        self._has_new_room = False
        for claim in self._owner.claim(max(0, self.max_open - len(self._answers))):
            self.accepted_unix[claim.request.id] = claim.name.time_ns / 1e9
            self.claimed_unix[claim.request.id] = time.time()
            self.claimed.append(claim.request)
            pieces, reason = self._pieces(claim.request)
            log = self._owner.append_log(claim.request.id, LogHeader("tiny"))
            self._answers.append(Open(claim, log, pieces, reason))
        cancelled = self._owner.cancelled()
        for request_id in cancelled - {answer.claim.request.id for answer in self._answers}:
            for claim in self._owner.claim(1, only=[request_id]):
                request = claim.request
                result = Result(request.id, "tiny", "", (), "cancelled", Usage(), {}, None, time.time())
                self._owner.complete(claim, replace(result, owner=request.owner))
                self._owner.ring_doors()
        for answer in [a for a in self._answers if a.claim.request.id in cancelled]:
            answer.reason, answer.pieces = "cancelled", answer.pieces[: answer.log.next_index]
            self._end(answer)

    def _pieces(self, request: Request) -> tuple[list[str], str]:
        for word, text in self.texts.items():
            if word in (request.text or ""):
                pieces = [text[at : at + 3] for at in range(0, len(text), 3)][: request.params.max_tokens]
                return pieces, "stop" if "".join(pieces) == text else "length"
        return answer_pieces(request)

    def _step(self) -> None:
        for answer in list(self._answers):
            if self._is_held(answer) or answer.next_at > time.monotonic():
                continue
            index = answer.log.next_index
            text = answer.claim.request.text or ""
            if ("[fail]" in text and index == 1) or "[too long]" in text:
                answer.reason = "error"
            elif index < len(answer.pieces):
                logprobs = logprobs_of([100 + index], answer.claim.request.params.logprobs)
                record = TokenRecord(
                    index, 100 + index, answer.pieces[index], logprobs[0] if logprobs else None
                )
                answer.log.append([record])
                self.token_unix.setdefault(answer.claim.request.id, []).append(time.time())
                if "[paced]" in (answer.claim.request.text or ""):
                    answer.next_at = time.monotonic() + PACE_SECONDS
            if answer.reason == "error" or answer.log.next_index == len(answer.pieces):
                self._end(answer)
        if self._answers:
            self._owner.ring_doors()

    def _is_held(self, answer: Open) -> bool:
        is_marked = "[hold]" in (answer.claim.request.text or "")
        return is_marked and answer.log.next_index >= 1 and not self._released.is_set()

    def _end(self, answer: Open) -> None:
        request, num_tokens = answer.claim.request, answer.log.next_index
        error = None
        if answer.reason == "error":
            error = {"code": "poison", "message": "it went wrong", "status": 500}
        if error and "[too long]" in (request.text or ""):
            message = ContextLength(99).explain_too_long(100)
            error = {"code": "context_length_exceeded", "message": message, "status": 400}
        result = Result(
            id=request.id,
            model=request.model,
            text="".join(answer.pieces[:num_tokens]),
            token_ids=tuple(range(100, 100 + num_tokens)),
            finish_reason=answer.reason,  # type: ignore[arg-type]
            usage=Usage(len(request.token_ids or ()), num_tokens, 2),
            performance={
                "queue_s": 0.001,
                "ttft_s": 0.002,
                "total_s": 0.01,
                "ranks": [{"rank": 0, "busy_s": 0.1}],
            },
            error=error,
            finished_unix=time.time(),
            owner=request.owner,
            seed=request.params.seed,
            logprobs=logprobs_of(range(100, 100 + num_tokens), request.params.logprobs),
            prompt_logprobs=prompt_logprobs_of(request),
        )
        answer.log.close()
        self._answers.remove(answer)
        self._has_new_room = True
        self._owner.complete(answer.claim, result)
        self._owner.ring_doors()

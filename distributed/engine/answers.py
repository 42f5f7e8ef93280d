"""An open answer: one request's sequence, text, token log and times on rank 0.

Knows the spool's messages and the clock; nothing of MLX, frames or the ring.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

from distributed.engine.constraints import Constraint, Mask
from distributed.engine.row_sampling import RowSampling
from distributed.engine.sequence import Sequence
from distributed.engine.text_stream import TextStream
from spool import Claim, Request, Result, TokenLogWriter, TokenRecord, Usage
from spool.messages import FinishReason


@dataclass
class RankShare:
    """One rank's work for one answer; a microbatch's busy time is divided evenly among its rows."""

    num_frames: int = 0
    busy_s: float = 0.0


@dataclass(eq=False)
class Answer:
    """A claimed request and its state until its result is written."""

    claim: Claim
    sequence: Sequence
    stream: TextStream
    log: TokenLogWriter
    num_ranks: int
    claimed_unix: float
    text: str = ""
    num_resumed_tokens: int = 0
    first_token_unix: float | None = None
    is_solo: bool = False  # marked in the spool as running alone
    constraint: Constraint | None = None  # of a grammar
    shares: list[RankShare] = field(init=False)

    def __post_init__(self) -> None:
        self.shares = [RankShare() for _ in range(self.num_ranks)]
        self._replay(self.log.resumed)

    @property
    def request(self) -> Request:
        return self.claim.request

    def sampling(self, ahead: int = 0, mask: Mask | None = None) -> RowSampling:
        """Return the draw's parameters for the next token, or for the one `ahead` tokens after it."""
        params, index = self.request.params, self.sequence.num_answer_tokens + ahead
        return RowSampling(
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            seed=params.seed,
            choice=params.choice,
            index=index,
            mask=mask,
        )

    @property
    def finish_reason(self) -> FinishReason | None:
        """Return why the tokens so far end the answer, or None."""
        if self.stream.is_stopped or self.sequence.ended_by == "stop":
            return "stop"
        return "length" if self.sequence.ended_by == "length" else None

    def record(self, token_ids: Items[int]) -> list[TokenRecord]:
        """Add the sequence's newest tokens to the text; return their records for the token log.

        Tokens after a stop string are dropped, from the sequence as well.
        """
        if self.first_token_unix is None:
            self.first_token_unix = time.time()
        first, records = self.sequence.num_answer_tokens - len(token_ids), []
        for number, token_id in enumerate(token_ids, start=1):
            text = self._take(token_id, is_newest=number == len(token_ids))
            records.append(TokenRecord(index=first + number - 1, token_id=token_id, text=text))
            if self.stream.is_stopped:
                del self.sequence.token_ids[self.sequence.num_prompt_tokens + first + number :]
                break
        return records

    def credit(self, busy_us: Items[int], num_rows: int) -> None:
        """Add a microbatch's busy times, microseconds by rank; `num_rows` share them."""
        for share, us in zip(self.shares, busy_us, strict=True):
            share.num_frames += 1
            share.busy_s += us / 1e6 / num_rows

    def result(self, finish_reason: FinishReason, first_layers: Items[tuple[int, int]]) -> Result:
        """Build the final answer; `first_layers` is (first layer, number of layers) by rank."""
        sequence, request = self.sequence, self.request
        return Result(
            id=request.id,
            model=request.model,
            text=self.text,
            token_ids=tuple(sequence.token_ids[sequence.num_prompt_tokens :]),
            finish_reason=finish_reason,
            usage=Usage(sequence.num_prompt_tokens, sequence.num_answer_tokens, self._num_reused),
            performance={**self.times(), "ranks": self._ranks(first_layers)},
            error=None,
            finished_unix=time.time(),
            owner=request.owner,
            seed=request.params.seed,
        )

    def times(self) -> dict[str, Any]:
        """Return the request's times in seconds and its rates in tokens a second."""
        now, created = time.time(), self.request.created_unix
        received = self.request.received_unix or created
        first = self.first_token_unix or now
        num_new = self.sequence.num_answer_tokens - self.num_resumed_tokens
        num_prefilled = self.sequence.num_prompt_tokens - self._num_reused
        return {
            "accept_s": round(max(0.0, created - received), 6),
            "queue_s": round(max(0.0, self.claimed_unix - created), 6),
            "prefill_s": round(first - self.claimed_unix, 6),
            "ttft_s": round(max(0.0, first - created), 6),
            "prefill_tokens_per_s": _rate(num_prefilled, first - self.claimed_unix),
            "decode_tokens_per_s": _rate(num_new - 1, now - first),
            "total_s": round(max(0.0, now - created), 6),
        }

    @property
    def _num_reused(self) -> int:
        """Prompt tokens whose KV was reused; a resumed answer may reuse KV of its own tokens as well."""
        return min(self.sequence.num_reused_tokens, self.sequence.num_prompt_tokens)

    def _replay(self, records: Items[TokenRecord]) -> None:
        """Continue from the log of an earlier attempt."""
        self.num_resumed_tokens = len(records)
        for record in records:
            self.sequence.token_ids.append(record.token_id)
            self._take(record.token_id, is_newest=True)

    def _take(self, token_id: int, *, is_newest: bool) -> str:
        text = self.stream.add(token_id)
        if self.stream.is_stopped or (is_newest and self.finish_reason is not None):
            text += self.stream.finish()
        self.text += text
        return text

    def _ranks(self, first_layers: Items[tuple[int, int]]) -> list[dict[str, Any]]:
        total = sum(share.busy_s for share in self.shares) or 1.0
        return [
            {
                "rank": rank,
                "first_layer": first,
                "num_layers": count,
                "num_frames": share.num_frames,
                "busy_s": round(share.busy_s, 6),
                "busy_share": round(share.busy_s / total, 4),
            }
            for rank, (share, (first, count)) in enumerate(zip(self.shares, first_layers, strict=True))
        ]


def _rate(count: int, seconds: float) -> float:
    return round(max(count, 0) / seconds, 3) if seconds > 0 else 0.0
